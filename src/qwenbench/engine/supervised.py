"""qwenbench's end of a supervised server: starts the supervisor, hears its events, asks it to stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenbench.masking import remembered_variables
from qwenbench.processes import descendants, process_start_time


@dataclass(frozen=True, slots=True)
class Ended:
    exit_code: int | None
    """Negative: the signal's number, as subprocess says it."""
    killed: bool
    """True when SIGKILL was needed for it or one of its children."""


class RefusedError(Exception):
    """The command could not be started at all; the text says why."""


class SupervisedProcess:
    """One command under its supervisor. Made by `start`."""

    def __init__(self, supervisor: subprocess.Popen[bytes]) -> None:
        self._supervisor = supervisor
        self._first: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._exited = asyncio.Event()
        self._ended: Ended | None = None
        self.exit_code: int | None = None
        """Of the first process; None while it runs (or when its supervisor was killed)."""
        self.pid = 0
        self.start_time: float | None = None
        self._reader = asyncio.create_task(self._hear())

    @classmethod
    async def start(
        cls, argv: Sequence[str], log_path: Path, env: Mapping[str, str], secret_names: Iterable[str]
    ) -> SupervisedProcess:
        """Runs argv (no shell) with `env` added to this process' environment; its output goes to log_path.

        Raises RefusedError when the command cannot be started.
        """
        process = cls(_start_supervisor(argv, log_path, env, {*secret_names, *remembered_variables()}))
        process.pid = await process._first
        return process

    def alive(self) -> bool:
        if self._exited.is_set():
            return False
        return self.start_time is None or process_start_time(self.pid) == self.start_time

    def pids(self) -> list[int]:
        return descendants(self._supervisor.pid)

    async def gone(self) -> Ended:
        """Returns when nothing is left: no child, no log line outstanding."""
        await asyncio.shield(self._reader)  # a caller that gives up must not end the reading
        return self._ended or Ended(self.exit_code, killed=False)

    async def stop(self, grace_s: float) -> Ended:
        """SIGTERM to the group, SIGKILL after the grace to whatever is left. Safe to call twice."""
        assert self._supervisor.stdin is not None
        if not self._reader.done():
            with contextlib.suppress(BrokenPipeError):  # it ended by itself meanwhile
                self._supervisor.stdin.write(f"stop {grace_s}\n".encode())
        return await self.gone()

    async def _hear(self) -> None:
        told = asyncio.StreamReader()
        reading, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(told), self._supervisor.stdout
        )
        async for line in told:
            event = json.loads(line)
            match event["event"]:
                case "started":
                    self.start_time = event["start_time"]
                    self._first.set_result(event["pid"])
                case "refused":
                    self._first.set_exception(RefusedError(event["message"]))
                case "exited":
                    self.exit_code = event["code"]
                    self._exited.set()
                case "gone":
                    self._ended = Ended(event["code"], event["killed"])
        reading.close()
        await asyncio.to_thread(self._supervisor.wait)  # its output ends when it does
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        self._exited.set()
        if not self._first.done():
            self._first.set_exception(RefusedError("the supervisor ended before it had started the server"))


def _start_supervisor(
    argv: Sequence[str], log_path: Path, env: Mapping[str, str], secret_names: Iterable[str]
) -> subprocess.Popen[bytes]:
    owner = os.getpid()
    options = ["--log", str(log_path), "--owner-pid", str(owner)]
    start = process_start_time(owner)
    if start is not None:
        options += ["--owner-start", str(start)]
    for name in secret_names:
        options += ["--secret", name]
    module = ("-P", "-m", "qwenbench.engine.supervisor")  # -P: not from the folder that we happen to be in
    ending = (signal.SIGTERM, signal.SIGINT)
    # Inherited: they wait for the supervisor's own handlers. The event loop's subprocesses would not do: uvloop starts
    # them with nothing blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    try:
        return subprocess.Popen(
            [sys.executable, *module, *options, "--", *argv],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)

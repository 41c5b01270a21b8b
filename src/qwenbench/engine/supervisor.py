"""`python -m qwenbench.engine.supervisor`: the process between qwenbench and a server.

It owns the server (also children that left the group: it is a subreaper), pumps its output through the mask
into server.log, and ends all of it when asked to, when the server's first process ends, or when qwenbench
itself vanishes - even by SIGKILL. Commands come in on stdin (`stop SECONDS`), events go out on stdout as
JSON lines: started, refused, exited, gone. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qwenbench.engine.log_lines import LogSink
from qwenbench.masking import Masker
from qwenbench.processes import descendants, process_start_time, send

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ENDING = (signal.SIGTERM, signal.SIGINT)
_OWNER_GONE_GRACE_S = 10.0
_CHILDREN_GRACE_S = 3.0
_DRAIN_S = 0.5
_READ_BYTES = 1 << 16


class Supervisor:
    """One server, from its start until nothing of it is left."""

    def __init__(self, argv: list[str], log: LogSink) -> None:
        self._argv = argv
        self._log = log
        self._selector = selectors.DefaultSelector()
        self._child: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._output = -1
        self._stopping = False
        self._kill_at: float | None = None
        self._children_told = False
        self._killed = False

    def run(self, owner_pid: int, owner_start: float | None) -> int:
        """Starts the server, watches until nothing of it is left, and returns 0 (127: it could not start)."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake_in, wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _ENDING:
            signal.signal(number, lambda *_: self._stop(_OWNER_GONE_GRACE_S))
        if not self._start(libc):
            return 127
        # blocked by whoever started this process: a signal waits until there are handlers and something to stop
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        self._selector.register(wake_in, selectors.EVENT_READ, "wake")
        self._selector.register(0, selectors.EVENT_READ, "command")
        self._watch_owner(owner_pid, owner_start)
        while self._step(wake_in):
            pass
        self._finish()
        return 0

    def _start(self, libc: Any) -> bool:
        output, write_end = os.pipe2(os.O_CLOEXEC)

        def die_with_supervisor() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

        try:
            self._child = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                start_new_session=True,
                preexec_fn=die_with_supervisor,  # noqa: PLW1509 - this process has one thread
            )
        except OSError as error:
            self._log.line(f"{self._argv[0]}: {error.strerror}")
            _tell(event="refused", message=f"{self._argv[0]}: {error.strerror}")
            return False
        finally:
            os.close(write_end)
        self._output = output
        os.set_blocking(output, False)
        self._selector.register(output, selectors.EVENT_READ, "output")
        pid = self._child.pid
        _tell(event="started", pid=pid, start_time=process_start_time(pid))
        return True

    def _watch_owner(self, pid: int, start: float | None) -> None:
        # a pipe alone is not enough: a worker that the owner forked may hold its other end open
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            self._stop(_OWNER_GONE_GRACE_S)
            return
        self._selector.register(handle, selectors.EVENT_READ, "owner")
        if start is not None and process_start_time(pid) != start:
            self._stop(_OWNER_GONE_GRACE_S)

    def _step(self, wake_in: int) -> bool:
        """Handles what happened next; False when nothing of the server is left."""
        patience = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        for key, _ in self._selector.select(patience):
            if key.data == "output":
                self._pump()
            elif key.data == "command":
                self._command()
            elif key.data == "owner":
                self._selector.unregister(key.fileobj)
                self._stop(_OWNER_GONE_GRACE_S)
            else:
                with contextlib.suppress(BlockingIOError):
                    while os.read(wake_in, 4096):
                        pass
        left = self._reap()
        self._escalate()
        return left

    def _pump(self) -> None:
        try:
            data = os.read(self._output, _READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self._log.feed(data)
        else:
            self._selector.unregister(self._output)

    def _command(self) -> None:
        data = os.read(0, 4096)
        if not data:
            self._selector.unregister(0)
            self._stop(_OWNER_GONE_GRACE_S)
            return
        for line in data.decode().splitlines():
            word, _, seconds = line.partition(" ")
            if word == "stop":
                self._stop(float(seconds))

    def _stop(self, grace_s: float) -> None:
        """SIGTERM to the whole group; SIGKILL to whatever is left after the grace."""
        self._kill_by(time.monotonic() + grace_s)
        if not self._stopping and self._child is not None and self._exit_code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGTERM)
        self._stopping = True

    def _kill_by(self, deadline: float) -> None:
        self._kill_at = deadline if self._kill_at is None else min(self._kill_at, deadline)

    def _reap(self) -> bool:
        """Collects ended children (adopted ones too); False when none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if self._child is not None and pid == self._child.pid:
                self._exit_code = os.waitstatus_to_exitcode(status)
                _tell(event="exited", code=self._exit_code)

    def _escalate(self) -> None:
        now = time.monotonic()
        if self._exit_code is not None and not self._children_told:
            # the server is gone, its children should be too: an EngineCore left alone holds the card's memory
            self._children_told = True
            send(descendants(os.getpid()), signal.SIGTERM)
            self._kill_by(now + _CHILDREN_GRACE_S)
        if self._kill_at is not None and now >= self._kill_at:
            survivors = descendants(os.getpid())
            self._killed = self._killed or bool(survivors)
            send(survivors, signal.SIGKILL)
            self._kill_at = now + 0.05  # children may have been started meanwhile

    def _finish(self) -> None:
        # what is left in the pipe; its end may never come when somebody else holds it open
        deadline = time.monotonic() + _DRAIN_S
        while self._output in self._selector.get_map() and (left := deadline - time.monotonic()) > 0:
            if select.select([self._output], [], [], left)[0]:
                self._pump()
        self._log.close()
        _tell(event="gone", code=self._exit_code, killed=self._killed)


def _tell(**event: Any) -> None:
    """One event to the owner; nobody listens any more when the owner is gone."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(event).encode() + b"\n")


def main(words: list[str]) -> int:
    """`[options] -- COMMAND ...`: runs the supervisor; see the module's text."""
    parser = argparse.ArgumentParser(prog="qwenbench.engine.supervisor")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--owner-pid", type=int, required=True)
    parser.add_argument("--owner-start", type=float)
    parser.add_argument("--secret", action="append", default=[], help="name of a variable whose value is masked")
    end = words.index("--")
    given = parser.parse_args(words[:end])
    try:
        log = LogSink(given.log, Masker.from_environment(given.secret))
    except OSError as error:
        _tell(event="refused", message=f"{given.log}: {error.strerror}")
        return 1
    return Supervisor(words[end + 1 :], log).run(given.owner_pid, given.owner_start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

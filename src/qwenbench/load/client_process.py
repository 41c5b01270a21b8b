"""A client process seen from its parent: the messages that pass, what survives its death, its start and end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from qwenbench.load.clock import ProcessHealth
from qwenbench.load.source import Share
from qwenbench.load.spec import LoadProgress, LoadSpec

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready for a point: encode requests, open connections."""

    spec: LoadSpec
    """The point, without its sessions; `enough` is this process's part of it."""
    share: Share
    tell_times: bool
    """Send the times of finished requests with each progress."""
    cpu: int | None
    sent_log: str
    """Path of the file to log sent requests in."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The process is ready."""


@dataclass(frozen=True, slots=True)
class Go:
    """Let the streams go at this CLOCK_REALTIME ns."""

    start_ns: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the point early."""

    reason: str = "stopped by the user"


@dataclass(frozen=True, slots=True)
class WindDown:
    """Send nothing new, finish what is in flight."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A point's result: its request records, and answers by request id where they were asked for."""

    table: pa.Table = field(repr=False)
    ended_ns: int
    health: ProcessHealth | None
    """None: the process was lost."""
    waiting_since_ns: int
    """As in LoadProgress; not 0: the last requests got no whole answer."""
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The process could not do what it was asked; `usage` when the user's input is the reason."""

    reason: str
    usage: bool = False


Message = Prepare | Prepared | Go | Stop | WindDown | Finished | Failed | LoadProgress


def frame(message: Message) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader) -> Message | None:
    """The next message, None when the other side is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        message: Any = pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    assert isinstance(message, Message)
    return message


def write_message(fd: int, message: Message) -> None:
    """Write a message to a blocking file descriptor. Raises OSError when the other side is gone."""
    rest = memoryview(frame(message))
    while rest:
        rest = rest[os.write(fd, rest) :]


_ENTRY = struct.Struct("<qqqih")


@dataclass(frozen=True, slots=True)
class SentEntry:
    """One request that was about to be sent: when (CLOCK_REALTIME ns), and which one."""

    sent_ns: int
    due_ns: int
    """When it was due (open loop) or its stream was free for it."""
    session: int
    """Index of its session in the point's spec."""
    stream: int
    turn: int
    """Index of the turn in its session."""


class SentLog:
    """Appends one entry (30 bytes, one write call, under 2 us) per request."""

    def __init__(self, path: Path) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def add(self, entry: SentEntry) -> None:
        """Note a request right before it is sent."""
        if self._fd < 0:
            return
        try:
            os.write(self._fd, _ENTRY.pack(entry.sent_ns, entry.due_ns, entry.session, entry.stream, entry.turn))
        except OSError:  # a full disk: the log is an insurance, and the load goes on without it
            self.close()

    def close(self) -> None:
        """Close the file; the reader removes it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_sent_log(path: Path) -> list[SentEntry]:
    """All whole entries of a log; an empty list when the process never got as far as writing one."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = len(raw) - len(raw) % _ENTRY.size
    return [SentEntry(*entry) for entry in _ENTRY.iter_unpack(raw[:whole])]


_CLOSE_S = 5.0


class ProcessLost(Exception):
    """The client process ended, or was ended, before its work was done."""


class ClientProcess:
    """Starts, speaks to and ends one `qwenbench.load.worker`."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self._given_up = False

    @classmethod
    async def start(cls, folder: Path) -> ClientProcess:
        """Start one. Its stderr goes to an unnamed file in `folder`, to be quoted should it die.

        It has a session of its own, so that Ctrl-C reaches the parent only, which then stops it in order.
        """
        path = folder / f"stderr-{os.urandom(4).hex()}"
        errors = path.open("w+b")
        path.unlink()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "qwenbench.load.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            # sessions may be of any class that this process can import
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        return cls(process, errors)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._given_up

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Queue a message to it. Raises ProcessLost."""
        stdin = self._process.stdin
        assert stdin is not None
        if not self.alive or stdin.is_closing():
            raise ProcessLost(self._obituary())
        try:
            stdin.write(frame(message))
        except (BrokenPipeError, ConnectionResetError):
            raise ProcessLost(self._obituary()) from None

    async def receive(self, limit_s: float) -> Message:
        """Its next message. Raises ProcessLost when it is gone, or silent for `limit_s` seconds (it is ended then)."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                message = await read_message(stdout)
        except TimeoutError:
            self.kill()
            raise ProcessLost(f"it said nothing for {limit_s:.3g} s and was ended") from None
        if message is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._process.wait()
            raise ProcessLost(self._obituary())
        return message

    def kill(self) -> None:
        self._given_up = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End it in order: it ends with its stdin."""
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._errors.close()

    def _obituary(self) -> str:
        code = self._process.returncode
        how = "it is still running" if code is None else f"exit status {code}"
        if code is not None and code < 0:
            how = f"signal {-code}"
        self._errors.seek(0)
        said = self._errors.read()[-4000:].decode("utf-8", "replace").splitlines()
        lines = [line for line in said if line.strip() and not line.startswith(("Traceback (", " "))]
        return f"{how}; {lines[-1][:200]}" if lines else how

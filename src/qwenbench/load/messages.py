"""What the parent and its client processes say to each other: pickled values with a length before them."""

from __future__ import annotations

import asyncio
import os
import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwenbench.load.clock import ProcessHealth
from qwenbench.load.source import Share
from qwenbench.load.spec import LoadProgress, Target

_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready for a point: encode requests, open connections."""

    target: Target
    share: Share
    open_loop: bool
    streams: int
    """Connections to open in this process. Closed loop: its streams."""
    timeout_s: float
    duration_s: float | None
    cpu: int | None
    save_text: bool
    judge_text: bool
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


@dataclass(frozen=True, slots=True)
class Finished:
    """A point's result: an Arrow IPC stream, and answers by request id where they were asked for."""

    table: bytes = field(repr=False)
    ended_ns: int
    health: ProcessHealth
    texts: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The process could not do what it was asked; `usage` when the user's input is the reason."""

    reason: str
    usage: bool = False


Message = Prepare | Prepared | Go | Stop | Finished | Failed | LoadProgress


def frame(message: Message) -> bytes:
    """A message as bytes."""
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

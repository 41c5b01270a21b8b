"""What passes between a transport and the streams: one exchange is one request and its raw answer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from qwenbench.load.http1 import ChunkWalk, ResponseHead


@dataclass(slots=True)
class Exchange:
    """One request and what came back, undecoded. Times are CLOCK_REALTIME ns.

    `reads[i]` arrived at `stamps[i]`. With `head` set they are raw HTTP bytes (head included); without it
    they are body bytes that an HTTP library has unframed already, and `status` / `headers` say the rest.
    """

    sent_ns: int = 0
    """Right before the first byte was written; the start of the attempt where no byte could be written."""
    ended_ns: int = 0
    connect_ms: float | None = None
    resent: bool = False
    reads: list[bytes] = field(default_factory=list)
    stamps: array[int] = field(default_factory=lambda: array("q"))
    head: ResponseHead | None = None
    chunks: ChunkWalk | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    """One of records.ERRORS when the transport failed; the body may still tell more."""
    detail: str | None = None


class Channel(Protocol):
    """One connection's worth of requests, one after another."""

    @property
    def ready(self) -> bool:
        """Connected and idle: the next request is written at once."""
        ...

    def start(self, body: bytes, done: Callable[[Exchange], None]) -> Exchange:
        """Send one request; `done` is called once, when it ended or failed. Returns the open exchange."""
        ...

    def abort(self, error: str, detail: str) -> None:
        """End the exchange under way now, as `error`. The connection is given up."""
        ...


class Transport(Protocol):
    """A way to the server under test."""

    stamp_source: str
    """`kernel` or `user`: who stamps what arrives."""

    async def connect(self, count: int) -> list[Channel]:
        """`count` channels with connections that are open already (or failed: the request will tell)."""
        ...

    def channel(self) -> Channel:
        """One more channel, which connects when it is first used."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...

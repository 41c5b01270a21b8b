"""What passes between a transport and the streams: one exchange is one request and its raw answer, and its body."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qwenbench.load.http1 import ChunkWalk, MalformedResponse, ResponseHead, parse_head


@dataclass(slots=True)
class RawExchange:
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

    def start(self, body: bytes, done: Callable[[RawExchange], None]) -> RawExchange:
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


Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Body:
    """A response body. `complete` says whether HTTP's own end was seen; `broken` what HTTP rule was broken."""

    data: bytes
    complete: bool
    broken: str | None
    _piece_ends: Offsets
    """Body offsets at which the pieces (chunks) end."""
    _shifts: Offsets
    """Per piece: raw offset minus body offset."""
    _read_ends: Offsets
    """Raw offsets at which the reads end."""

    def reads_of(self, ends: Offsets) -> Offsets:
        """For body offsets just after some bytes: the index of the read that brought the last of them."""
        if len(ends) == 0:
            return ends
        pieces = np.searchsorted(self._piece_ends, ends, side="left")
        return np.searchsorted(self._read_ends, ends + self._shifts[pieces], side="left").astype(np.int64)


def cut_body(exchange: RawExchange) -> Body:
    """Unframe what was read. Never raises: a body that breaks HTTP's rules is cut as far as it goes."""
    reads = exchange.reads
    raw = b"".join(reads)
    read_ends = np.cumsum(np.fromiter(map(len, reads), np.int64, len(reads)))
    head = exchange.head
    broken: str | None = None
    if head is None and exchange.status is None:
        try:
            head = parse_head(raw)
        except MalformedResponse as problem:
            broken = str(problem)
        if head is None:
            return Body(b"", False, broken, *_one_piece(0, 0), read_ends)
    if head is None:
        complete = exchange.error is None
        return Body(raw, complete, None, *_one_piece(0, len(raw)), read_ends)
    if not head.chunked:
        end = len(raw) if head.length is None else min(len(raw), head.body_start + head.length)
        complete = exchange.error is None if head.length is None else end - head.body_start == head.length
        data = raw[head.body_start : end]
        return Body(data, complete, None, *_one_piece(head.body_start, len(data)), read_ends)
    walk = ChunkWalk(head.body_start)
    try:
        walk.feed(raw[head.body_start :])
    except MalformedResponse as problem:
        broken = str(problem)
    walk.take_partial()
    starts, sizes = np.array(walk.starts, np.int64), np.array(walk.sizes, np.int64)
    data = b"".join([raw[at : at + size] for at, size in zip(walk.starts, walk.sizes, strict=True)])
    ends = np.cumsum(sizes)
    whole = walk.done and not walk.left_over
    if walk.done and walk.left_over:
        broken = "bytes came after the end of the answer"
    return Body(data, whole, broken, ends, starts + sizes - ends, read_ends)


def _one_piece(start: int, size: int) -> tuple[Offsets, Offsets]:
    return np.array([size], np.int64), np.array([start], np.int64)

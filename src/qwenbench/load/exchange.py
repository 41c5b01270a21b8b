"""What passes between a transport and the streams: one exchange is one request and its raw answer, and its body."""

from __future__ import annotations

import re
import zlib
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from qwenbench.load.clock import NS_PER_S, now_ns
from qwenbench.load.http1 import ChunkWalk, MalformedResponse, ResponseHead, parse_head
from qwenbench.server_words import visible


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
    _counted: int = 0
    _unbroken: int = 0
    """Bytes since the last blank line: an event without end must not fill the memory."""
    _size: int = 0

    def size(self) -> int:
        """Bytes read so far; cheap when asked often."""
        self._size += sum(map(len, self.reads[self._counted :]))
        self._counted = len(self.reads)
        return self._size

    @property
    def too_long(self) -> str | None:
        """Why the answer is longer than any real one, None while it is not."""
        long = self.size() > MAX_ANSWER_BYTES
        return f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MiB" if long else None

    @property
    def is_long_error(self) -> bool:
        """Whether enough of an error page was read."""
        return self.status not in (None, 200) and self.size() > MAX_ERROR_BYTES

    def excess(self, data: bytes) -> str | None:
        """Why an answer that brought `data` last is given up: an event without end, or too long; None while it is not.

        An event is looked for in large reads only, and its exact length when it is decoded.
        """
        self._unbroken = 0 if holds_blank_line(data) else self._unbroken + len(data)
        if self._unbroken > MAX_EVENT_BYTES + _EVENT_SLACK_BYTES:
            return f"an event is longer than {MAX_EVENT_BYTES} bytes"
        return self.too_long

    def give_up(self, error: str, detail: str) -> None:
        """End as a failure whose answer is of no further use: only its beginning is kept."""
        self.error, self.detail = error, detail
        del self.reads[_READS_KEPT:]
        del self.stamps[_READS_KEPT:]


def may_send_again(exchange: RawExchange) -> bool:
    """Whether a connection that was lost only now had been kept from before, and was being closed already."""
    kept = exchange.connect_ms is None and not exchange.resent
    return kept and not exchange.reads and now_ns() - exchange.sent_ns < CLOSING_NS


def holds_blank_line(data: bytes) -> bool:
    """Whether a blank line ends an event in these bytes, whatever the line ends."""
    return data.find(b"\n\n") >= 0 or data.find(b"\n\r\n") >= 0 or data.find(b"\r\r") >= 0


class Channel(Protocol):
    """One connection's worth of requests, one after another."""

    @property
    def ready(self) -> bool:
        """Connected and idle: the next request is written at once."""
        ...

    def start(self, body: bytes, done: Callable[[RawExchange], None]) -> RawExchange:
        """Send one request; `done` is called once, when it ended or failed. Returns the open exchange."""
        ...

    def check(self) -> None:
        """Now and then: end the exchange under way if what came breaks HTTP's rules, instead of at its time-out."""
        ...

    def abort(self, error: str, detail: str) -> None:
        """End the exchange under way now, as `error`. The connection is given up."""
        ...


class Transport(Protocol):
    stamp_source: str
    """`kernel` or `user`: who stamps what arrives."""

    async def connect(self, count: int, limit_s: float) -> list[Channel]:
        """`count` channels, their connections open unless `limit_s` did not suffice: the request will tell."""
        ...

    def channel(self) -> Channel:
        """One more channel, which connects when it is first used."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


END_MARK = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
END_GRACE_S = 0.01
"""Time between the end mark and HTTP's own end before the connection is given up."""
CLOSING_NS = NS_PER_S
"""A kept connection that ends so soon after a request, before any answer, was being closed while it was written
(llama.cpp's server closes after an answer and does not say so): the request is sent again, once, on a new one."""
OPEN_LIMIT_S = 10.0
"""Longest time for opening connections before they are needed."""
MAX_ANSWER_BYTES = 48 * 1024 * 1024
"""More than 150,000 tokens with an event each."""
MAX_EVENT_BYTES = 4 * 1024 * 1024
"""An event longer than this is no token stream any more: `malformed`."""
_EVENT_SLACK_BYTES = 64 * 1024
MAX_ERROR_BYTES = 256 * 1024
"""An answer with an error status is read up to here."""
_READS_KEPT = 8
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
    _piece_raw_ends: Offsets | None = None
    """Raw offsets at which the pieces end, where bytes within a piece have no place of their own (compression)."""

    def reads_of(self, ends: Offsets) -> Offsets:
        """For body offsets just after some bytes: the index of the read that brought the last of them."""
        if len(ends) == 0:
            return ends
        pieces = np.searchsorted(self._piece_ends, ends, side="left")
        if self._piece_raw_ends is not None:
            return np.searchsorted(self._read_ends, self._piece_raw_ends[pieces], side="left").astype(np.int64)
        return np.searchsorted(self._read_ends, ends + self._shifts[pieces], side="left").astype(np.int64)


def cut_body(exchange: RawExchange) -> Body:
    """Unframe (and unpack) what was read. Never raises: a body that breaks HTTP's rules is cut as far as it goes."""
    body = _unframed(exchange)
    coding = exchange.headers.get("content-encoding", "").strip().lower()
    return body if coding in ("", "identity") or not body.data else _unpacked(body, coding)


def _unpacked(body: Body, coding: str) -> Body:
    """A body that the server compressed although nobody asked for it: times are those of the compressed pieces."""
    if coding not in ("gzip", "x-gzip", "deflate"):
        return replace(
            body, data=b"", broken=f"the answer is compressed ({visible(coding)[:40]}), which was not asked for"
        )
    cuts = body._piece_ends
    if len(cuts) == 1:  # no chunks: what each read brought is a piece
        cuts = np.unique(np.clip(body._read_ends - body._shifts[0], 0, len(body.data)))
    raw_ends = cuts + body._shifts[np.searchsorted(body._piece_ends, cuts, side="left")]
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # tells gzip and zlib apart by itself
    parts: list[bytes] = []
    left = MAX_ANSWER_BYTES
    broken = body.broken
    try:
        for start, end in zip([0, *cuts.tolist()], cuts.tolist(), strict=False):
            parts.append(unpack.decompress(body.data[start:end], left))
            left -= len(parts[-1])
            if left <= 0:
                raise zlib.error("it unpacks to more than any real answer")
    except zlib.error as problem:
        broken = f"the compressed answer cannot be unpacked: {problem}"
    ends = np.cumsum(np.array([len(part) for part in parts], np.int64))
    return Body(b"".join(parts), body.complete, broken, ends, np.zeros(len(ends), np.int64), body._read_ends, raw_ends)


def _unframed(exchange: RawExchange) -> Body:
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
    walk = exchange.chunks  # as far as it came while the answer did
    if walk is None or exchange.error == "malformed":
        walk = ChunkWalk(head.body_start)
    try:
        walk.left_over = b""
        walk.feed(raw[walk.offset :])
    except MalformedResponse as problem:
        broken = str(problem)
    walk.take_partial()
    starts, sizes = np.frombuffer(walk.starts, np.int64), np.frombuffer(walk.sizes, np.int64)
    data = b"".join([raw[at : at + size] for at, size in zip(walk.starts, walk.sizes, strict=True)])
    ends = np.cumsum(sizes)
    whole = walk.done and not walk.left_over
    if walk.done and walk.left_over:
        broken = "bytes came after the end of the answer"
    return Body(data, whole, broken, ends, starts + sizes - ends, read_ends)


def _one_piece(start: int, size: int) -> tuple[Offsets, Offsets]:
    return np.array([size], np.int64), np.array([start], np.int64)

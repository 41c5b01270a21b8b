"""Plain HTTP/1.1 on sockets of our own: writing a request, and keeping what comes back with its times.

The read callback does three things only: `recvmsg`, keep the bytes, keep the stamp. Everything else waits
until the stream has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

from qwenbench.load.clock import NS_PER_MS, now_ns
from qwenbench.load.exchange import END_GRACE_S, END_MARK, OPEN_LIMIT_S, Channel, RawExchange, may_send_again
from qwenbench.load.http1 import HEAD_END, ChunkWalk, MalformedResponse, parse_head, request_head
from qwenbench.load.spec import Address
from qwenbench.load.tcp import CONTROL_BYTES, Wiring, kernel_stamps_work, still_open

_READ_BYTES = 65536
_LARGE_READ = 4096
_OPEN_ENDS_KNOWN = 3
_OPEN_ENDS_CHECKED = 32
"""Once a server is known to leave connections open, one of so many is waited for again."""
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_timespec = struct.Struct("qq").unpack

Done = Callable[[RawExchange], None]


class SocketChannel:
    """One kept-alive connection that carries one exchange at a time."""

    __slots__ = (
        "_connecting",
        "_done",
        "_exchange",
        "_grace",
        "_left",
        "_loop",
        "_request",
        "_sock",
        "_unsent",
        "_walked",
        "_wiring",
    )

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._loop = wiring.loop
        self._sock: socket.socket | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._exchange: RawExchange | None = None
        self._done: Done | None = None
        self._unsent: memoryview | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._left = -1
        """Bytes of a content-length body that are still to come; -1 for other bodies."""
        self._walked = 0
        self._request = b""

    @property
    def ready(self) -> bool:
        """Connected and idle."""
        return self._sock is not None and self._exchange is None

    def start(self, body: bytes, done: Done) -> RawExchange:
        """Send one request. An idle connection is used at once, else one is opened first."""
        assert self._exchange is None, "a channel carries one exchange at a time"
        exchange = self._exchange = RawExchange()
        self._done = done
        self._request = self._wiring.head + b"%d\r\n\r\n" % len(body) + body
        if self._sock is not None and not still_open(self._sock):
            self._drop()
        if self._sock is not None:
            self._send_first(exchange)
        else:
            exchange.sent_ns = now_ns()
            self._connecting = self._loop.create_task(self._connect_and_send(exchange))
        return exchange

    def check(self) -> None:
        """Walk over the chunks that came, which reading them did not; decoding goes on from there."""
        exchange = self._exchange
        if exchange is not None and exchange.chunks is not None and self._walked < len(exchange.reads):
            self._walk(exchange, exchange.chunks)

    def abort(self, error: str, detail: str) -> None:
        """End the exchange under way as `error`; no effect when there is none."""
        if self._exchange is not None:
            self._fail(error, detail)

    async def open(self) -> None:
        """Connect now, for later. A failure is left for the request to meet."""
        with contextlib.suppress(OSError):
            await self._connect()

    def close(self) -> None:
        """Close the connection; an exchange under way must have been aborted before."""
        if self._connecting is not None:
            self._connecting.cancel()
        self._drop()

    # connecting

    async def _connect(self) -> None:
        self._sock = sock = await self._wiring.connect()
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def _connect_and_send(self, exchange: RawExchange) -> None:
        began = now_ns()
        try:
            await self._connect()
        except OSError as problem:
            if self._exchange is exchange:
                self._fail("refused", f"no connection to the server: {problem.strerror or problem}")
            return
        finally:
            if self._connecting is asyncio.current_task():
                self._connecting = None
        if self._exchange is exchange:
            exchange.connect_ms = (exchange.connect_ms or 0.0) + (now_ns() - began) / NS_PER_MS
            self._send_first(exchange)

    def _drop(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            if self._unsent is not None:
                self._loop.remove_writer(sock.fileno())
                self._unsent = None
            sock.close()

    # sending

    def _send_first(self, exchange: RawExchange) -> None:
        sock = self._sock
        assert sock is not None
        request = self._request
        self._left, self._walked = -1, 0
        exchange.sent_ns = now_ns()
        try:
            written = sock.send(request)
        except BlockingIOError:
            written = 0
        except OSError as problem:
            if exchange.resent:
                self._fail("reset", f"the connection broke before the request was written: {problem.strerror}")
            else:
                self._send_again(exchange)
            return
        if written < len(request):
            self._unsent = memoryview(request)[written:]
            self._loop.add_writer(sock.fileno(), self._on_writable)

    def _send_again(self, exchange: RawExchange) -> None:
        self._drop()
        exchange.resent = True
        self._connecting = self._loop.create_task(self._connect_and_send(exchange))

    def _on_writable(self) -> None:
        sock, unsent = self._sock, self._unsent
        if sock is None or unsent is None:
            return
        try:
            rest = unsent[sock.send(unsent) :]
        except BlockingIOError:
            return
        except OSError:
            rest = unsent[:0]  # the server may have answered before it stopped reading: the reader will see
        if not rest:
            self._loop.remove_writer(sock.fileno())
            self._unsent = None
        else:
            self._unsent = rest

    # receiving

    def _on_readable(self) -> None:
        sock, exchange = self._sock, self._exchange
        if sock is None:
            return
        try:
            data, control, _, _ = sock.recvmsg(_READ_BYTES, CONTROL_BYTES)
        except BlockingIOError:
            return
        except OSError as problem:
            self._on_end(problem.strerror or "connection error")
            return
        if not data or exchange is None:
            self._on_end("closed by the server")
            return
        if control:
            seconds, nanos = _timespec(control[0][2])
            exchange.stamps.append(seconds * 1_000_000_000 + nanos)
        else:
            exchange.stamps.append(now_ns())
        exchange.reads.append(data)
        wiring = self._wiring
        if wiring.rest_s and not wiring.resting:
            wiring.resting = True
            self._loop.call_soon(wiring.rest)
        if exchange.chunks is not None:
            if data.endswith(HEAD_END) or len(data) < 8:
                self._maybe_over(exchange, exchange.chunks, data)
        elif exchange.head is None:
            self._on_head(exchange)
        elif self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._finish(exchange, clean=self._left == 0)
        if b"[DONE]" in data and self._exchange is exchange:
            self._on_end_mark(exchange, data)
        if len(data) > _LARGE_READ and self._exchange is exchange:
            self._on_large_read(exchange, data)

    def _on_head(self, exchange: RawExchange) -> None:
        raw = b"".join(exchange.reads)
        try:
            head = exchange.head = parse_head(raw)
        except MalformedResponse as problem:
            self._fail("malformed", str(problem))
            return
        if head is None:
            return
        exchange.status, exchange.headers = head.status, head.headers
        if head.chunked:
            walk = exchange.chunks = ChunkWalk(head.body_start)
            if len(raw) > head.body_start:
                self._walk(exchange, walk)
        elif head.length is not None:
            self._left = head.body_start + head.length - len(raw)
            if self._left <= 0:
                self._finish(exchange, clean=self._left == 0)

    def _maybe_over(self, exchange: RawExchange, walk: ChunkWalk, data: bytes) -> None:
        """Look whether `data`, the latest read of a chunked body, was its last.

        The ordinary last chunk is recognised by its bytes, which no event holds (decoding checks it again);
        anything else that may be an end is walked over chunk by chunk.
        """
        reads = exchange.reads
        if data.endswith(_LAST_CHUNK) or (data == b"0\r\n\r\n" and reads[-2].endswith(b"\r\n")):
            self._finish(exchange, clean=True)
        else:
            self._walk(exchange, walk)

    def _walk(self, exchange: RawExchange, walk: ChunkWalk) -> None:
        assert exchange.head is not None
        if self._walked == 0:
            fresh = b"".join(exchange.reads)[exchange.head.body_start :]
        else:
            fresh = b"".join(exchange.reads[self._walked :])
        self._walked = len(exchange.reads)
        try:
            walk.feed(fresh)
        except MalformedResponse as problem:
            self._fail("malformed", str(problem))
            return
        if walk.done:
            self._finish(exchange, clean=not walk.left_over)

    def _on_end_mark(self, exchange: RawExchange, data: bytes) -> None:
        """`data: [DONE]` ends a stream: HTTP's own end may take a moment more, which keeps the connection usable.

        A server that leaves its connections open instead costs that moment a few times, then none.
        """
        if self._grace is not None or exchange.status != 200 or END_MARK.search(data) is None:
            return
        open_ends = self._wiring.open_ends
        if open_ends >= _OPEN_ENDS_KNOWN and open_ends % _OPEN_ENDS_CHECKED:
            self._wiring.open_ends += 1
            self._finish(exchange, clean=False)
        else:
            self._grace = self._loop.call_later(END_GRACE_S, self._after_end_mark, exchange)

    def _after_end_mark(self, exchange: RawExchange) -> None:
        self._grace = None
        if self._exchange is exchange:
            self._wiring.open_ends += 1
            self._finish(exchange, clean=False)

    def _on_large_read(self, exchange: RawExchange, data: bytes) -> None:
        if exchange.is_long_error:
            self._finish(exchange, clean=False)
        elif (problem := exchange.excess(data)) is not None:
            exchange.give_up("malformed", problem)
            self._fail("malformed", problem)

    def _on_end(self, why: str) -> None:
        exchange = self._exchange
        if exchange is None:
            self._drop()
            return
        head = exchange.head
        if head is not None and not head.chunked and head.length is None and why == "closed by the server":
            self._finish(exchange, clean=False)
        elif exchange.chunks is not None and self._ends_here(exchange, exchange.chunks):
            return
        elif may_send_again(exchange):
            self._send_again(exchange)
        else:
            where = "before it answered" if not exchange.reads else "in mid-stream"
            self._fail("reset", f"connection lost {where}: {why}")

    def _ends_here(self, exchange: RawExchange, walk: ChunkWalk) -> bool:
        """Look once more at bytes that did not look like an end; True when the exchange is settled."""
        self._walk(exchange, walk)
        return self._exchange is not exchange

    # ending

    def _fail(self, error: str, detail: str) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.error, exchange.detail = error, detail
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self._drop()
        self._hand_back(exchange)

    def _finish(self, exchange: RawExchange, *, clean: bool) -> None:
        if clean:
            self._wiring.open_ends = 0
        keep = clean and exchange.head is not None and exchange.head.keep_alive and self._unsent is None
        if not keep:
            self._drop()  # the next request connects again, which its connect_ms tells
        self._hand_back(exchange)

    def _hand_back(self, exchange: RawExchange) -> None:
        exchange.ended_ns = exchange.stamps[-1] if exchange.error is None else now_ns()
        done, self._done, self._exchange = self._done, None, None
        self._request = b""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        assert done is not None
        done(exchange)


_REST_S = 0.0005


class SocketTransport:
    """Channels to one plain-HTTP server. Made inside the event loop that will use it."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self.stamp_source = "kernel" if wiring.kernel_stamps else "user"
        self._channels: list[SocketChannel] = []

    @classmethod
    async def create(cls, address: Address, headers: Mapping[str, str]) -> SocketTransport:
        """Look the host up once. Raises OSError when it is not known, ValueError for a bad header."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        places: list[tuple[int, Any]] = [(int(family), where) for family, _, _, _, where in found]
        head = request_head(address.host_header, address.path, headers)
        return cls(Wiring(loop, places, head, kernel_stamps_work()))

    def rest_between_reads(self) -> None:
        """Sleep 0.5 ms after each round of reads: for many streams in a closed loop.

        Sockets that become ready one by one would wake the process for each; this took a fifth off the CPU
        time per token at 200 streams. What arrives meanwhile is stamped by the kernel, so without its stamps
        this does nothing; a next request may leave up to 0.5 ms later.
        """
        if self._wiring.kernel_stamps:
            self._wiring.rest_s = _REST_S

    async def connect(self, count: int, limit_s: float) -> list[Channel]:
        """Open `count` connections, at most 64 at a time so that no listen queue overflows, within `limit_s`."""
        channels = [self.channel() for _ in range(count)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(limit_s, OPEN_LIMIT_S)):
                for at in range(0, count, 64):
                    await asyncio.gather(*(channel.open() for channel in channels[at : at + 64]))
        return list(channels)

    def channel(self) -> SocketChannel:
        """A channel that connects at its first request."""
        channel = SocketChannel(self._wiring)
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()

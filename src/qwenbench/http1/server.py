"""A server's connections: requests in, answers out in turn, and limits that hold whatever the clients do.

A handler is called with each request and its connection. It answers at once (`respond`), or it sets `exchange` and
answers later with `write`s and `finish`; the exchange is told when the client goes or reads too slowly.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol, cast

from qwenbench.http1.reading import CONTINUE, HttpError, HttpRequest, Limits, RequestReader, error_body, response_head

BACKLOG = 2048
SWEEP_S = 1.0
"""Connections are looked at for time limits this often."""
_DRAIN_STEP_S = 0.02


class Exchange(Protocol):
    """Whoever answers a request later."""

    def client_left(self) -> None:
        """The client's connection is gone."""

    def pause(self) -> None:
        """The client reads more slowly than the answer comes."""

    def resume(self) -> None:
        """It caught up."""


Handler = Callable[[HttpRequest, "HttpConnection"], None]


class HttpServer:
    """Accepts connections and keeps all of them within `limits` together."""

    def __init__(self, handler: Handler, *, limits: Limits | None = None, server_name: str | None = None) -> None:
        """`server_name`: for the Server header of answers that are this server's own."""
        self.handler = handler
        self.limits = limits or Limits()
        self.own_lines = b"server: %b\r\n" % server_name.encode() if server_name else b""
        self.connections: set[HttpConnection] = set()
        self.held_bytes = 0
        """Heads and bodies that all connections hold now."""
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, host: str | None = None, port: int = 0, *, sock: socket.socket | None = None) -> int:
        """Listens at an address, or on a socket that is bound already; gives the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        where = {"sock": sock} if sock is not None else {"host": host, "port": port}
        self._server = await loop.create_server(lambda: HttpConnection(self), backlog=BACKLOG, **where)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, grace_s: float = 0.0) -> None:
        """Listens no more; answers under way get `grace_s` seconds, then every connection is broken."""
        if self._server is not None:
            self._server.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + grace_s
        while True:
            for connection in list(self.connections):
                connection.close_when_idle()
            if not self.connections or loop.time() >= end:
                break
            await asyncio.sleep(_DRAIN_STEP_S)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.check_time(now)
        self._sweeper = loop.call_later(SWEEP_S, self._sweep)


class HttpConnection(asyncio.Protocol):
    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._reader = RequestReader(server.limits)
        self._broken: HttpError | None = None
        """What to answer after the requests that were whole before it; nothing is read any more."""
        self._held = 0
        self._since = 0.0
        """Loop time at which the present state began: a request's first byte, or the end of the one before."""
        self._reading_paused = False
        self._writing_paused = False
        self._unsent = (0, 0.0)
        """Bytes that the client has not taken, and the loop time since when they are as many."""
        self._request: HttpRequest | None = None
        self._status = 200
        self._on_end: Callable[[int], None] | None = None
        self.peer = "-"
        self.exchange: Exchange | None = None
        """Set by the handler while it answers later."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name
        self._transport = cast("asyncio.Transport", transport)
        # without this, Nagle's algorithm holds a token back until the client's delayed ACK, 40 ms later
        wire = transport.get_extra_info("socket")
        if wire is not None and wire.family in (socket.AF_INET, socket.AF_INET6):
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = f"{name[0]}:{name[1]}"
        self._since = asyncio.get_running_loop().time()
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self._server.held_bytes -= self._held
        self._held = 0
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_left()

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self.exchange is not None:
            self.exchange.resume()
        elif self._request is None:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if self._broken is not None:
            return
        began = reader.begun
        try:
            reader.feed(data)
        except HttpError as error:
            self._broken = error
        self._count()
        if self._broken is None and self._server.held_bytes > self._server.limits.held_bytes:
            self._broken = HttpError("the server holds too many unfinished requests", 503)
        if reader.begun and (not began or reader.ready):
            self._since = asyncio.get_running_loop().time()
        if self._request is None:
            self._next()
        if self._backlogged and self._transport is not None and not self._reading_paused:
            self._transport.pause_reading()
            self._reading_paused = True

    # --- requests ---

    @property
    def busy(self) -> bool:
        return self._request is not None

    @property
    def http11(self) -> bool:
        """Whether the client understands chunked answers."""
        return self._request is None or self._request.http11

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow on this connection."""
        return self._request is not None and self._request.keep_alive

    def _next(self) -> None:
        reader = self._reader
        if self._writing_paused:
            return  # whoever does not take its answers gets no more of them
        if reader.ready:
            self._request = request = reader.ready.popleft()
            self._count()
            self._server.handler(request, self)
        elif self._broken is not None:
            self.refuse(self._broken.status, str(self._broken))
        elif reader.expects_continue:
            reader.expects_continue = False
            self.write(CONTINUE)

    @property
    def _backlogged(self) -> bool:
        """Whether more requests are there than are read ahead."""
        if self._request is None and not self._reader.ready:
            return False
        ahead = self._held - (self._request.size if self._request is not None else 0)
        return ahead > self._server.limits.pipelined_bytes

    def _count(self) -> None:
        """Brings the bytes that this connection holds up to date, here and in the server's sum."""
        held = self._reader.pending_bytes + sum(request.size for request in self._reader.ready)
        if self._request is not None:
            held += self._request.size
        self._server.held_bytes += held - self._held
        self._held = held

    def check_time(self, now: float) -> None:
        """Answers 408 to a request that does not get whole, closes a connection that is not used, breaks one whose
        client takes nothing of its answer."""
        limits, reader = self._server.limits, self._reader
        unsent = self._transport.get_write_buffer_size() if self._transport is not None else 0
        if unsent != self._unsent[0]:
            self._unsent = (unsent, now)
        elif unsent and now - self._unsent[1] > limits.stall_s and self._transport is not None:
            self._transport.abort()
            return
        if self._request is not None or self._broken is not None:
            return
        waited = now - self._since
        if not reader.begun:
            if waited > limits.idle_s and self._transport is not None:
                self._transport.close()
        elif waited > (limits.body_s if reader.in_body else limits.head_s):
            self._broken = HttpError("the request did not become whole in time", 408)
            self._next()

    # --- answers ---

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def head(self, status: int, lines: bytes) -> bytes:
        """The head of an answer of this server's own, not written yet. `lines`: header lines with their ends."""
        self._status = status
        return response_head(status, self._server.own_lines + lines, close=not self.keeps_alive)

    def respond(
        self, status: int, body: bytes, content_type: bytes = b"application/json", *, lines: bytes = b""
    ) -> None:
        """A whole answer. `lines`: more header lines, each with its line end."""
        kind = b"content-type: %b\r\n" % content_type if body else b""
        shown = b"" if self._request is not None and self._request.method == "HEAD" else body
        self.write(self.head(status, b"content-length: %d\r\n%b%b" % (len(body), kind, lines)) + shown)
        self.finish()

    def refuse(self, status: int, text: str, kind: str = "BadRequestError") -> None:
        """An error in the API's form; the connection is closed where the request itself could not be read."""
        self.respond(status, error_body(status, text, kind))

    def when_done(self, callback: Callable[[int], None]) -> None:
        """Calls back with the status when the answer to the present request has been written."""
        self._on_end = callback

    def finish(self, *, reusable: bool = True) -> None:
        """The answer is complete. Not `reusable`: only the connection's end shows where it ends."""
        keeps_alive = self.keeps_alive
        self._request, self.exchange = None, None
        callback, self._on_end = self._on_end, None
        if callback is not None:
            callback(self._status)
        self._count()
        if self._transport is None:
            return
        if not reusable or not keeps_alive:
            self._broken = self._broken or HttpError("closed")
            self._transport.close()
            return
        self._since = asyncio.get_running_loop().time()
        self._go_on()

    def _go_on(self) -> None:
        """Reads again, and turns to the next request that is there, unless the client does not take its answers."""
        if self._transport is None or self._writing_paused:
            return
        if self._reading_paused and not self._backlogged:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._reader.ready or self._broken is not None or self._reader.expects_continue:
            # not at once: a thousand pipelined requests would nest a thousand calls
            asyncio.get_running_loop().call_soon(self._again)

    def _again(self) -> None:
        if self._request is None and self._transport is not None and not self._transport.is_closing():
            self._next()

    def abort(self) -> None:
        """Breaks the connection, so that an answer that is not whole cannot pass for one."""
        self.exchange = None
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Closes the connection unless it is answering."""
        if self._request is None and self._transport is not None:
            self._transport.close()

"""A small HTTP/1.1 server protocol, made for many streams of small chunks.

Each connection writes with one call per engine step; requests on one connection are answered in turn.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Protocol

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as it came."""

    method: str
    path: str
    """Without its query."""
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes


class Reply(Protocol):
    """Whoever produces an answer over time, and is told when nobody waits for it any more."""

    def disconnected(self) -> None:
        """The client has gone."""


class _BadRequest(Exception):
    pass


class HttpConnection(asyncio.Protocol):
    """One client connection. The handler answers with `respond`, or with `start_stream` and `end_stream`."""

    def __init__(self, handler: Callable[[HttpRequest, HttpConnection], None]) -> None:
        self._handler = handler
        self._buffer = bytearray()
        self._busy = False
        self._close_after = False
        self._reply: Reply | None = None
        self._on_end: Callable[[int], None] | None = None
        self._status = 200
        self.transport: asyncio.Transport | None = None
        self.peer = "-"

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # without this, Nagle's algorithm holds a token back until the client's delayed ACK, 40 ms later
        wire = transport.get_extra_info("socket")
        if wire is not None:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.peer = f"{name[0]}:{name[1]}"

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        reply, self._reply = self._reply, None
        if reply is not None:
            reply.disconnected()

    # --- answers ---

    def respond(self, status: int, body: bytes, content_type: str = "application/json", extra: str = "") -> None:
        """A whole answer. `extra`: more header lines, each with its line end."""
        self._status = status
        kind = f"content-type: {content_type}\r\n" if body else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ndate: {formatdate(usegmt=True)}\r\n"
            f"server: qwenbench-simulator\r\ncontent-length: {len(body)}\r\n{kind}{extra}"
            f"{'connection: close' + chr(13) + chr(10) if self._close_after else ''}\r\n"
        )
        self.write(head.encode("latin-1") + body)
        self._done()

    def stream_head(self) -> bytes:
        """The head of an event stream, to be written together with its first chunks."""
        close = "connection: close\r\n" if self._close_after else ""
        return (
            f"HTTP/1.1 200 OK\r\ndate: {formatdate(usegmt=True)}\r\nserver: qwenbench-simulator\r\n"
            f"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n{close}\r\n"
        ).encode("latin-1")

    def write(self, data: bytes) -> None:
        """Bytes as they are; nothing happens when the client has gone."""
        if self.transport is not None:
            self.transport.write(data)

    def end_stream(self) -> None:
        """The stream's last chunk has been written (its terminator included)."""
        self._status = 200
        self._done()

    def wait_for(self, reply: Reply) -> None:
        """The answer comes later; `reply` is told when the client goes away before."""
        self._reply = reply

    def when_done(self, callback: Callable[[int], None]) -> None:
        """Calls back with the status when the answer to the present request has been written."""
        self._on_end = callback

    def close(self) -> None:
        """Closes the connection when all has been written."""
        if self.transport is not None:
            self.transport.close()

    # --- requests ---

    def _done(self) -> None:
        self._reply = None
        self._busy = False
        callback, self._on_end = self._on_end, None
        if callback is not None:
            callback(self._status)
        if self._close_after:
            self.close()
        elif self._buffer:
            asyncio.get_running_loop().call_soon(self._next_request)

    def _next_request(self) -> None:
        if self._busy or self.transport is None:
            return
        try:
            request = self._parse()
        except _BadRequest as error:
            self._buffer.clear()
            self._close_after = True
            self._busy = True
            self.respond(400, str(error).encode(), "text/plain; charset=utf-8")
            return
        if request is not None:
            self._busy = True
            self._handler(request, self)

    def _parse(self) -> HttpRequest | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEADER_BYTES:
                raise _BadRequest("Invalid HTTP request received.")
            return None
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        first = lines[0].split(" ")
        if len(first) != 3 or not first[2].startswith("HTTP/1."):
            raise _BadRequest("Invalid HTTP request received.")
        headers = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon:
                raise _BadRequest("Invalid HTTP request received.")
            headers[name.strip().lower()] = value.strip()
        body = self._body(headers, end + 4)
        if body is None:
            return None
        connection = headers.get("connection", "").lower()
        self._close_after = "close" in connection or (first[2] == "HTTP/1.0" and "keep-alive" not in connection)
        return HttpRequest(first[0], first[1].partition("?")[0], headers, body)

    def _body(self, headers: Mapping[str, str], start: int) -> bytes | None:
        """The whole body, taken out of the buffer with its head; None while it is not complete."""
        if headers.get("expect", "").lower() == "100-continue" and len(self._buffer) == start:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._chunked_body(start)
        try:
            length = int(headers.get("content-length", "0"))
        except ValueError:
            raise _BadRequest("Invalid HTTP request received.") from None
        if not 0 <= length <= MAX_BODY_BYTES:
            raise _BadRequest("Invalid HTTP request received.")
        if len(self._buffer) < start + length:
            return None
        body = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return body

    def _chunked_body(self, start: int) -> bytes | None:
        body = bytearray()
        at = start
        while True:
            line_end = self._buffer.find(b"\r\n", at)
            if line_end < 0:
                return None
            try:
                size = int(bytes(self._buffer[at:line_end]).partition(b";")[0], 16)
            except ValueError:
                raise _BadRequest("Invalid HTTP request received.") from None
            if not 0 <= size <= MAX_BODY_BYTES - len(body):
                raise _BadRequest("Invalid HTTP request received.")
            at = line_end + 2
            if len(self._buffer) < at + size + 2:
                return None
            body += self._buffer[at : at + size]
            at += size + 2
            if size == 0:
                del self._buffer[:at]
                return bytes(body)

"""A client's connection to the proxy: requests in, answers out, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol, cast

import orjson

from qwenbench.proxy.wire import (
    HEAD_END,
    MAX_HEAD_BYTES,
    BodyReader,
    RequestHead,
    WireError,
    header,
    parse_request_head,
)

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Largest request body; above it 413."""
_PIPELINED_BYTES = 256 * 1024
"""So much of a following request is read while one is answered."""


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request."""

    head: RequestHead
    body: bytes


class Exchange(Protocol):
    """Whoever answers a request that is not answered at once."""

    def client_left(self) -> None:
        """The client's connection is gone."""

    def pause(self) -> None:
        """The client reads more slowly than the answer comes."""

    def resume(self) -> None:
        """It caught up."""


class ClientConnection(asyncio.Protocol):
    """Reads requests and hands each to `handle`, which answers by `respond`, or by `write`s and `finish`."""

    def __init__(self, handle: Callable[[Request, ClientConnection], None], open_ones: set[ClientConnection]) -> None:
        self._handle = handle
        self._open_ones = open_ones
        self._transport: asyncio.Transport | None = None
        self._held = b""
        self._head: RequestHead | None = None
        self._reader: BodyReader | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._paused_reading = False
        self.busy = False
        """A request is being answered."""
        self.exchange: Exchange | None = None
        """Set by the handler while it answers; told about the client."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name
        self._transport = cast("asyncio.Transport", transport)
        self._open_ones.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._open_ones.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_left()

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.pause()

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.resume()

    def data_received(self, data: bytes) -> None:
        if self.busy:
            self._held += data
            if len(self._held) > _PIPELINED_BYTES and self._transport is not None:
                self._transport.pause_reading()
                self._paused_reading = True
            return
        try:
            self._advance(data)
        except WireError as error:
            self.refuse(error.status, str(error))

    # --- requests ---

    def _advance(self, data: bytes) -> None:
        if self._reader is None:
            data = self._held + data if self._held else data
            end = data.find(HEAD_END)
            if end < 0:
                if len(data) > MAX_HEAD_BYTES:
                    raise WireError("the request's head is too long", 431)
                self._held = data.lstrip(b"\r\n")  # empty lines before a request are to be passed over
                return
            self._held = b""
            self._head = parse_request_head(data[:end].lstrip(b"\r\n"))
            length = self._head.length
            if length is not None and length > MAX_BODY_BYTES:
                raise WireError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", 413)
            self._reader = BodyReader(length, chunked=length is None)
            data = data[end + len(HEAD_END) :]
            waits = (header(self._head.headers, b"expect") or b"").lower() == b"100-continue"
            if waits and not data and not self._reader.done:
                self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if data and not self._reader.done:
            part = self._reader.feed(data)
            self._body.append(part)
            self._body_bytes += len(part)
            if self._body_bytes > MAX_BODY_BYTES:
                raise WireError(f"the body is larger than {MAX_BODY_BYTES >> 20} MiB", 413)
        elif data:
            self._reader.feed(data)
        if self._reader.done:
            self._complete()

    def _complete(self) -> None:
        assert self._head is not None and self._reader is not None
        request = Request(self._head, b"".join(self._body))
        self._held = self._reader.rest
        self._reader = None
        self._body, self._body_bytes = [], 0
        self.busy = True
        self._handle(request, self)

    # --- answers ---

    @property
    def http11(self) -> bool:
        """Whether the client understands chunked answers."""
        return self._head is None or self._head.http11

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send more on this connection."""
        return self._head is not None and self._head.keep_alive

    def write(self, data: bytes) -> None:
        """Sends bytes; nothing happens when the client is gone."""
        if self._transport is not None:
            self._transport.write(data)

    def respond(self, status: int, body: bytes, content_type: bytes = b"application/json") -> None:
        """A whole answer."""
        connection = b"" if self.keeps_alive else b"connection: close\r\n"
        self.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n%b"
            % (status, HTTPStatus(status).phrase.encode(), content_type, len(body), connection, body)
        )
        self.finish(reusable=True)

    def refuse(self, status: int, text: str, kind: str = "BadRequestError") -> None:
        """An error in the API's form. Where the request itself could not be read the connection is closed, too."""
        if not self.busy:
            self._head = None
        error = {"error": {"message": text, "type": kind, "param": None, "code": status}}
        self.respond(status, orjson.dumps(error))

    def finish(self, *, reusable: bool) -> None:
        """The answer is complete. Not `reusable`: only the connection's end shows where it ends."""
        self.busy, self.exchange = False, None
        if self._transport is None:
            return
        if not reusable or not self.keeps_alive:
            self._transport.close()
            return
        if self._paused_reading:
            self._paused_reading = False
            self._transport.resume_reading()
        if self._held:
            held, self._held = self._held, b""
            # not at once: a thousand pipelined requests would nest a thousand calls
            asyncio.get_running_loop().call_soon(self._again, held)

    def _again(self, held: bytes) -> None:
        if self.busy or self._transport is None:
            self._held = held + self._held
        else:
            self.data_received(held)

    def abort(self) -> None:
        """Breaks the connection, so that an answer that is not whole cannot pass for one."""
        self.exchange = None
        if self._transport is not None:
            self._transport.abort()

    def close_when_idle(self) -> None:
        """Closes the connection unless it is answering."""
        if not self.busy and self._transport is not None:
            self._transport.close()

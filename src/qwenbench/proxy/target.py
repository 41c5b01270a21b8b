"""The proxy's connections to the target: opened when needed, kept for a while, one request at a time on each."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

from qwenbench.errors import UsageError

IDLE_S = 3.0
"""Idle connections are closed after this: vLLM's own HTTP server closes them after 5 s, and a request that meets
that close would be lost."""
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class TargetAddress:
    host: str
    port: int
    tls: bool
    prefix: bytes
    """Path in front of /v1."""

    @property
    def host_header(self) -> bytes:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return (name if self.port == (443 if self.tls else 80) else f"{name}:{self.port}").encode("latin-1")


def parse_target(url: str) -> TargetAddress:
    """Reads --target; a final /v1 may be given. Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError(f"--target {url!r}: cannot be read; give one like http://127.0.0.1:8000.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--target {url!r}: must begin with http:// or https:// and name a host.")
    if parts.username or parts.password:
        raise UsageError("--target: leave user and password out; clients send their own Authorization header.")
    tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1").encode("latin-1")
    return TargetAddress(parts.hostname, port or (443 if tls else 80), tls, prefix)


class AnswerSink(Protocol):
    """Whoever waits for a connection and reads an answer from it."""

    def connected(self, connection: TargetConnection) -> None:
        """A connection is there: send the request."""

    def not_connected(self, reason: str) -> None:
        """There will be none."""

    def feed(self, data: bytes) -> None:
        """Bytes of the answer."""

    def target_closed(self) -> None:
        """The target closed the connection."""


class TargetConnection(asyncio.Protocol):
    """One connection. While a sink holds it the sink gets every byte."""

    def __init__(self, lost: Callable[[TargetConnection], None]) -> None:
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self.sink: AnswerSink | None = None
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's in all but name
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.sink is not None:
            self.sink.feed(data)
        else:
            self.abort()  # bytes that nobody asked for: the connection is out of step

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost(self)
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.target_closed()

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Reads no more until `resume`: the kernel's window then holds the target back."""
        if self.open and self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.open and self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Breaks the connection; the target sees its client go and stops working for it."""
        self.sink = None
        if self._transport is not None:
            self._transport.abort()


class TargetPool:
    """Gives out connections to the target, the one that was used last first."""

    def __init__(self, address: TargetAddress) -> None:
        self.address = address
        self._idle: list[TargetConnection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._tls = ssl.create_default_context() if address.tls else None

    def lease(self, sink: AnswerSink) -> asyncio.Task[None] | None:
        """Calls sink.connected at once with an idle connection (gives None), or later (gives what can be cancelled)."""
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.open and now - connection.idle_since < IDLE_S:
                connection.sink = sink
                sink.connected(connection)
                return None
            connection.abort()
        task = asyncio.ensure_future(self._connect(sink))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return task

    async def _connect(self, sink: AnswerSink) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: TargetConnection(self._forget), self.address.host, self.address.port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            sink.not_connected(type(error).__name__)
            return
        connection.sink = sink
        sink.connected(connection)

    def give_back(self, connection: TargetConnection, *, reusable: bool) -> None:
        connection.sink = None
        if reusable and connection.open:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()

    def _forget(self, connection: TargetConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def close(self) -> None:
        """Closes what is idle and gives up what is being opened."""
        for task in self._connecting:
            task.cancel()
        while self._idle:
            self._idle.pop().abort()

"""A server that misbehaves as it is told, for the load generator's tests."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"

Behaviour = Callable[["Call"], Awaitable[None]]


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(text: str = "a", **parts: object) -> bytes:
    choice = {"index": 0, "delta": parts or {"content": text}, "finish_reason": None}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


def usage(tokens: int) -> bytes:
    count = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3}
    return b"data: " + orjson.dumps({"choices": [], "usage": count}) + b"\n\n"


def good(tokens: int = 2, text: str = "a") -> bytes:
    """A whole good answer."""
    parts = [token(text)] * tokens + [usage(tokens), DONE]
    return HEAD + b"".join(map(http_chunk, parts)) + LAST


class Call:
    """One request as the server sees it, numbered from 0 over the server's life."""

    def __init__(self, number: int, body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        self.number = number
        self.body = body
        self._writer = writer

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self._writer.wait_closed()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self._writer.transport.abort()

    async def stall(self) -> None:
        """Never go on (until the test ends)."""
        await asyncio.Event().wait()


class FaultyServer:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.bodies: list[dict[str, Any]] = []
        self.connections = 0
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: *(\d+)", head)
                raw = await reader.readexactly(int(found[1]) if found else 0)
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                body = orjson.loads(raw)
                self.bodies.append(body)
                await self.behaviour(Call(len(self.bodies) - 1, body, writer))
        writer.close()


@contextlib.asynccontextmanager
async def faulty_server(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultyServer]:
    faulty = FaultyServer(behaviour)
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await faulty.handle(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            running.discard(task)

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    faulty.port = server.sockets[0].getsockname()[1]
    try:
        yield faulty
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

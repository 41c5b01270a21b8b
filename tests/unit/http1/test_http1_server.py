"""The server's connections: however the bytes arrive, the same requests come out; limits hold for all of them."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbench.http1.reading import HttpRequest, Limits
from qwenbench.http1.server import HttpConnection, HttpServer


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.data += bytes(data)

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def talk(parts: list[bytes]) -> tuple[list[HttpRequest], Wire]:
    """Feeds the parts to a connection whose handler answers at once."""

    async def run() -> tuple[list[HttpRequest], Wire]:
        seen: list[HttpRequest] = []

        def handler(request: HttpRequest, connection: HttpConnection) -> None:
            seen.append(request)
            connection.respond(200, request.body)

        server = HttpServer(handler)
        wire, connection = Wire(), HttpConnection(server)
        connection.connection_made(wire)
        for part in parts:
            connection.data_received(part)
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        assert server.held_bytes == 0
        return seen, wire

    return asyncio.run(run())


MESSAGES = (
    b"POST /a?x=1 HTTP/1.1\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
    b"GET /b HTTP/1.1\r\n\r\n"
    b"POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;e=1\r\ndefg\r\n0\r\n\r\n"
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(MESSAGES)), max_size=8))
def test_cut_anywhere(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(MESSAGES)]
    seen, wire = talk([MESSAGES[a:b] for a, b in itertools.pairwise(edges)])
    assert [(item.method, item.path, item.body) for item in seen] == [
        ("POST", "/a", b"hello"),
        ("GET", "/b", b""),
        ("POST", "/c", b"abcdefg"),
    ]
    assert wire.data.count(b"HTTP/1.1 200 OK") == 3 and not wire.closed


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", b"400 Bad Request"),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400 Bad Request"),
        (b"GET /" + b"x" * 70_000, b"431 Request Header Fields Too Large"),
    ],
)
def test_bad_bytes_get_an_error_and_a_closed_connection(data: bytes, status: bytes) -> None:
    seen, wire = talk([data])
    assert not seen and wire.closed
    assert wire.data.startswith(b"HTTP/1.1 " + status) and b"connection: close" in wire.data


def test_a_whole_request_is_answered_before_the_error_that_follows_it() -> None:
    seen, wire = talk([b"GET /good HTTP/1.1\r\n\r\nnonsense\r\n\r\n"])
    assert [request.path for request in seen] == ["/good"] and wire.closed
    assert wire.data.index(b"200 OK") < wire.data.index(b"400 Bad Request")


def test_connection_close_is_kept() -> None:
    _, wire = talk([b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"])
    assert wire.closed and b"connection: close" in wire.data


def test_the_answer_to_head_has_its_length_and_no_body() -> None:
    _, wire = talk([b"HEAD / HTTP/1.1\r\ncontent-length: 2\r\n\r\nok"])
    assert b"content-length: 2\r\n" in wire.data and wire.data.endswith(b"\r\n\r\n")


def test_expect_continue_is_answered_before_the_body() -> None:
    head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    _, wire = talk([head, b"ok"])
    assert wire.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and wire.data.endswith(b"ok")
    _, wire = talk([b"GET / HTTP/1.1\r\n\r\n" + head, b"", b"", b"ok"])
    assert wire.data.index(b"200 OK") < wire.data.index(b"100 Continue") < wire.data.rindex(b"200 OK")


@asynccontextmanager
async def _serving(
    handler: Callable[[HttpRequest, HttpConnection], None], limits: Limits | None = None
) -> AsyncIterator[tuple[HttpServer, int]]:
    server = HttpServer(handler, limits=limits)
    try:
        yield server, await server.start("127.0.0.1", 0)
    finally:
        await server.close()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def _ok(_request: HttpRequest, connection: HttpConnection) -> None:
    connection.respond(200, b"")


async def test_tokens_are_not_held_back_by_nagles_algorithm() -> None:
    # The simulator binds a plain socket itself, for which asyncio does not turn the algorithm off.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        server = HttpServer(_ok)
        await server.start(sock=listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readline()
        (connection,) = server.connections
        assert connection._transport is not None
        accepted = connection._transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        await _close(writer)
        await server.close()


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\nX: ", b"G", b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n1234"], ids=len
)
async def test_a_request_that_does_not_get_whole_is_ended(sent: bytes) -> None:
    async with _serving(_ok, Limits(head_s=0.2, body_s=0.2)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(10):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        await _close(writer)


async def test_bytes_that_trickle_do_not_prolong_a_head() -> None:
    async with _serving(_ok, Limits(head_s=0.5)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answered = asyncio.create_task(reader.read())
        for byte in b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 100:
            writer.write(bytes([byte]))
            if answered in (await asyncio.wait({answered}, timeout=0.05))[0]:
                break
        assert (await answered).startswith(b"HTTP/1.1 408 ")
        await _close(writer)


async def test_an_idle_connection_is_closed_without_a_word() -> None:
    async with _serving(_ok, Limits(idle_s=0.1)) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(10):
            assert await reader.read() == b""
        await _close(writer)


async def test_a_client_that_takes_no_answers_gets_no_more_of_them_and_is_left() -> None:
    answered = 0
    came = asyncio.Event()

    def handler(_request: HttpRequest, connection: HttpConnection) -> None:
        nonlocal answered
        answered += 1
        came.set()
        connection.respond(200, bytes(100_000))

    async with _serving(handler, Limits(stall_s=0.3)) as (server, port), asyncio.timeout(20):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 5000)
        await came.wait()
        while server.connections:  # noqa: ASYNC110 - the server tells nobody that a connection has gone
            await asyncio.sleep(0)
        assert answered < 1000  # what the kernel's buffers hold
        await _close(writer)


async def test_all_connections_together_are_limited_and_what_they_held_is_given_back() -> None:
    async with _serving(_ok, Limits(held_bytes=1_000_000)) as (server, port):
        part = b"POST / HTTP/1.1\r\ncontent-length: 900000\r\n\r\n" + b"x" * 300_000
        clients = []
        for _ in range(5):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(part)
            await writer.drain()
            clients.append((reader, writer))
        async with asyncio.timeout(10):
            reads = [asyncio.ensure_future(reader.read(12)) for reader, _ in clients]
            refused, _ = await asyncio.wait(reads, timeout=0.5)
        assert 1 <= len(refused) < 5
        for reading in reads:
            reading.cancel()
        for _, writer in clients:
            writer.transport.abort()
            await _close(writer)
        async with asyncio.timeout(10):
            while server.connections:  # noqa: ASYNC110 - the server tells nobody that a connection has gone
                await asyncio.sleep(0)
        assert server.held_bytes == 0


async def test_a_client_that_leaves_is_told_to_the_exchange() -> None:
    left = asyncio.Event()

    class Waiting:
        def client_left(self) -> None:
            left.set()

        def pause(self) -> None:
            pass

        def resume(self) -> None:
            pass

    def handler(_request: HttpRequest, connection: HttpConnection) -> None:
        connection.exchange = Waiting()

    async with _serving(handler) as (_, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await writer.drain()
        await _close(writer)
        async with asyncio.timeout(10):
            await left.wait()

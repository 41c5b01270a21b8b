"""The HTTP protocol: however the bytes arrive, the same requests come out."""

import asyncio
import itertools
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbench.simulator.http1 import HttpConnection, HttpRequest


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""
        self.closed = False

    def write(self, data) -> None:
        self.data += bytes(data)

    def close(self) -> None:
        self.closed = True


def talk(parts: list[bytes]) -> tuple[list[HttpRequest], Wire]:
    """Feeds the parts to a connection whose handler answers at once."""

    async def run() -> tuple[list[HttpRequest], Wire]:
        seen: list[HttpRequest] = []

        def handler(request: HttpRequest, connection: HttpConnection) -> None:
            seen.append(request)
            connection.respond(200, request.body)

        wire, connection = Wire(), HttpConnection(handler)
        connection.connection_made(wire)
        for part in parts:
            connection.data_received(part)
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        return seen, wire

    return asyncio.run(run())


MESSAGES = (
    b"POST /a?x=1 HTTP/1.1\r\nContent-Length: 5\r\nX: y\r\n\r\nhello"
    b"GET /b HTTP/1.1\r\n\r\n"
    b"POST /c HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;e=1\r\ndefg\r\n0\r\n\r\n"
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(MESSAGES)), max_size=8))
def test_cut_anywhere(cuts: list[int]):
    edges = [0, *sorted(cuts), len(MESSAGES)]
    seen, wire = talk([MESSAGES[a:b] for a, b in itertools.pairwise(edges)])
    assert [(item.method, item.path, item.body) for item in seen] == [
        ("POST", "/a", b"hello"),
        ("GET", "/b", b""),
        ("POST", "/c", b"abcdefg"),
    ]
    assert wire.data.count(b"HTTP/1.1 200 OK") == 3 and not wire.closed


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
def test_bad_bytes_get_400_and_a_closed_connection(data: bytes):
    seen, wire = talk([data])
    assert not seen and wire.closed
    assert b"400 Bad Request" in wire.data or b"\r\n\r\n" not in data


def test_connection_close_is_kept():
    _, wire = talk([b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"])
    assert wire.closed and b"connection: close" in wire.data


def test_expect_continue_is_answered_before_the_body():
    _, wire = talk([b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n", b"ok"])
    assert wire.data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and wire.data.endswith(b"ok")


async def test_tokens_are_not_held_back_by_nagles_algorithm():
    made: list[HttpConnection] = []

    def connection() -> HttpConnection:
        made.append(HttpConnection(lambda _request, connection: connection.respond(200, b"")))
        return made[-1]

    # The server binds a plain socket itself, for which asyncio does not turn the algorithm off.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(connection, sock=listener)
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readline()
        assert made[0].transport is not None
        accepted = made[0].transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()
        server.close()

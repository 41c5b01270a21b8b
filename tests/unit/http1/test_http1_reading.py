"""HTTP framing: pieces of any size, and bytes that no server in front of another may pass on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.http1.reading import HttpError, HttpRequest, Limits, RequestReader, ResponseReader, passed_on

CHUNKED = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


def read(data: bytes, limits: Limits | None = None) -> list[HttpRequest]:
    """The whole requests of these bytes."""
    reader = RequestReader(limits or Limits())
    reader.feed(data)
    return list(reader.ready)


CUTS = st.lists(st.integers(0, 400), max_size=20)
PARTS = st.lists(st.binary(min_size=1, max_size=60), max_size=6)


@given(PARTS, CUTS, st.sampled_from([b"", b"x: y\r\n"]))
def test_chunked_request_however_it_is_cut(parts: list[bytes], cuts: list[int], trailer: bytes) -> None:
    framed = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
    reader = RequestReader(Limits())
    for piece in _cut(CHUNKED + framed + b"GET /next HTTP/1.1\r\n\r\n", cuts):
        reader.feed(piece)
    first, second = reader.ready
    assert first.body == b"".join(parts) and second.path == "/next"
    assert first.headers == ((b"transfer-encoding", b"chunked"),)  # a trailer is no header
    assert reader.pending_bytes == 0 and not reader.begun


@given(PARTS, CUTS, st.sampled_from([b"", b"x: y\r\n"]))
def test_chunked_answer_however_it_is_cut(parts: list[bytes], cuts: list[int], trailer: bytes) -> None:
    framed = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
    reader = ResponseReader()
    pieces = _cut(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + framed, cuts)
    assert b"".join(reader.feed(piece) for piece in pieces) == b"".join(parts)
    assert reader.done and not reader.surplus


@given(st.binary(max_size=300), CUTS, st.binary(max_size=9))
def test_answer_of_known_length_and_what_follows_it(body: bytes, cuts: list[int], rest: bytes) -> None:
    reader = ResponseReader()
    pieces = _cut(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body) + rest, cuts)
    assert b"".join(reader.feed(piece) for piece in pieces) == body
    assert reader.done
    assert reader.surplus == bool(rest.strip(b"\r\n"))  # empty lines may stand before the next message


def test_part_of_a_chunk_is_passed_on_at_once() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\n12345") == b"12345"
    assert not reader.closed()


def test_a_body_until_the_close_is_whole_when_it_closes() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") == b"abc"
    assert not reader.done
    assert reader.closed()


BROKEN_CHUNKS = [
    b"g\r\n",
    b"-1\r\n",
    b"1\r\nab\r\n",
    b"1" * 2000,
    b" \r\n",
    b"3;a\n=1\r\nabc\r\n0\r\n\r\n",
    b"3;a=1\nabc\r\n0\r\n\r\n",
    b'3;a="x\ny"\r\nabc\r\n0\r\n\r\n',
    b"3\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\n0\r\n\r\n",
]


@pytest.mark.parametrize("framed", BROKEN_CHUNKS)
def test_broken_chunks_and_bare_line_feeds_are_refused_both_ways(framed: bytes) -> None:
    with pytest.raises(HttpError):
        read(CHUNKED + framed)
    with pytest.raises(HttpError):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + framed)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET http://other/ HTTP/1.1\r\nHost: x", 400),
        (b"GET /\x01 HTTP/1.1", 400),
        (b"GET /a#b HTTP/1.1", 400),
        (b"GET /a\xff HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"CONNECT a:1 HTTP/1.1", 400),
        (b"CONNECT /a HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 400),
        (b"PRI * HTTP/2.0", 400),
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\nBad Name: x", 400),
        (b"GET / HTTP/1.1\r\nno colon", 400),
        (b"GET / HTTP/1.1\r\nX: a\nY: b", 400),
        (b"GET / HTTP/1.1\r\nX: a\r\n folded", 400),
        (b"GET / HTTP/1.1\r\nX: a\0b", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +3", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: many", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 501),
        (b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"0" * 5000 + b"2", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 20_000, 431),
    ],
)
def test_requests_that_two_readers_could_read_in_two_ways_are_refused(raw: bytes, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        read(raw + b"\r\n\r\n")
    assert caught.value.status == status


def test_a_head_that_never_ends_is_refused_piece_by_piece() -> None:
    reader = RequestReader(Limits(head_bytes=1000))
    reader.feed(b"GET / HTTP/1.1\r\nX: ")
    with pytest.raises(HttpError, match="too long"):
        for _ in range(200):
            reader.feed(b"aaaaaaaaaa")


@pytest.mark.parametrize("endless", [b"3;", b"0" * 99, b"0\r\nX: ", b"0\r\n" + b"X: y\r\n" * 50])
def test_what_is_no_body_is_limited_both_ways(endless: bytes) -> None:
    framed = b"3\r\nabc\r\n" + endless
    for reader, head in (
        (RequestReader(Limits(head_bytes=1000)), CHUNKED),
        (ResponseReader(head_bytes=1000), b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
    ):
        reader.feed(head + framed)
        with pytest.raises(HttpError, match=r"too long|no HTTP|no valid"):
            for _ in range(30):
                reader.feed(endless.removeprefix(b"0\r\n") * 20)


def test_a_body_is_limited_however_it_comes() -> None:
    limits = Limits(body_bytes=10)
    assert read(b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\n0123456789", limits)[0].body == b"0123456789"
    with pytest.raises(HttpError) as caught:
        read(CHUNKED + b"6\r\nabcdef\r\n" * 2, limits)
    assert caught.value.status == 413


def test_request_values() -> None:
    (request,) = read(b"POST /v1/x%20y?a=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    assert (request.method, request.path, request.target) == ("POST", "/v1/x y", b"/v1/x%20y?a=1")
    assert (request.body, request.keep_alive, request.framed) == (b"hello", False, True)
    (old,) = read(b"GET / HTTP/1.0\r\n\r\n")
    assert not old.keep_alive and not old.http11 and not old.framed


def test_an_upgrade_is_passed_over_and_the_next_request_is_read() -> None:
    upgrade = b"GET /a HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert [request.path for request in read(upgrade + b"GET /b HTTP/1.1\r\n\r\n")] == ["/a", "/b"]


def test_nothing_is_read_after_the_last_request() -> None:
    assert len(read(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\nGET /more HTTP/1.1\r\n\r\n")) == 1


def test_headers_of_one_connection_are_dropped() -> None:
    (request,) = read(
        b"GET / HTTP/1.1\r\nConnection: X-Own\r\nX-Own: 1\r\nTE: trailers\r\nAuthorization: k\r\nA: b\r\n"
        b"Transfer_Encoding: chunked\r\nContent_Length: 9\r\n\r\n"
    )
    assert passed_on(request.headers, (b"a",)) == b"authorization: k\r\n"


@pytest.mark.parametrize(
    ("raw", "keep_alive", "chunked", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3", True, False, 3),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", True, True, None),
        (b"HTTP/1.1 200 OK", False, False, None),
        (b"HTTP/1.1 204 No Content", True, False, 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3", False, False, 3),
        (b"HTTP/1.1 200", False, False, None),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3", True, False, 3),
    ],
)
def test_answers_framing(raw: bytes, keep_alive: bool, chunked: bool, length: int | None) -> None:
    reader = ResponseReader()
    reader.feed(raw + b"\r\n\r\n")
    head = reader.head
    assert head is not None
    assert (head.keep_alive, head.chunked, head.length) == (keep_alive, chunked, length)


def test_the_answer_to_head_has_no_body() -> None:
    reader = ResponseReader(to_head=True)
    assert reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n") == b""
    assert reader.done and reader.head is not None and reader.head.keep_alive
    assert reader.feed(b"hello") == b"" and reader.surplus


@given(st.binary(max_size=200))
def test_any_bytes_end_in_a_value_or_one_error(raw: bytes) -> None:
    for feed in (RequestReader(Limits()).feed, ResponseReader().feed):
        try:
            feed(raw)
        except HttpError as error:
            assert error.status >= 400

"""HTTP framing: pieces of any size, and bytes that no proxy may pass on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.proxy.wire import BodyReader, WireError, parse_request_head, parse_response_head, passed_on


def _cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


CUTS = st.lists(st.integers(0, 400), max_size=20)


@given(
    st.lists(st.binary(min_size=1, max_size=60), max_size=6),
    CUTS,
    st.sampled_from([b"", b"x: y\r\n"]),
    st.binary(max_size=9),
)
def test_proxy_wire_chunked_body_however_it_is_cut(
    parts: list[bytes], cuts: list[int], trailer: bytes, rest: bytes
) -> None:
    framed = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"
    reader = BodyReader(None, chunked=True)
    out = b"".join(reader.feed(piece) for piece in _cut(framed + rest, cuts))
    assert out == b"".join(parts)
    assert reader.done
    assert reader.rest == rest


@given(st.binary(max_size=300), CUTS, st.binary(max_size=9))
def test_proxy_wire_body_of_known_length(body: bytes, cuts: list[int], rest: bytes) -> None:
    reader = BodyReader(len(body), chunked=False)
    assert b"".join(reader.feed(piece) for piece in _cut(body + rest, cuts)) == body
    assert reader.done
    assert reader.rest == rest


def test_proxy_wire_passes_part_of_a_chunk_on_at_once() -> None:
    reader = BodyReader(None, chunked=True)
    assert reader.feed(b"a\r\n12345") == b"12345"
    assert not reader.closed()


def test_proxy_wire_a_body_until_the_close_is_whole_when_it_closes() -> None:
    reader = BodyReader(None, chunked=False)
    assert reader.feed(b"abc") == b"abc"
    assert not reader.done
    assert reader.closed()


@pytest.mark.parametrize("framed", [b"g\r\n", b"-1\r\n", b"1\r\nab\r\n", b"1" * 2000, b" \r\n"])
def test_proxy_wire_refuses_broken_chunks(framed: bytes) -> None:
    reader = BodyReader(None, chunked=True)
    with pytest.raises(WireError):
        reader.feed(framed)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET http://other/ HTTP/1.1\r\nHost: x", 400),
        (b"GET /\x01 HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 400),
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\nBad Name: x", 400),
        (b"GET / HTTP/1.1\r\nX: a\nY: b", 400),
        (b"GET / HTTP/1.1\r\nX: a\r\n folded", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: +3", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked", 501),
    ],
)
def test_proxy_wire_refuses_requests_that_two_readers_could_read_in_two_ways(raw: bytes, status: int) -> None:
    with pytest.raises(WireError) as caught:
        parse_request_head(raw)
    assert caught.value.status == status


def test_proxy_wire_request_head() -> None:
    head = parse_request_head(b"POST /v1/x?a=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nConnection: close, X-Own")
    assert (head.method, head.path, head.length, head.keep_alive) == (b"POST", "/v1/x", 5, False)
    assert not parse_request_head(b"GET / HTTP/1.0").keep_alive
    assert parse_request_head(b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked").length is None


def test_proxy_wire_drops_headers_of_one_connection() -> None:
    head = parse_request_head(
        b"GET / HTTP/1.1\r\nConnection: X-Own\r\nX-Own: 1\r\nTE: trailers\r\nAuthorization: k\r\nA: b"
    )
    assert passed_on(head.headers, (b"a",)) == b"authorization: k\r\n"


@pytest.mark.parametrize(
    ("raw", "keep_alive", "chunked", "length"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3", True, False, 3),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", True, True, None),
        (b"HTTP/1.1 200 OK", False, False, None),
        (b"HTTP/1.1 204 No Content", True, False, 0),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3", False, False, 3),
        (b"HTTP/1.1 200", False, False, None),
    ],
)
def test_proxy_wire_response_framing(raw: bytes, keep_alive: bool, chunked: bool, length: int | None) -> None:
    head = parse_response_head(raw)
    assert (head.keep_alive, head.chunked, head.length) == (keep_alive, chunked, length)


@given(st.binary(max_size=200))
def test_proxy_wire_never_fails_otherwise(raw: bytes) -> None:
    for parse in (parse_request_head, parse_response_head):
        try:
            parse(raw)
        except WireError as error:
            assert error.status >= 400

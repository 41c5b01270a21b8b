"""Response heads, chunk walking and request bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.load.http1 import (
    MAX_HEAD_BYTES,
    ChunkWalk,
    MalformedResponse,
    parse_head,
    request_head,
)


def test_1xx_responses_are_skipped() -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"
    raw = hints + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    head = parse_head(raw)
    assert head is not None
    assert (head.status, head.length, raw[head.body_start :]) == (200, 2, b"ok")


def test_head_is_incomplete_until_its_blank_line() -> None:
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    assert all(parse_head(raw[:cut]) is None for cut in range(1, len(raw)))
    assert parse_head(raw) is not None


@pytest.mark.parametrize(
    ("extra", "keep"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive", True),
        ("HTTP/1.1 200 OK", False),  # the body lasts until the connection closes
    ],
)
def test_keep_alive(extra: str, keep: bool) -> None:
    head = parse_head(extra.encode() + b"\r\n\r\n")
    assert head is not None and head.keep_alive is keep


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbroken line\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (MAX_HEAD_BYTES + 1),
    ],
)
def test_broken_heads_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedResponse):
        parse_head(raw)


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=12),
    st.lists(st.integers(0, 600), max_size=8),
    st.sampled_from([b"\r\n", b"Trailer: x\r\n\r\n"]),
)
def test_chunks_are_found_wherever_the_reads_were_cut(parts: list[bytes], cuts: list[int], tail: bytes) -> None:
    body = b"".join(b" %X ;ext=1\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + tail
    raw = b"H" * 7 + body
    walk = ChunkWalk(7)
    edges = [7, *sorted(min(7 + cut, len(raw)) for cut in cuts), len(raw)]
    for start, end in pairwise(edges):
        walk.feed(raw[start:end])
    assert walk.done and walk.left_over == b""
    assert [raw[at : at + size] for at, size in zip(walk.starts, walk.sizes, strict=True)] == parts


@pytest.mark.parametrize(
    "raw", [b"zz\r\nab\r\n", b"2\r\nabc\r\n", b"-1\r\n", b"ffffffff\r\nx", b"1" * 2000, b"1g", b"5\nx"]
)
def test_lying_or_broken_chunk_sizes_are_refused(raw: bytes) -> None:
    with pytest.raises(MalformedResponse):
        ChunkWalk(0).feed(raw)


def test_what_came_of_a_broken_off_chunk_is_kept() -> None:
    walk = ChunkWalk(0)
    walk.feed(b"3\r\nabc\r\nff\r\nde")
    walk.take_partial()
    assert (list(walk.starts), list(walk.sizes), walk.done) == ([3, 12], [3, 2], False)


def test_request_is_complete_and_headers_cannot_break_out() -> None:
    raw = request_head("h:1", "/v1/x", {"Authorization": "Bearer k", "content-length": "9"}) + b"2\r\n\r\n{}"
    assert raw.startswith(b"POST /v1/x HTTP/1.1\r\nHost: h:1\r\n")
    assert raw.endswith(b"Authorization: Bearer k\r\nContent-Length: 2\r\n\r\n{}")
    with pytest.raises(ValueError, match="'X'") as raised:
        request_head("h", "/", {"X": "secret\r\nEvil: 1"})
    assert "secret" not in str(raised.value)

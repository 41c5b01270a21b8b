"""Answers that real servers gave, byte for byte; and what decoding costs in memory."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
from load_streams import DONE, HEAD, decoded, events, exchange, http_chunk, usage

DATA = Path(__file__).parents[2] / "data" / "load"


def recorded(name: str) -> list[tuple[float, bytes]]:
    """The events of a recorded answer, 10 ms apart."""
    parts = (DATA / name).read_bytes().strip().split(b"\n\n")
    return [(10.0 * index, part + b"\n\n") for index, part in enumerate(parts)]


@pytest.mark.parametrize(
    ("name", "tokens", "chars", "first_ms"),
    [
        ("vllm-0.20.2.sse.txt", 8, ("reasoning_chars", 8), 10),
        ("vllm-0.32.0.sse.txt", 8, ("answer_chars", 8), 10),
        ("vllm-0.28.0-chinese.sse.txt", 8, ("answer_chars", 24), 10),
    ],
)
def test_real_answers(name: str, tokens: int, chars: tuple[str, int], first_ms: float) -> None:
    row = decoded(events(recorded(name))).row
    assert (row["error"], row["finish_reason"]) == (None, "length")
    assert row["chunks"] == row["output_tokens"] == tokens
    assert (row["ttft_ms"], row["decode_ms"], row[chars[0]]) == (first_ms, 10.0 * (tokens - 1), chars[1])


def test_a_dead_engine() -> None:
    row = decoded(events(recorded("vllm-0.28.0-engine-dead.sse.txt"))).row
    assert row["error"] == "stream_error" and "EngineCore encountered an issue" in row["error_detail"]


def test_memory_per_token() -> None:
    """At most 400 bytes a token while a stream is open and 100 when it has ended."""
    token = recorded("vllm-0.20.2.sse.txt")[2][1]
    count = 2000
    stream = [(1.0 * index, http_chunk(token)) for index in range(count)]
    one = exchange([(0.0, HEAD), *stream, (count, http_chunk(usage(count)) + http_chunk(DONE) + b"0\r\n\r\n")])
    kept = sum(map(sys.getsizeof, one.reads)) + sys.getsizeof(one.reads) + sys.getsizeof(one.stamps)
    assert kept <= 400 * count
    result = decoded(one)
    assert result.row["chunks"] == count
    assert len(pickle.dumps(result)) <= 100 * count

"""From raw reads to request records: every definition and every error class."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_streams import DONE, HEAD, ROLE, SENT, decoded, delta, events, exchange, http_chunk, sending, usage

from qwenbench.load.records import ERRORS, REQUEST_SCHEMA, digest, to_table


def gaps(row: dict[str, Any]) -> list[float]:
    return [] if row["itl_ms"] is None else [round(float(gap), 3) for gap in row["itl_ms"]]


def test_times_of_a_reasoning_answer() -> None:
    one = events(
        [
            (1, ROLE),
            (50, delta(reasoning="Hm")),
            (60, delta(reasoning='\n"')),
            (75, delta(content="é")),
            (85, delta(content="!")),
            (95, delta(finish="stop", content="")),
            (96, usage(4, prompt_tokens_details={"cached_tokens": 8})),
            (96, DONE),
        ]
    )
    result = decoded(one)
    row = result.row
    assert row["error"] is None
    assert (row["ttft_ms"], row["ttfo_ms"], row["e2e_ms"], row["decode_ms"]) == (50, 75, 95, 45)
    assert gaps(row) == [10, 15, 10]
    assert (row["chunks"], row["gaps_merged"], row["finish_reason"]) == (4, 0, "stop")
    assert (row["reasoning_chars"], row["answer_chars"]) == (4, 2)
    assert (row["input_tokens"], row["output_tokens"], row["cached_tokens"]) == (13, 4, 8)
    assert row["reasoning_tokens"] is None
    assert (result.answer, result.reasoning) == ("é!", 'Hm\n"')


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_both_names_of_reasoning_count_but_never_twice(key: str) -> None:
    one = decoded(events([(5, delta(**{key: "ab"})), (9, delta(content="c")), (9, usage()), (9, DONE)]))
    assert (one.row["reasoning_chars"], one.row["ttft_ms"], one.row["ttfo_ms"]) == (2, 5, 9)
    both = decoded(events([(5, delta(reasoning="ab", reasoning_content="ab")), (9, usage()), (9, DONE)]))
    assert both.row["reasoning_chars"] == 2


def test_a_chunk_that_carries_more_than_those_before_it_is_read_whole() -> None:
    """It begins and ends like the chunks whose shape is known, but there are further fields in between."""
    late = delta(content="b", reasoning="c")
    one = decoded(events([(4, delta(content="a")), (6, late), (8, delta(content="d")), (9, usage(3)), (9, DONE)]))
    assert one.row["error"] is None
    assert (one.answer, one.reasoning) == ("abd", "c")
    assert one.row["chunks"] == 3


def test_first_chunk_with_role_and_token_counts_and_tool_calls_are_answer() -> None:
    tool = [{"index": 0, "function": {"name": "f", "arguments": '{"a"'}}]
    one = events([(4, delta(role="assistant", content="x")), (8, delta(tool_calls=tool)), (9, usage()), (9, DONE)])
    assert (decoded(one).row["ttft_ms"], decoded(one).row["chunks"], decoded(one).row["answer_chars"]) == (4, 2, 6)


def test_completions_endpoint() -> None:
    def text(part: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "text": part, "logprobs": None, "finish_reason": finish}
        return b"data: " + orjson.dumps({"object": "text_completion", "choices": [choice]}) + b"\n\n"

    one = decoded(events([(3, text("a")), (5, text("b")), (8, text("c", "length")), (8, usage(3)), (8, DONE)]))
    assert (one.row["error"], one.answer, one.row["e2e_ms"], gaps(one.row)) == (None, "abc", 8, [2, 3])


def test_merged_reads_leave_their_gaps_out() -> None:
    tokens = [delta(content=f"t{index}") for index in range(6)]
    merged = b"".join(http_chunk(token) for token in tokens[1:4])
    reads = [
        (1, HEAD),
        (50, http_chunk(tokens[0])),
        (80, merged),  # tokens 1, 2, 3: only the last one's time is known
        (90, http_chunk(tokens[4])),
        (100, http_chunk(tokens[5])),
        (100, http_chunk(usage(6)) + http_chunk(DONE) + b"0\r\n\r\n"),
    ]
    row = decoded(exchange(reads)).row
    assert (gaps(row), row["gaps_merged"], row["chunks"]) == ([10, 10], 3, 6)
    assert (row["ttft_ms"], row["decode_ms"]) == (50, 50)


def test_a_token_cut_by_two_reads_arrived_with_the_second() -> None:
    raw = http_chunk(delta(content="ab"))
    reads = [(1, HEAD), (10, raw[:30]), (20, raw[30:]), (21, http_chunk(usage(1)) + http_chunk(DONE) + b"0\r\n\r\n")]
    assert decoded(exchange(reads)).row["ttft_ms"] == 20


def test_open_loop_counts_from_the_schedule() -> None:
    one = events([(5, delta(content="a")), (9, usage(1)), (9, DONE)])
    row = digest(sending(scheduled_ns=SENT - 7_000_000), one).row
    assert (row["waited_ms"], row["ttft_ms"], row["e2e_ms"], row["decode_ms"]) == (7, 12, 12, 0)


texts = st.text(min_size=1, max_size=6)


@given(
    st.lists(st.tuples(st.sampled_from(["content", "reasoning"]), texts), min_size=1, max_size=12),
    st.lists(st.integers(0, 4000), max_size=30),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_any_cut_of_the_bytes_gives_the_same_tokens(
    parts: list[tuple[str, str]], cuts: list[int], spaced: bool, newline: bytes
) -> None:
    stream = [ROLE, *(delta(**{key: text}) for key, text in parts), usage(len(parts)), DONE]
    if spaced:
        stream = [b": ping\n\n" + event.replace(b'":"', b'": "') for event in stream]
    stream = [event.replace(b"\n", newline) for event in stream]
    raw = HEAD + b"".join(map(http_chunk, stream)) + b"0\r\n\r\n"
    edges = [0, *sorted({min(cut, len(raw)) for cut in cuts} - {0, len(raw)}), len(raw)]
    reads = [(float(at), raw[start:end]) for at, (start, end) in enumerate(pairwise(edges))]
    result = decoded(exchange(reads))
    assert result.row["error"] is None
    assert result.answer == "".join(text for key, text in parts if key == "content")
    assert result.reasoning == "".join(text for key, text in parts if key == "reasoning")
    assert result.row["chunks"] == len(parts)
    # a reference that finds each token's read by looking for where its event ends in the raw bytes
    ends, at = [], len(HEAD)
    for event in stream:
        at += len(b"%x\r\n" % len(event)) + len(event)
        ends.append(at)
        at += 2
    arrived = [next(index for index, edge in enumerate(edges[1:]) if edge >= end) for end in ends[1:-2]]
    exact = [
        float(after - before)
        for position, (before, after) in enumerate(pairwise(arrived), start=1)
        if arrived.count(arrived[position]) == 1
    ]
    assert gaps(result.row) == exact
    assert result.row["gaps_merged"] == len(parts) - 1 - len(exact)
    assert result.row["ttft_ms"] == arrived[0]


def error_of(one: Any) -> tuple[str | None, str | None]:
    row = decoded(one).row
    assert row["error"] in {None, *ERRORS}
    return row["error"], row["error_detail"]


def test_error_event_after_200_is_no_success() -> None:
    # as a real server whose engine died answers
    error = b'{"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}'
    event = b'data: {"error": ' + error + b"}\n\n"
    seen = error_of(events([(5, event), (5, DONE)]))
    assert seen == ("stream_error", "InternalServerError: EngineCore encountered an issue.")
    later = decoded(events([(4, delta(content="a")), (5, event), (5, DONE)])).row
    assert (later["error"], later["ttft_ms"]) == ("stream_error", 4)


@pytest.mark.parametrize(
    ("timed", "expected"),
    [
        ([(1, ROLE), (2, usage(0)), (2, DONE)], "empty"),
        ([(1, ROLE), (2, delta(finish="stop", content="")), (2, usage(1)), (2, DONE)], "empty"),
        ([], "empty"),
        ([(1, b"data: {broken\n\n")], "malformed"),
        ([(1, b'data: {"x": "\xff\xfe"}\n\n')], "malformed"),
        ([(1, delta(content="a")), (2, delta(content="b").replace(b'"b"', b'"\xff"'))], "malformed"),
        ([(1, delta(content="a")), (2, delta(content="b").replace(b'"b"', b'"\\q"'))], "malformed"),
        ([(1, delta(content="a")), (2, delta(content="b").replace(b'"b"', b'"b\nc"'))], "malformed"),
        ([(1, b"data: [1]\n\n")], "empty"),
        ([(1, b"data: {}\n\n")], "empty"),
        ([(1, b'data: {"choices": {}}\n\n')], "malformed"),
        ([(1, b'dta: {"choices": []}\n\n')], "malformed"),
        ([(1, b"<html>hello</html>\n\n")], "malformed"),
        ([(1, b'{"choices": []}')], "malformed"),
        ([(1, b'{"error": "no"}')], "stream_error"),
        ([(1, b'data: {"object": "error", "message": "no"}\n\n'), (1, DONE)], "stream_error"),
    ],
)
def test_streams_that_are_no_success(timed: list[tuple[float, bytes]], expected: str) -> None:
    assert error_of(events(timed))[0] == expected


def test_status_with_excerpt_retry_after_and_no_prompt_text_or_secret() -> None:
    body = b'{"error": {"message": "bad key sk-12345 for tell me a long story about\\n a cat", "type": "T"}}'
    raw = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "tell me a long story about\n a cat and a dog"}]}
    row = digest(sending(**prompt), exchange([(3, raw)]), secrets=["sk-12345"]).row
    assert (row["error"], row["status"], row["ttft_ms"]) == ("http_status", 429, None)
    assert row["error_detail"] == "HTTP 429 (Retry-After: 7): T: bad key *** for [prompt text left out]"
    long = b"HTTP/1.1 500 X\r\nContent-Length: 9000\r\n\r\n" + b"z" * 9000
    assert len(decoded(exchange([(3, long)])).row["error_detail"]) == 300


@pytest.mark.parametrize("error", ["reset", "timeout", "cancelled"])
def test_what_came_before_a_break_is_kept(error: str) -> None:
    reads = [(1, HEAD), (5, http_chunk(delta(content="a"))), (8, http_chunk(delta(content="b"))), (9, b"ff\r\ndata")]
    row = decoded(exchange(reads, error=error, detail="why")).row
    assert (row["error"], row["error_detail"], row["ttft_ms"], row["chunks"]) == (error, "why", 5, 2)


@given(st.integers(0, 400))
def test_a_stream_cut_anywhere_counts_whole_events_only(cut: int) -> None:
    token = delta(content="ab")
    whole = token * 4
    kept = whole[: len(whole) - min(cut, len(whole) - 1)]
    row = decoded(exchange([(1, HEAD), (2, http_chunk(kept))], error="reset", detail="")).row
    assert (row["error"], row["chunks"]) == ("reset", kept.count(b"\n\n"))


def test_lying_sizes_and_missing_ends() -> None:
    lying = exchange([(1, HEAD), (2, b"3\r\n" + delta(content="a") + b"\r\n"), (3, b"\r\n0\r\n\r\n")])
    assert error_of(lying)[0] == "malformed"
    assert error_of(exchange([(1, HEAD), (2, http_chunk(delta(content="a")))]))[0] == "reset"
    short = exchange([(1, b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + delta(content="a"))])
    assert error_of(short)[0] == "reset"


def test_a_line_of_ten_megabytes_is_malformed() -> None:
    huge = b'data: {"choices": "' + b"x" * 10_000_000 + b'"}\n\n'
    assert error_of(events([(1, huge), (2, DONE)])) == ("malformed", "an event is longer than 4194304 bytes")


@pytest.mark.parametrize("lines", [b"\n" * 2_000_001, b"\r" * 2_000_001])
def test_tens_of_millions_of_blank_lines_are_not_read_one_by_one(lines: bytes) -> None:
    assert error_of(events([(1, lines), (2, DONE)])) == ("malformed", "the stream has more than 2,000,000 lines")


def test_rows_fit_the_schema() -> None:
    rows = [
        decoded(events([(1, delta(content="a")), (4, delta(content="b")), (4, usage()), (4, DONE)])).row,
        decoded(exchange([], error="refused", detail="no")).row,
    ]
    table = to_table(rows)
    assert table.schema == REQUEST_SCHEMA
    assert table["itl_ms"].to_pylist() == [[3.0], None]
    assert table["output_tokens"].to_pylist() == [2, None]
    assert to_table([]).num_rows == 0


def test_ended_streams_keep_little_memory() -> None:
    one = decoded(events([(index, delta(content="a")) for index in range(400)] + [(400, usage(400)), (400, DONE)]))
    assert one.row["itl_ms"].nbytes <= 4 * 400
    assert one.row["itl_ms"].base is None or one.row["itl_ms"].base.nbytes <= 8 * 400
    assert isinstance(one.row["itl_ms"], np.ndarray)


@pytest.mark.parametrize("said", ["tail: LONG STORY ABOUT a cat and a dog", "x" * 200 + "a long story about a cat and"])
def test_any_part_of_a_prompt_that_a_server_repeats_is_left_out(said: str) -> None:
    body = b'{"error": "%s"}' % said.encode()
    raw = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "tell me a long story about a cat and a dog"}]}
    detail = digest(sending(**prompt), exchange([(3, raw)]), secrets=[]).row["error_detail"]
    assert detail.endswith("[prompt text left out]")
    assert "story" not in detail.lower()

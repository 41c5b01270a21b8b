"""Habits of servers that are not vLLM: what the standard allows passes, and no figure comes of what cannot be true."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_streams import DONE, HEAD, ROLE, decoded, delta, events, exchange, http_chunk, usage

from qwenbench.load.records import MAX_TOKEN_CHARS

A, B = delta(content="a"), delta(content="b")


def row_of(*timed: tuple[float, bytes]) -> dict[str, Any]:
    return decoded(events(list(timed))).row


def plain(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["error"], row["ttft_ms"], row["e2e_ms"], row["output_tokens"], row["answer_chars"]


KEEP_ALIVES = [
    b": ping\n\n",
    b":\n\n",
    b"data:\n\n",
    b"data: \n\n",
    b"data\n\n",
    b"data: : OPENROUTER PROCESSING\n\n",
    b"data: ping\n\n",
    b"data: keep-alive\n\n",
    b'data: "ping"\n\n',
    b"data: null\n\n",
    b"data: {}\n\n",
    b'data: {"type":"ping"}\n\n',
    b'event: ping\ndata: {"time": 3}\n\n',
    b"event: heartbeat\n\n",
    b"retry: 500\n\n",
    b"id: 7\n\n",
    b"x-unknown: 1\n\n",
    b"no colon at all\n\n",
    b'data: {"id":"c","choices":[]}\n\n',
    delta(),
    delta(content=""),
    b'data: {"type":"status","message":"queued, position 3"}\n\n',
    b'event: keepalive\ndata: {"message":"still working","type":"keepalive"}\n\n',
    b'data: {"code":0,"message":"ok"}\n\n',
    b'data: {"event":"ping","detail":null}\n\n',
    b'data: {"error":{},"type":"heartbeat"}\n\n',
    b"data: \xe2\x80\x8b\n\n",
    b'data: still "processing"\n\n',
    b"data: []\n\n",
    b"\n\n\n",
    b"   \n\n",
]


@pytest.mark.parametrize("keep_alive", KEEP_ALIVES)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_keep_alives_of_any_kind_pass(keep_alive: bytes, newline: bytes) -> None:
    timed = [(1, keep_alive), (2, ROLE), (5, A), (6, keep_alive), (8, B), (9, keep_alive), (10, usage(2)), (11, DONE)]
    row = row_of(*((at, event.replace(b"\n", newline)) for at, event in timed))
    assert plain(row) == (None, 5, 8, 2, 2)
    assert row["itl_ms"].tolist() == [3]


@given(st.lists(st.sampled_from(KEEP_ALIVES), max_size=8), st.data())
def test_keep_alives_never_change_a_figure(keep_alives: list[bytes], data: st.DataObject) -> None:
    timed = [(5.0, A), (8.0, B), (10.0, usage(2))]
    for keep_alive in keep_alives:
        at = data.draw(st.integers(0, len(timed)))
        timed.insert(at, (timed[at - 1][0] if at else 0.6, keep_alive))
    assert plain(row_of(*timed, (11.0, DONE))) == (None, 5, 8, 2, 2)


def test_a_byte_order_mark_is_no_part_of_the_first_event() -> None:
    assert plain(row_of((5, b"\xef\xbb\xbf" + A), (8, B), (9, usage(2)), (9, DONE))) == (None, 5, 8, 2, 2)


def test_an_end_mark_with_blanks_is_one() -> None:
    assert plain(row_of((5, A), (8, B), (9, usage(2)), (9, b"data: [DONE] \n\n")))[0] is None


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (b'error: {"code":500,"message":"context shift is disabled","type":"server_error"}\n\n', "context shift"),
        (b"error: out of slots\n\n", "out of slots"),
        (b'event: error\ndata: {"message":"overloaded","code":503}\n\n', "overloaded"),
        (b"event: error\ndata: gone fishing\n\n", "gone fishing"),
        (
            b'data: {"error":{"message":"EngineCore died","type":"InternalServerError"}}\n\n',
            "EngineCore",
        ),
        (b'data:{"error":"Request failed during generation","error_type":"generation"}\n\n', "during generation"),
        (b'data: {"object":"error","message":"no","code":400}\n\n', "no"),
        (b'data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n', "Overloaded"),
        (b'data: {"detail":"Not allowed"}\n\n', "Not allowed"),
        (b'{"error":{"message":"raw json in mid-stream"}}\n\n', "raw json"),
        (b"event: error\n\n", "without words"),
        (b"event: exception\ndata: boom\n\n", "boom"),
        (b"ERROR: boom\n\n", "boom"),
        (b"data: Error: boom\n\n", "boom"),
        (b"Internal Server Error\n\n", "Internal Server Error"),
        (b'data: {"errors":[{"message":"boom","code":7}]}\n\n', "boom"),
        (b'data: [{"error":{"code":429,"message":"Quota exceeded"}}]\n\n', "Quota exceeded"),
        (b'data: {"error_code":18,"error_msg":"Open api qps limit"}\n\n', "qps limit"),
        (b'data: {"base_resp":{"status_code":1008,"status_msg":"insufficient balance"}}\n\n', "insufficient"),
        (b'data: {"status":"error","message":"boom"}\n\n', "boom"),
        (delta("error"), "finish_reason 'error'"),
        (delta("insufficient_system_resource"), "insufficient_system_resource"),
    ],
)
def test_errors_in_a_stream_keep_the_servers_words(event: bytes, words: str) -> None:
    row = row_of((5, A), (8, event), (9, DONE))
    assert row["error"] == "stream_error"
    assert words in row["error_detail"]
    assert row["ttft_ms"] == 5


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


@pytest.mark.parametrize(
    "part",
    [
        THINKING,
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "thinking", "thinking": "hm"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        [{"type": "thinking", "text": {"value": "hm"}}],
    ],
)
def test_content_as_parts_counts_by_part(part: dict[str, Any]) -> None:
    timed = [
        (5, delta(content=[part])),
        (7, delta(content=[part])),
        (9, delta(content=[{"type": "text", "text": "a"}])),
    ]
    row = row_of(*timed, (12, B), (13, usage(4)), (13, DONE))
    assert (row["error"], row["ttft_ms"], row["ttfo_ms"], row["e2e_ms"]) == (None, 5, 9, 12)
    assert (row["reasoning_chars"], row["answer_chars"], row["chunks"], row["decode_ms"]) == (4, 2, 4, 7)


@pytest.mark.parametrize(
    "parts",
    [
        {"refusal": "no"},
        {"function_call": {"name": "f", "arguments": "{}"}},
        {"content": {"type": "text", "text": "a"}},
        {"content": [{"type": "text", "text": {"value": "a", "annotations": []}}]},
        {"content": [{"type": "refusal", "refusal": "no"}]},
        {"audio": {"transcript": "a"}},
    ],
)
def test_other_deltas_that_carry_tokens(parts: dict[str, Any]) -> None:
    row = row_of((5, delta(**parts)), (9, usage(1)), (9, DONE))
    assert (row["error"], row["ttfo_ms"]) == (None, 5)


@pytest.mark.parametrize("choice", [{"message": {"role": "assistant", "content": "a"}}, {"delta": "a"}, {"text": "a"}])
def test_other_choices_that_carry_tokens(choice: dict[str, Any]) -> None:
    event = b"data: " + orjson.dumps({"choices": [{"index": 0, **choice}]}) + b"\n\n"
    row = row_of((5, event), (8, event), (9, usage(2)), (9, DONE))
    assert plain(row) == (None, 5, 8, 2, 2)


COUNTED = {"prompt_tokens": 13, "completion_tokens": 2, "total_tokens": 15}


@pytest.mark.parametrize(
    "last",
    [
        {"choices": [{"index": 0, "delta": {}, "usage": COUNTED}]},
        {"choices": [], "x_groq": {"usage": COUNTED}},
        {"choices": [], "timings": {"cache_n": 3, "prompt_n": 10, "predicted_n": 2, "predicted_ms": 3.1}},
        {"usage": {"input_tokens": 13, "output_tokens": 2}},
        {"choices": [], "usage": {**COUNTED, "completion_tokens": 2.0}},
        {"choices": [], "usage": {**COUNTED, "completion_tokens": "2"}},
    ],
)
def test_usage_is_found_wherever_it_stands(last: dict[str, Any]) -> None:
    row = row_of((5, A), (8, B), (9, b"data: " + orjson.dumps(last) + b"\n\n"), (9, DONE))
    assert plain(row) == (None, 5, 8, 2, 2)
    assert row["input_tokens"] == 13


@pytest.mark.parametrize("count", [None, -1, True, 10**12, "many", 2.5, {}])
def test_a_count_that_is_no_number_of_tokens_leaves_them_unknown(count: object) -> None:
    last = {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": count}}
    row = row_of((5, A), (8, B), (9, b"data: " + orjson.dumps(last) + b"\n\n"), (9, DONE))
    assert plain(row) == (None, 5, 8, None, 2)
    assert row["input_tokens"] is None


def test_a_usage_of_zeros_is_contradicted_by_the_chunks() -> None:
    row = row_of((5, A), (8, B), (9, usage(0)), (9, DONE))
    assert (row["error"], row["output_tokens"], row["ttft_ms"], row["e2e_ms"]) == (None, None, 5, 8)
    assert row["disagreement"] == "usage and chunks: usage says 0 tokens, but 2 chunks carried text"


def test_a_character_that_comes_in_two_surrogates_is_one() -> None:
    halves = [B.replace(b'"b"', half) for half in (b'"\\ud83d"', b'"\\ude00"')]
    one = decoded(events([(5, A), (6, halves[0]), (8, halves[1]), (9, usage(3)), (9, DONE)]))
    assert plain(one.row) == (None, 5, 8, 3, 3)
    assert one.answer == "a\N{GRINNING FACE}"


@pytest.mark.parametrize("last", [b": bye\n\n", b"Traceback (most recent call last):\n", delta(content="c")])
def test_a_stream_that_stops_without_a_word_is_no_answer(last: bytes) -> None:
    """As a proxy ends it, cleanly, whose server died."""
    row = row_of((5, A), (8, B), (9, last))
    assert (row["error"], row["ttft_ms"]) == ("reset", 5)
    assert "no [DONE], no finish_reason and no usage" in row["error_detail"]


@pytest.mark.parametrize("last", [DONE, delta("stop"), usage(2)])
def test_each_of_the_ends_is_enough(last: bytes) -> None:
    assert row_of((5, A), (8, B), (9, last))["error"] is None


def test_zeros_after_a_usage_that_counted_are_no_news() -> None:
    row = row_of((5, A), (8, B), (9, usage(2)), (9, usage(0)), (9, DONE))
    assert (row["output_tokens"], row["disagreement"]) == (2, None)


def test_a_usage_that_grows_with_the_stream_counts_at_its_end() -> None:
    row = row_of((5, A), (5, usage(1)), (8, B), (8, usage(2)), (9, DONE))
    assert (row["output_tokens"], row["disagreement"]) == (2, None)


def test_a_count_that_falls_is_not_believed() -> None:
    row = row_of((5, A), (8, usage(9)), (9, usage(3)), (9, DONE))
    assert (row["output_tokens"], row["disagreement"]) == (None, "usage and usage: it fell from 9 to 3 tokens")


def test_more_text_than_so_many_tokens_can_hold() -> None:
    row = row_of((5, delta(content="x" * (2 * MAX_TOKEN_CHARS))), (9, usage(1)), (9, DONE))
    assert row["output_tokens"] is None
    assert row["disagreement"].startswith("usage and text")


def thoughts(number: int) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": number}}


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (usage(2, total_tokens=16), "usage and usage: 13 and 2 tokens make no total of 16"),
        (usage(2, **thoughts(3)), "usage and usage: 3 tokens of reasoning are more than 2 in all"),
        (usage(9), "usage and limit: usage says 9 tokens, but 4 were asked for at most"),
    ],
)
def test_counts_that_do_not_add_up_are_not_believed(last: bytes, told: str) -> None:
    row = decoded(events([(5, A), (8, B), (9, last), (9, DONE)]), messages=[], max_tokens=4).row
    assert (row["output_tokens"], row["disagreement"], row["ttft_ms"], row["decode_ms"]) == (None, told, 5, 3)


def test_thoughts_that_a_total_shows_to_be_beside_the_answer_are_output() -> None:
    row = row_of((5, A), (8, B), (9, usage(2, total_tokens=115, **thoughts(100))), (9, DONE))
    assert (row["output_tokens"], row["disagreement"]) == (102, None)
    assert row["decode_ms"] is None, "the thoughts came before the first chunk"


def test_thoughts_that_are_shown_have_their_times() -> None:
    row = row_of((5, delta(reasoning="a")), (8, B), (9, usage(2, **thoughts(1))), (9, DONE))
    assert (row["output_tokens"], row["decode_ms"], row["disagreement"]) == (2, 3, None)
    row = row_of((5, A), (8, B), (9, usage(2, **thoughts(1))), (9, DONE))
    assert row["decode_ms"] == 3, "nobody parsed them, but the chunks hold them"


def test_tokens_of_one_chunk_have_no_time_between_them() -> None:
    """llama.cpp under a grammar: all text in one chunk, and the end right after it."""
    row = row_of((5, delta(content="abc")), (5.1, delta("length")), (6, usage(8)), (6, DONE))
    assert (row["ttft_ms"], row["e2e_ms"], row["decode_ms"], row["output_tokens"]) == (5, 5.1, None, 8)


def test_several_answers_at_once_have_no_time_between_tokens() -> None:
    other = B.replace(b'"index":0', b'"index":1')
    row = row_of((5, A), (6, other), (8, A), (9, other), (9, usage(4)), (9, DONE))
    assert (row["ttft_ms"], row["decode_ms"], row["output_tokens"], len(row["itl_ms"])) == (5, None, 4, 0)
    assert "several answers" in row["disagreement"]


def test_a_redirect_is_told_with_its_target() -> None:
    head = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: https://other.example/v1\r\nContent-Length: 0\r\n\r\n"
    row = decoded(exchange([(0.5, head)])).row
    assert row["error_detail"] == "HTTP 307: a redirect to https://other.example/v1, which is not followed"


def test_a_gateways_page_is_told_in_its_words() -> None:
    row = row_of((5, b"<html><body><h1>Bad gateway</h1></body></html>"))
    assert (row["error"], row["error_detail"].partition(": ")[2]) == ("malformed", "Bad gateway")


def test_no_usage_leaves_tokens_unknown_and_keeps_the_times() -> None:
    row = row_of((5, A), (8, B), (9, DONE))
    assert (row["error"], row["output_tokens"], row["ttft_ms"], row["e2e_ms"]) == (None, None, 5, 8)


def test_an_answer_held_back_by_a_gateway_has_no_time_between_its_tokens() -> None:
    row = decoded(exchange([(0.5, HEAD), (30, b"".join(map(http_chunk, [A, B, usage(2), DONE])) + b"0\r\n\r\n")])).row
    assert (row["error"], row["ttft_ms"], row["decode_ms"], row["output_tokens"]) == (None, 30, None, 2)
    assert len(row["itl_ms"]) == 0


@pytest.mark.parametrize("error", ["timeout", "reset"])
def test_a_stream_is_over_at_its_end_mark_whatever_the_connection_does(error: str) -> None:
    reads = [(0.5, HEAD), *((at, http_chunk(one)) for at, one in [(5, A), (8, B), (9, usage(2)), (9, DONE)])]
    assert plain(decoded(exchange(reads, error=error, detail="later")).row) == (None, 5, 8, 2, 2)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_compressed_answer_is_unpacked_with_its_times(coding: str, chunked: bool) -> None:
    packer = zlib.compressobj(6, zlib.DEFLATED, 31 if coding == "gzip" else 15)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n" % coding.encode()
    reads: list[tuple[float, bytes]] = [(0.5, head + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))]
    for at, event in [(5.0, A), (8.0, B), (9.0, usage(2)), (9.0, DONE)]:
        packed = packer.compress(event) + packer.flush(zlib.Z_SYNC_FLUSH)
        reads.append((at, http_chunk(packed) if chunked else packed))
    row = decoded(exchange([*reads, (9.0, b"0\r\n\r\n")] if chunked else reads)).row
    assert plain(row) == (None, 5, 8, 2, 2)


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(b"\0" * 100_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    row = decoded(exchange([(0.5, head), (1, bomb)])).row
    assert row["error"] == "malformed"
    assert "more than any real answer" in row["error_detail"]


CHUNK = st.one_of(
    st.builds(lambda text: delta(content=text), st.text(max_size=3)),
    st.builds(lambda text: delta(reasoning=text), st.text(max_size=3)),
    st.builds(lambda text: delta(content=[{"type": "text", "text": text}]), st.text(max_size=3)),
    st.sampled_from(KEEP_ALIVES),
    st.builds(usage, st.integers(0, 6)),
    st.builds(lambda count, of, total: usage(count, total_tokens=total, **thoughts(of)), *[st.integers(0, 30)] * 3),
    st.just(B.replace(b'"index":0', b'"index":1')),
    st.builds(lambda value: b"data: " + orjson.dumps(value) + b"\n\n", st.dictionaries(st.text(max_size=4), st.none())),
    st.binary(max_size=12).map(lambda junk: b"data: " + junk + b"\n\n"),
)


@given(st.lists(st.tuples(CHUNK, st.floats(0, 3)), max_size=20), st.booleans())
def test_whatever_comes_the_figures_can_be_true_together(chunks: list[tuple[bytes, float]], ended: bool) -> None:
    at, timed = 1.0, []
    for event, wait in chunks:
        at += wait
        timed.append((at, event))
    row = decoded(events([*timed, *([(at, DONE)] if ended else [])]), messages=[], max_tokens=9).row
    tokens, count = row["output_tokens"], row["chunks"]
    assert row["error"] is not None or count > 0
    if row["error"] is None:
        assert 0 < row["ttft_ms"] <= row["e2e_ms"]
        assert tokens is None or count <= tokens
        assert tokens is None or row["reasoning_chars"] + row["answer_chars"] <= MAX_TOKEN_CHARS * tokens
        assert tokens is None or tokens < 2 or row["decode_ms"] is None or row["decode_ms"] > 0
        several = any(b'"index":1' in event for event, _ in chunks)
        assert several or len(row["itl_ms"]) + row["gaps_merged"] == count - 1
        assert tokens is None or 0 <= (row["reasoning_tokens"] or 0) <= tokens
        assert tokens is None or several or tokens - (row["reasoning_tokens"] or 0) <= max(9, count)

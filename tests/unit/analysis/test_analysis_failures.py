"""Why requests failed, told with counts, and what is not claimed where nothing is known."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from analysis_records import at_ms, request, table
from point_contexts import point_context

from qwenbench.analysis.point import summarise_point
from qwenbench.analysis.request_arrays import RequestArrays, disagreements, failure_reasons
from qwenbench.analysis.window import Window, window_of


def point(rows: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return summarise_point(table(rows), None, None, point_context(**fields))


def failed(error: str, detail: str, **more: Any) -> dict[str, Any]:
    return request(0, 1, error=error, error_detail=detail, **more)


def test_reasons_come_with_counts_and_the_servers_words() -> None:
    words = "BadRequestError: unrecognized request argument: top_k"
    rows = [failed("http_status", f"HTTP 400: {words}")] * 16 + [
        failed("timeout", "no end of the answer after 3 s")
    ] * 2
    assert failure_reasons(table(rows)) == f"HTTP 400 x 16: {words}; timeout x 2: no end of the answer after 3 s"


def test_details_that_differ_in_numbers_only_are_one_reason() -> None:
    rows = [failed("malformed", f"the event after token {number} is not valid") for number in range(5)]
    assert failure_reasons(table(rows)) == "malformed x 5: the event after token 0 is not valid"


def test_of_many_kinds_the_commonest_are_told() -> None:
    rows = [failed(error, "") for error in "aaaabbbccdef"]
    assert failure_reasons(table(rows)) == "a x 4; b x 3; c x 2; 3 more of other kinds"


def test_without_a_failure_there_is_no_reason() -> None:
    assert failure_reasons(table([request(0, 1)])) is None
    assert failure_reasons(table([])) is None


def test_the_point_names_why_every_request_failed() -> None:
    row = point([failed("http_status", "HTTP 500: EngineCore encountered an issue")] * 3)
    assert row["error_top"] == "HTTP 500 x 3: EngineCore encountered an issue"
    assert row["invalid_reason"] == f"every request failed ({row['error_top']})"


def test_contradictions_are_counted_and_their_tokens_give_no_rate() -> None:
    told = "usage and chunks: usage says 0 tokens, but {} chunks carried text"
    rows = [request(n * 10, n * 10 + 9, output_tokens=None, disagreement=told.format(40 + n)) for n in range(3)]
    row = point(rows, concurrency=1)
    assert row["disagreements"] == "usage and chunks x 3: usage says 0 tokens, but 40 chunks carried text"
    assert (row["output_tokens_per_s"], row["tpot_ms_mean"]) == (None, None)
    assert row["valid"]
    assert row["requests_per_s"] > 0


def test_one_request_of_unknown_length_makes_the_rate_unknown_and_not_smaller() -> None:
    rows = [request(n * 10, n * 10 + 9) for n in range(5)]
    assert point(rows, concurrency=1)["output_tokens_per_s"] > 0
    rows[2] |= {"output_tokens": None}
    assert point(rows, concurrency=1)["output_tokens_per_s"] is None


def test_records_of_an_earlier_version_have_no_contradictions() -> None:
    assert disagreements(pa.table({"error": ["x"]})) is None


def test_a_window_without_a_completion_gives_no_rate_of_zero() -> None:
    rows = [request(at, at + 200, scheduled_ns=at_ms(at)) for at in (0, 4, 9)]
    assert window_of(RequestArrays.of(table(rows)), "trace", None) == Window("whole", at_ms(0), at_ms(209))
    row = point(rows, load_shape="trace", concurrency=None)
    assert row["window"] == "whole"
    assert row["requests_per_s"] > 0

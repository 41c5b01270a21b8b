"""The client's self-check and what it did during a point decide whether the point counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from qwenbench.load.client_error import ClientError, client_verdict
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.load.spec import ClientHealth, LoadResult

HEALTH = ClientHealth(1, "kernel", 0.2, 1.0, 2.0, 0.0)
FINE = ClientError(8, 0.1, 0.3, 0.05, 0.1, 0.1, 0.2, 0.0, 100, 1, "kernel")


def row(**values: Any) -> dict[str, Any]:
    return dict.fromkeys(REQUEST_SCHEMA.names) | {"ttft_ms": 50.0, "itl_ms": [10.0] * 20, "gaps_merged": 0} | values


def result(rows: list[dict[str, Any]], **health: Any) -> LoadResult:
    return LoadResult(pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA), 0, 1, replace(HEALTH, **health))


def test_a_good_client_is_silent() -> None:
    assert client_verdict(result([row()] * 3), FINE) is None


def test_the_error_is_held_against_what_was_measured() -> None:
    slow_client = replace(FINE, mean_ms=3.0)
    assert client_verdict(result([row(ttft_ms=100.0)]), slow_client) is None, "3 ms of 100 are within 5 %"
    assert "TTFT error" in str(client_verdict(result([row(ttft_ms=10.0)]), slow_client))


def test_a_starved_client_shows_in_merged_gaps() -> None:
    starved = result([row(itl_ms=[10.0] * 6, gaps_merged=4)], loop_lag_p99_ms=60.0)
    assert "40% of the gaps merged" in str(client_verdict(starved, FINE))


def test_failed_requests_say_nothing_of_the_client() -> None:
    rows = [row(ttft_ms=100.0), row(ttft_ms=1.0, error="reset"), row(ttft_ms=1.0, error="reset")]
    assert client_verdict(result(rows), replace(FINE, mean_ms=4.0)) is None


def test_nothing_measured_is_no_crash() -> None:
    assert client_verdict(result([]), FINE) is None


def test_the_99th_percentile_counts_where_there_are_enough_requests() -> None:
    jumpy = replace(FINE, p99_ms=40.0)
    assert "40.0 ms (p99)" in str(client_verdict(result([row(ttft_ms=50.0)] * 3), jumpy))
    assert client_verdict(result([row(ttft_ms=50.0)] * 3), replace(jumpy, requests=99)) is None
    assert client_verdict(result([row(ttft_ms=900.0)] * 3), jumpy) is None, "40 ms of 900 are within 5 %"


def test_a_bad_minute_of_the_client_is_not_remembered_for_ever() -> None:
    bad = replace(FINE, mean_ms=5.0, measured_at=1000.0)
    good = replace(FINE, measured_at=1000.0)
    assert bad.doubtful and not good.doubtful
    assert (bad.valid_at(1059.0), bad.valid_at(1060.0)) == (True, False)
    assert (good.valid_at(1000.0 + 86399), good.valid_at(1000.0 + 86400)) == (True, False)
    assert not good.valid_at(999.0), "a clock that was set back"
    assert replace(good, itl_mean_ms=0.6).doubtful

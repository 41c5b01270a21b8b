from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from analysis_records import at_ms, request, table
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.analysis.request_arrays import RequestArrays
from qwenbench.analysis.window import Window, span_of_load, window_of


def arrays(rows: list[dict[str, Any]]) -> RequestArrays:
    return RequestArrays.of(table(rows))


def streams(
    count: int, turns: int, length_ms: float = 100, stagger_ms: float = 0, pause_ms: float = 0
) -> list[dict[str, Any]]:
    """Streams that send back to back, each beginning a little after the one before."""
    return [
        request(stream * stagger_ms + turn * length_ms, stream * stagger_ms + (turn + 1) * length_ms - pause_ms)
        for stream in range(count)
        for turn in range(turns)
    ]


def test_ramp_and_drain_are_left_out() -> None:
    window = window_of(arrays(streams(4, 8, stagger_ms=10)), "closed", 4)
    # the fourth stream begins at 30 ms; the first one ends for good at 800 ms
    assert window == Window("steady", at_ms(30), at_ms(800))


def test_at_one_time_starts_come_before_ends() -> None:
    # 2 streams needed; one request takes over from the other at the very same instant
    starts, ends = np.array([0, 5, 10]), np.array([10, 20, 15])
    assert span_of_load(starts, ends, 2) == (5, 15)
    assert span_of_load(np.array([0, 10]), np.array([10, 20]), 2) == (10, 10)


def test_level_is_the_ceiling_of_95_percent() -> None:
    # 0.95 x 20 = 19: the twentieth stream may lag
    rows = [*streams(19, 8), request(500, 600)]
    assert window_of(arrays(rows), "closed", 20) == Window("steady", at_ms(0), at_ms(800))
    # 0.95 x 10 = 9.5, so all ten are needed, and nine never make a window
    assert window_of(arrays(streams(9, 8, pause_ms=1)), "closed", 10).kind == "whole"


def test_think_time_counts_as_in_flight() -> None:
    # turns of 100 ms with 900 ms of thought between them, on two streams half a period apart
    rows = [
        request(offset + turn * 1000, offset + turn * 1000 + 100, session_id=f"s{stream}")
        for stream, offset in enumerate((0, 500))
        for turn in range(6)
    ]
    assert window_of(arrays(rows), "closed", 2) == Window("steady", at_ms(500), at_ms(5100))
    for number, row in enumerate(rows):
        row["session_id"] = f"other{number}"
    assert window_of(arrays(rows), "closed", 2).kind == "whole"


def test_too_short_or_too_few_completions_gives_the_whole_point() -> None:
    # 2 turns per stream: only 2 x concurrency completions
    assert window_of(arrays(streams(4, 2)), "closed", 4) == Window("whole", at_ms(0), at_ms(200))
    assert window_of(arrays(streams(4, 3)), "closed", 4).kind == "steady"
    # failures are no completions
    rows = streams(4, 3)
    rows[0]["error"] = "timeout"
    assert window_of(arrays(rows), "closed", 4).kind == "whole"
    # many quick completions, but the window is shorter than three median request durations
    long = [request(0, 1000) for _ in range(12)]
    assert window_of(arrays(long), "closed", 4).kind == "whole"


def test_nothing_sent_has_no_window() -> None:
    assert window_of(arrays([]), "closed", 4) is None


def test_all_failed_is_the_whole_point() -> None:
    rows = [row | {"error": "refused", "e2e_ms": None} for row in streams(2, 8)]
    assert window_of(arrays(rows), "closed", 2).kind == "whole"


def test_open_loop_is_the_schedule_without_its_ramp() -> None:
    rows = [request(10 * i + 3, 10 * i + 500, scheduled_ns=at_ms(10 * i)) for i in range(100)]
    window = window_of(arrays(rows), "poisson", None, ramp_s=0.2, schedule_start_ns=at_ms(0))
    assert window == Window("steady", at_ms(200), at_ms(990) + 1)
    started = window.holds_start(np.array([at_ms(190), at_ms(200), at_ms(990)]))
    assert started.tolist() == [False, True, True]
    # a ramp as long as the schedule leaves nothing
    assert window_of(arrays(rows), "poisson", None, ramp_s=1.0).kind == "whole"


@pytest.mark.parametrize(("inside", "kind"), [(0, "whole"), (1, "whole"), (2, "whole"), (3, "steady")])
def test_one_or_two_completions_make_no_rate(inside: int, kind: str) -> None:
    ends = [500] * inside + [2000] * (4 - inside)
    rows = [request(10 * i, end, scheduled_ns=at_ms(10 * i)) for i, end in enumerate(ends)]
    window = window_of(arrays([*rows, request(600, 2000, scheduled_ns=at_ms(600))]), "trace", None)
    assert window is not None and window.kind == kind


@given(
    spans=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=25),
    needed=st.integers(1, 6),
)
def test_span_agrees_with_counting_at_every_instant(spans: list[tuple[int, int]], needed: int) -> None:
    starts = np.array([start for start, _ in spans])
    ends = np.array([start + length for start, length in spans])
    loaded = [t for t in range(0, 71) if ((starts <= t) & (ends >= t)).sum() >= needed]
    assert span_of_load(starts, ends, needed) == ((loaded[0], loaded[-1]) if loaded else None)


@pytest.mark.parametrize("concurrency", [1, 3, 8, 64])
def test_back_to_back_streams_are_steady_throughout(concurrency: int) -> None:
    window = window_of(arrays(streams(concurrency, 4)), "closed", concurrency)
    assert window == Window("steady", at_ms(0), at_ms(400))
    assert math.isclose(window.duration_s, 0.4)


def test_starts_and_ends_at_the_edges_count_once() -> None:
    window, edges = Window("steady", 100, 200), np.array([99, 100, 101, 199, 200, 201])
    assert window.holds_start(edges).tolist() == [False, True, True, True, False, False]
    assert window.holds_end(edges).tolist() == [False, False, True, True, True, False]

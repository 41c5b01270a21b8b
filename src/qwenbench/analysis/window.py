"""The steady window of a load point: the time in which the load was really the load that was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwenbench.analysis.request_arrays import RequestArrays

IN_FLIGHT_SHARE = 0.95
"""A closed loop is steady while at least this share of its streams is in flight."""
MIN_MEDIAN_E2E = 3
"""A steady window lasts at least so many median request durations,"""
MIN_COMPLETIONS_PER_STREAM = 3
"""and holds at least so many completions per stream; else the whole point is the window."""

CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Window:
    """A span of CLOCK_REALTIME, ns. Requests start in [start, end); completions and tokens fall in (start, end]."""

    kind: str
    """`steady` or `whole`."""
    start_ns: int
    end_ns: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / 1e9

    def holds_start(self, times_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each time of a request's start: whether it lies in the window."""
        return (times_ns >= self.start_ns) & (times_ns < self.end_ns)

    def holds_end(self, times_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """For each time of a request's end: whether it lies in the window."""
        return (times_ns > self.start_ns) & (times_ns <= self.end_ns)


def window_of(
    requests: RequestArrays,
    shape: str,
    concurrency: int | None,
    ramp_s: float = 0.0,
    schedule_start_ns: int | None = None,
    schedule_s: float | None = None,
) -> Window | None:
    """The window of a load point, by the definition in docs/metrics.md; None when no request was sent.

    `shape` is `closed` or the name of an open loop's arrivals; `schedule_start_ns` is when an open loop's schedule
    began (unknown: its first arrival).
    """
    if requests.count == 0:
        return None
    if shape == CLOSED:
        found = _closed(requests, concurrency) if concurrency else None
    else:
        found = _open(requests, ramp_s, schedule_start_ns, schedule_s)
    return found or Window("whole", int(requests.begin_ns.min()), int(requests.ended_ns.max()))


def _closed(requests: RequestArrays, concurrency: int) -> Window | None:
    span = span_of_load(*_session_spans(requests), math.ceil(IN_FLIGHT_SHARE * concurrency))
    if span is None or not requests.ok.any():
        return None
    window = Window("steady", *span)
    shortest_ms = MIN_MEDIAN_E2E * float(np.nanmedian(requests.e2e_ms[requests.ok]))
    completions = int((window.holds_end(requests.ended_ns) & requests.ok).sum())
    if (window.end_ns - window.start_ns) / 1e6 < shortest_ms or completions < MIN_COMPLETIONS_PER_STREAM * concurrency:
        return None
    return window


def _session_spans(requests: RequestArrays) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First start and last end of each session: think time between its turns counts as in flight."""
    order = np.argsort(requests.session, kind="stable")
    sessions = requests.session[order]
    first = np.flatnonzero(np.r_[True, sessions[1:] != sessions[:-1]])
    starts = np.minimum.reduceat(requests.begin_ns[order], first)
    ends = np.maximum.reduceat(requests.ended_ns[order], first)
    return starts, ends


def span_of_load(starts_ns: NDArray[np.int64], ends_ns: NDArray[np.int64], needed: int) -> tuple[int, int] | None:
    """First and last instant at which at least `needed` of the spans [start, end] are open; None when never.

    At one time starts come before ends, so a span that begins as another one ends overlaps it.
    """
    starts, ends = np.sort(starts_ns), np.sort(ends_ns)

    def open_at(times: NDArray[np.int64]) -> NDArray[np.bool_]:
        level = np.searchsorted(starts, times, "right") - np.searchsorted(ends, times, "left")
        return np.asarray(level >= needed)

    enough_at_start = open_at(starts)
    if needed < 1 or not enough_at_start.any():
        return None
    # the level can only reach `needed` at a start, and can only leave it at an end
    first = starts[int(np.argmax(enough_at_start))]
    last = ends[len(ends) - 1 - int(np.argmax(open_at(ends)[::-1]))]
    return int(first), int(last)


def mean_in_flight(requests: RequestArrays, window: Window) -> float | None:
    """Sessions under way on average over the window; think time between the turns of a session counts."""
    length = window.end_ns - window.start_ns
    if length <= 0:
        return None
    starts, ends = _session_spans(requests)
    inside = np.minimum(ends, window.end_ns) - np.maximum(starts, window.start_ns)
    return float(np.clip(inside, 0, None).sum()) / length


def _open(
    requests: RequestArrays, ramp_s: float, schedule_start_ns: int | None, schedule_s: float | None
) -> Window | None:
    """The schedule of session starts without its ramp: as long as it was set, else to just past the last arrival.

    None when fewer than three requests were completed in it: no rate comes of one or two.
    """
    arrivals, _ = _session_spans(requests)
    begin = schedule_start_ns if schedule_start_ns is not None else int(arrivals.min())
    start, end = begin + round(ramp_s * 1e9), int(arrivals.max()) + 1
    if schedule_s is not None:
        end = max(end, begin + round(schedule_s * 1e9))
    window = Window("steady", start, end)
    if end - start <= 1 or not window.holds_start(requests.begin_ns).any():
        return None
    completions = int((window.holds_end(requests.ended_ns) & requests.ok).sum())
    return window if completions >= MIN_COMPLETIONS_PER_STREAM else None

"""Open loop: when sessions are due. Drawn before the point starts, from the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson

from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, read_input

Shape = Literal["poisson", "gamma", "constant"]


def arrival_times(
    rate: float, count: int, shape: Shape, random: np.random.Generator, burstiness: float = 1.0, ramp_s: float = 0.0
) -> npt.NDArray[np.float64]:
    """`count` start times in seconds, ascending from 0.

    Gaps have mean 1/rate: constant; exponential (Poisson); or gamma with shape parameter `burstiness`
    (1 is Poisson, below 1 burstier; the convention of vLLM's --burstiness). During the first `ramp_s`
    seconds the rate grows linearly from 0, by stretching the time axis: t = sqrt(2 ramp u) for u <= ramp/2.
    """
    if shape == "constant":
        gaps = np.full(count, 1.0 / rate)
    elif shape == "poisson":
        gaps = random.exponential(1.0 / rate, count)
    else:
        gaps = random.gamma(burstiness, 1.0 / (rate * burstiness), count)
    even = np.concatenate(([0.0], np.cumsum(gaps)[:-1])) if count else np.zeros(0)
    if ramp_s <= 0:
        return even
    return np.where(even <= ramp_s / 2, np.sqrt(2 * ramp_s * even), even + ramp_s / 2)


def arrivals_within(
    rate: float,
    duration_s: float,
    shape: Shape,
    random: np.random.Generator,
    burstiness: float = 1.0,
    ramp_s: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Start times that fill a duration: as many as are drawn before it ends, ascending from 0; see arrival_times.

    A fixed number of arrivals would end early or late by chance, and with them the time over which rates are counted.
    """
    count = max(1, math.ceil(rate * duration_s + 6 * math.sqrt(rate * duration_s / min(burstiness, 1.0)) + 6))
    times = arrival_times(rate, count, shape, random, burstiness, ramp_s)
    while times[-1] < duration_s:  # a burst of chance: the same draw continued
        more = arrival_times(rate, count, shape, random, burstiness)
        gap = arrival_times(rate, 2, shape, random, burstiness)[1]
        times = np.concatenate((times, times[-1] + gap + more))
    return times[times < duration_s]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace."""

    start_s: float
    input_tokens: int | None = None
    output_tokens: int | None = None


def load_trace(path: Path) -> list[TraceRow]:
    """Reads a JSONL trace: rows of {"timestamp": seconds, "input_tokens"?: N, "output_tokens"?: N}.

    Rows with input_length / output_length are Mooncake's form, whose timestamps are milliseconds. Times count from the
    first row's. Raises UsageError with the line: no JSON, no timestamp, times that go backwards.
    """
    lines = read_input(path, "--trace", GIB).split(b"\n")
    rows: list[TraceRow] = []
    numbers: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(_trace_row(line, f"--trace {path}, line {number}"))
            numbers.append(number)
    if not rows:
        raise UsageError(f"--trace {path}: holds no row.")
    for (before, after), number in zip(pairwise(rows), numbers[1:], strict=True):
        if after.start_s < before.start_s:
            raise UsageError(
                f"--trace {path}, line {number}: timestamp {after.start_s:g} lies before the one above it, "
                f"{before.start_s:g}. Sort the trace by time."
            )
    first = rows[0].start_s
    return [TraceRow(row.start_s - first, row.input_tokens, row.output_tokens) for row in rows]


def _trace_row(line: bytes, where: str) -> TraceRow:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{where}: no valid JSON: {error}.") from error
    if not isinstance(row, dict):
        raise UsageError(f"{where}: each line must be one JSON object.")
    mooncake = "input_length" in row or "output_length" in row
    names = ("input_length", "output_length") if mooncake else ("input_tokens", "output_tokens")
    time = row.get("timestamp")
    if isinstance(time, bool) or not isinstance(time, int | float) or not np.isfinite(time):
        raise UsageError(f"{where}: timestamp must be a number of {'milliseconds' if mooncake else 'seconds'}.")
    for field in names:
        value = row.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UsageError(f"{where}: {field} must be a whole number from 1.")
    return TraceRow(time / 1000 if mooncake else float(time), row.get(names[0]), row.get(names[1]))

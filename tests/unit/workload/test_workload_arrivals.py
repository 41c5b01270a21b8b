"""Open loop: mean rates, burstiness, ramp and traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.workload.arrivals import Shape, TraceRow, arrival_times, read_trace


def gaps(shape: Shape, burstiness: float = 1.0, rate: float = 5.0) -> np.ndarray:
    return np.diff(arrival_times(rate, 20_000, shape, np.random.default_rng(3), burstiness))


@given(
    st.sampled_from(["poisson", "gamma", "constant"]),
    st.floats(0.01, 1000),
    st.integers(0, 50),
    st.floats(0.05, 20),
    st.floats(0, 60),
    st.integers(0, 1000),
)
def test_times_ascend_from_zero(
    shape: Shape, rate: float, count: int, burstiness: float, ramp_s: float, seed: int
) -> None:
    times = arrival_times(rate, count, shape, np.random.default_rng(seed), burstiness, ramp_s)
    assert len(times) == count
    assert np.all(np.diff(times) >= 0)
    assert count == 0 or times[0] == 0


def test_the_same_seed_gives_the_same_schedule() -> None:
    one, other = (arrival_times(2, 50, "poisson", np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "burstiness"), [("poisson", 1.0), ("gamma", 0.25), ("gamma", 4.0), ("constant", 1.0)]
)
def test_every_shape_has_the_rate_that_was_asked_for(shape: Shape, burstiness: float) -> None:
    assert np.mean(gaps(shape, burstiness)) == pytest.approx(1 / 5, rel=0.04)


@pytest.mark.parametrize(("shape", "burstiness"), [("poisson", 1.0), ("gamma", 1.0), ("gamma", 0.25), ("gamma", 4.0)])
def test_burstiness_is_the_shape_of_a_gamma(shape: Shape, burstiness: float) -> None:
    """vLLM's convention: a gamma's coefficient of variation is 1/sqrt(shape); below 1 is burstier than Poisson."""
    drawn = gaps(shape, burstiness)
    assert np.std(drawn) / np.mean(drawn) == pytest.approx(1 / np.sqrt(burstiness), rel=0.06)


def test_a_constant_rate_is_constant() -> None:
    assert arrival_times(4, 5, "constant", np.random.default_rng(0)) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_the_rate_grows_linearly_during_the_ramp() -> None:
    """At rate 100 over a ramp of 10 s: N(t) = rate t^2 / (2 ramp), so 125 by 5 s and 500 by 10 s, then 100 a second."""
    times = arrival_times(100, 2000, "constant", np.random.default_rng(0), ramp_s=10)
    assert np.searchsorted(times, 5) == pytest.approx(125, abs=2)
    assert np.searchsorted(times, 10) == pytest.approx(500, abs=2)
    assert np.searchsorted(times, 15) - np.searchsorted(times, 10) == pytest.approx(500, abs=2)


def trace(folder: Path, text: str) -> Path:
    path = folder / "trace.jsonl"
    path.write_text(text)
    return path


def test_a_trace_counts_from_its_first_row(tmp_path: Path) -> None:
    path = trace(tmp_path, '{"timestamp": 1000.5}\n\n{"timestamp": 1002, "input_tokens": 8, "output_tokens": 4}\n')
    assert list(read_trace(path).rows) == [TraceRow(0.0), TraceRow(1.5, 8, 4)]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("nope", "row 3: no valid JSON"),
        ("[1]", "row 3: a JSON object with named columns was expected"),
        ("{}", "row 3: timestamp must be a number"),
        ('{"timestamp": true}', "row 3: timestamp must be a number"),
        ('{"timestamp": 0.5}', "row 3: timestamp 0.5 lies before the one above it, 1"),
        ('{"timestamp": 2, "input_tokens": 0}', "row 3: input_tokens must be a whole number"),
        ('{"timestamp": 2, "output_tokens": 1.5}', "row 3: output_tokens must be a whole number"),
    ],
)
def test_a_broken_row_is_told_with_its_line(tmp_path: Path, row: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_trace(trace(tmp_path, f'{{"timestamp": 1}}\n\n{row}\n'))


def test_a_mooncake_trace_is_in_milliseconds(tmp_path: Path) -> None:
    rows = (
        '{"timestamp": 500, "input_length": 6758, "output_length": 500, "hash_ids": [0]}\n'
        '{"timestamp": 3500, "input_length": 7322, "output_length": 490, "hash_ids": [0, 1]}\n'
    )
    assert list(read_trace(trace(tmp_path, rows)).rows) == [TraceRow(0.0, 6758, 500), TraceRow(3.0, 7322, 490)]


def test_an_empty_or_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no row"):
        read_trace(trace(tmp_path, "\n"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_trace(tmp_path / "none.jsonl")

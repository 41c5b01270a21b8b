"""What a prompt costs by its length: floor, slope and the length between, from recorded TTFTs and from planted ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.analysis.endurance import prefill_cost

DATA = Path(__file__).parents[2] / "data" / "prefill"


def recorded(name: str) -> list[tuple[int, float]]:
    return [(int(length), float(ms)) for length, ms in json.loads((DATA / f"{name}.json").read_text())]


def test_an_h100_whose_host_is_slower_than_short_prompts() -> None:
    """(tokens, TTFT in ms) at one stream on capture 64, as its recorded load gave them."""
    cost = prefill_cost(recorded("h100-vllm-0.26.0-alone-cap64"))
    assert cost is not None
    assert cost.floor_ms == pytest.approx(78, abs=4)
    assert cost.same_cost_up_to_tokens == 804
    assert cost.ms_per_token is None, "one length above the floor shows no slope"
    assert "78 ms" in cost.sentence()
    assert "the host's time" in cost.sentence()


def test_floor_and_slope_meet() -> None:
    cost = prefill_cost(recorded("h100-vllm-0.26.0-pair-cap64"))
    assert cost is not None
    assert cost.ms_per_token == pytest.approx(0.046, abs=0.003)
    assert cost.same_cost_up_to_tokens is not None
    assert 909 <= cost.same_cost_up_to_tokens <= 1800


@given(
    floor=st.floats(20.0, 200.0),
    slope=st.floats(0.01, 0.2),
    knee=st.integers(300, 1500),
)
def test_a_planted_cost_is_found(floor: float, slope: float, knee: int) -> None:
    lengths = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    times = [max(floor, floor + slope * (length - knee)) for length in lengths]
    cost = prefill_cost(list(zip(lengths, times, strict=True)))
    assert cost is not None
    assert cost.floor_ms == pytest.approx(floor, rel=0.2)
    assert cost.same_cost_up_to_tokens is not None
    assert cost.same_cost_up_to_tokens >= 0.49 * knee
    if cost.ms_per_token is not None:
        assert cost.ms_per_token == pytest.approx(slope, rel=0.25)


def test_where_every_token_counts_there_is_no_floor() -> None:
    cost = prefill_cost([(64, 10.0), (256, 30.0), (1024, 110.0), (2048, 215.0)])
    assert cost is not None
    assert cost.floor_ms is None
    assert cost.ms_per_token == pytest.approx(0.103, abs=0.005)
    assert "no length is seen" in cost.sentence()


def test_a_cost_that_hardly_grows_is_the_hosts_although_its_floor_is_lost_in_scatter() -> None:
    # Two H100s and two servers on one host: the floor is there, its end is not seen.
    cost = prefill_cost([(127, 91.0), (248, 67.0), (489, 102.0), (946, 109.0), (1896, 105.0), (3816, 195.0)])
    assert cost is not None
    assert cost.floor_ms is None
    assert cost.fixed_ms == pytest.approx(76, abs=3)
    assert "mostly the host's time" in cost.sentence() and "device" not in cost.sentence()


def test_a_floor_that_reaches_past_the_longest_prompt_says_so() -> None:
    cost = prefill_cost([(64, 80.0), (512, 81.0), (2048, 82.0)])
    assert cost is not None
    assert (cost.same_cost_up_to_tokens, cost.at_least, cost.ms_per_token) == (2048, True, None)
    assert "perhaps further" in cost.sentence()


def test_one_length_tells_nothing() -> None:
    assert prefill_cost([]) is None
    assert prefill_cost([(100, 5.0), (104, 6.0)]) is None


def test_times_that_only_scatter_are_no_price_of_length() -> None:
    # vLLM on two crowded CPU cores: the first request was the slowest, no slope is left.
    seen = [(76, 100.752), (140, 45.221), (268, 74.767), (524, 60.609), (1036, 76.641)]
    cost = prefill_cost(seen)
    assert cost is not None and cost.floor_ms is None and cost.ms_per_token is None
    assert "cannot be told" in cost.sentence() and "45 to 101 ms" in cost.sentence()
    assert "takes longer" not in cost.sentence()

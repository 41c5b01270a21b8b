"""The price of capture, on the recorded servers' figures and on made-up repeats."""

from __future__ import annotations

import pytest
from pandas import DataFrame

from qwenbench.analysis.price import Price, captures_reached, price_of_capture, reach_notes
from qwenbench.analysis.run import point_frame

# The recorded H200 servers (docs/memory.md): KV GiB, blocks, graphs, start-up s, tok/s and ITL at 16 streams.
RECORDED = {
    "c16": (16, 17.32, 1074, 0.08, 186.2, 1552.2, 5.20),
    "c32": (32, 17.31, 1074, 0.09, 167.7, 1628.0, 5.20),
}


def point(config: str, capture: int, **values: object) -> dict[str, object]:
    return {
        "config_id": config, "capture": capture, "max_num_seqs": capture, "gpu_memory_utilization": 0.95,
        "scenario": "code", "profile": "none", "load_shape": "closed", "concurrency": 16, "rate": float("nan"),
        "repeat": 1, "launch": 1, "valid": True, **values,
    }  # fmt: skip


def of(prices: list[Price], metric: str) -> list[Price]:
    return [price for price in prices if price.metric == metric]


def test_one_launch_of_each() -> None:
    points = point_frame(
        point(name, capture, kv_cache_gib=kv, kv_cache_blocks=blocks, startup_s=start, output_tokens_per_s=speed,
              itl_ms_p50=itl, requests_that_fit=(blocks - 1) // 5)
        for name, (capture, kv, blocks, _, start, speed, itl) in RECORDED.items()
    )  # fmt: skip
    ledgers = {name: {"graphs_actual_gib": values[3], "capture_s": None} for name, values in RECORDED.items()}
    prices = price_of_capture(points, ledgers)
    (kv,) = of(prices, "kv_cache_gib")
    assert (kv.smaller.capture, kv.larger.capture, kv.larger.max_num_seqs) == (16, 32, 32)
    assert kv.change == pytest.approx(-0.01)
    assert kv.low == pytest.approx(-0.02) and kv.high == pytest.approx(0.0) and kv.basis == "rounding"
    (graphs,), (fit,) = of(prices, "graphs_actual_gib"), of(prices, "requests_that_fit")
    assert graphs.change == pytest.approx(0.01) and fit.change == 0
    (speed,) = of(prices, "output_tokens_per_s")
    assert speed.change == pytest.approx(75.8)
    assert speed.low is None and speed.basis == "indicative"
    assert (speed.load.scenario, speed.load.concurrency) == ("code", 16)
    # What neither the points nor the ledger knows has no price, rather than a 0.
    assert not of(prices, "capture_s")


def test_repeats_give_an_interval_that_holds_the_change() -> None:
    points = point_frame(
        point(f"c{capture}", capture, repeat=repeat, launch=repeat, output_tokens_per_s=1000 + capture + noise,
              startup_s=100.0 + capture + noise)
        for capture in (16, 32, 64)
        for repeat, noise in ((1, -2.0), (2, 0.0), (3, 2.0))
    )  # fmt: skip
    prices = price_of_capture(points, {})
    speed = of(prices, "output_tokens_per_s")
    assert [(price.smaller.capture, price.larger.capture) for price in speed] == [(16, 32), (32, 64)]
    assert [price.change for price in speed] == [16.0, 32.0]
    for price in speed:
        assert price.low is not None and price.high is not None and price.low < price.change < price.high
        assert price.basis == "repeats"
    assert [price.basis for price in of(prices, "startup_s")] == ["repeats", "repeats"]


def test_only_equal_configurations_are_compared() -> None:
    points = point_frame(
        [
            point("a", 16, max_num_seqs=16, output_tokens_per_s=1.0),
            point("b", 32, max_num_seqs=16, output_tokens_per_s=2.0),
            point("c", 32, max_num_seqs=32, output_tokens_per_s=3.0),
            point("d", 64, max_num_seqs=64, gpu_memory_utilization=0.8, output_tokens_per_s=4.0),
            point("e", 64, max_num_seqs=64, valid=False, output_tokens_per_s=5.0),
        ]
    )
    steps = {(price.smaller.config_id, price.larger.config_id) for price in price_of_capture(points, {})}
    # a -> c: max-num-seqs follows capture; a -> b: it stays 16.
    assert steps == {("a", "c"), ("a", "b")}


def test_loads_that_only_one_side_has_are_left_out() -> None:
    points = point_frame(
        [
            point("a", 16, concurrency=8, output_tokens_per_s=1.0),
            point("b", 32, concurrency=16, output_tokens_per_s=2.0),
            point("a", 16, load_shape="poisson", concurrency=float("nan"), rate=2.0, output_tokens_per_s=3.0),
            point("b", 32, load_shape="poisson", concurrency=float("nan"), rate=2.0, output_tokens_per_s=5.0),
        ]
    )
    (speed,) = of(price_of_capture(points, {}), "output_tokens_per_s")
    assert speed.change == 2.0 and speed.load.rate == 2.0


@pytest.mark.parametrize("points", [point_frame([]), point_frame([point("a", 16)])])
def test_without_two_capture_sizes_there_is_no_price(points: DataFrame) -> None:
    assert price_of_capture(points, {}) == []


def reached(capture: int, prompt: float, ttft: float, *, seqs: int = 64) -> dict[str, object]:
    """A point of 10 requests a second with prompts of a mean length."""
    return point(f"c{capture}s{seqs}", capture, max_num_seqs=seqs, requests_per_s=10.0, input_tokens_per_s=10 * prompt,
                 ttft_ms_p50=ttft, output_tokens_per_s=1e5 / ttft, kv_cache_gib=17 - capture / 2000)  # fmt: skip


def test_prompts_between_two_captures_show_the_second_gain() -> None:
    points = point_frame([reached(64, 240, 89), reached(512, 240, 60), reached(1024, 240, 61)])
    (found,) = captures_reached(points)
    assert (found.larger, found.smaller, found.ttft_ms) == ("c512s64", "c64s64", (60, 89)), "the nearest on each side"
    assert "about 240 tokens fit under capture 512, not under 64: TTFT p50 at 16 streams 60 ms for 89" in str(found)
    assert str(found).endswith("for 0.22 GiB of KV cache")
    assert list(reach_notes(points, "c64s64", 16)) == [str(found)], "the answer says what the other capture gave"


@pytest.mark.parametrize("points", [
    [reached(16, 240, 89, seqs=16), reached(512, 240, 60, seqs=512)],
    [reached(64, 40, 89), reached(512, 40, 60)],
    [reached(64, 1600, 89), reached(2048, 1600, 60)],
])  # fmt: skip
def test_nothing_is_said_where_capture_is_not_what_differs_or_no_prompt_lies_between(
    points: list[dict[str, object]],
) -> None:
    assert captures_reached(point_frame(points)) == ()


def test_without_a_larger_capture_the_answer_tells_what_one_gave_elsewhere_and_costs() -> None:
    (note,) = reach_notes(point_frame([reached(64, 240, 89)]), "c64s64", 16)
    assert "--capture 512 --max-num-seqs 64" in note and "anything from nothing to that" in note
    assert list(reach_notes(point_frame([reached(512, 240, 60)]), "c512s64", 16)) == [], "its prompts fit"

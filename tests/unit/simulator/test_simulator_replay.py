"""Points in virtual time, as calibration and the benchmark of tuning ask for them."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from qwenbench.errors import UsageError
from qwenbench.simulator.hosts import to_json
from qwenbench.simulator.replay import CannotStart, LoadShape, simulate_point
from qwenbench.simulator.steptime import typical_host

CONFIGURATION: dict[str, Any] = {
    "max-num-seqs": 64,
    "max-cudagraph-capture-size": 64,
    "gpu-memory-utilization": 0.37658,
    "max-model-len": "auto",
    "sim-card": "h100",
}
LOAD = LoadShape(64, (461, 1814), (64, 192), requests=128)


def test_equal_questions_get_equal_answers_and_every_figure_is_there() -> None:
    point = simulate_point(CONFIGURATION, LOAD)
    assert point == simulate_point(CONFIGURATION, LOAD)
    assert all(math.isfinite(value) for value in asdict(point).values())
    assert point.running_peak == 64 and point.kv_cache_gib == pytest.approx(16.97, abs=0.05)
    assert point.ttft_ms_p50 <= point.ttft_ms_p90 <= point.ttft_ms_p99


@pytest.mark.parametrize(
    ("change", "environ"),
    [
        ({"max-num-batched-tokens": 1024}, {}),
        ({"no-async-scheduling": None}, {}),
        ({"max-cudagraph-capture-size": 16}, {}),
        ({}, {"VLLM_USE_FLASHINFER_SAMPLER": "0"}),
        ({"max-num-seqs": 16}, {}),
        ({"sim-host-pace": 1.3}, {}),
        ({"spec-method": "mtp", "spec-tokens": 3}, {}),
    ],
)
def test_settings_that_cost_speed_cost_it(change: dict[str, Any], environ: dict[str, str]) -> None:
    best = simulate_point(CONFIGURATION, LOAD)
    worse = simulate_point(CONFIGURATION | change, LOAD, environ=environ)
    assert worse.output_tokens_per_s < 0.98 * best.output_tokens_per_s


def test_a_drafter_pays_where_its_tokens_are_accepted_and_streams_are_few() -> None:
    drafter = CONFIGURATION | {"spec-method": "mtp", "spec-tokens": 3}
    one = LoadShape(1, (461, 1814), (64, 192))
    plain = simulate_point(CONFIGURATION, one).output_tokens_per_s
    assert simulate_point(drafter | {"sim-acceptance": 0.9}, one).output_tokens_per_s > plain
    assert simulate_point(drafter, one).output_tokens_per_s < plain


def test_spread_differs_between_launches_and_points_and_only_when_asked() -> None:
    def rate(flags: dict[str, Any], **more: Any) -> float:
        return simulate_point(CONFIGURATION | flags, LOAD, **more).output_tokens_per_s

    assert rate({}, launch=1) == rate({}, launch=2)
    spread = {"sim-spread": None}
    values = [rate(spread, launch=launch) for launch in range(1, 9)]
    assert len(set(values)) == 8 and max(values) > 1.03 * min(values)
    assert rate(spread, launch=1, point=1) != rate(spread, launch=1, point=2)


def test_what_cannot_start_says_why_in_vllms_words() -> None:
    with pytest.raises(CannotStart, match="No available memory for the cache blocks"):
        simulate_point(CONFIGURATION | {"gpu-memory-utilization": 0.1}, LOAD)
    with pytest.raises(CannotStart, match="is less than desired GPU memory utilization"):
        simulate_point(CONFIGURATION | {"gpu-memory-utilization": 0.999}, LOAD)
    with pytest.raises(UsageError, match="unrecognized arguments"):
        simulate_point(CONFIGURATION | {"nonsense": 1}, LOAD)
    with pytest.raises(UsageError, match="at least one stream"):
        simulate_point(CONFIGURATION, replace(LOAD, streams=0))


def test_a_slower_host_makes_stalls_longer_and_leaves_the_decode_step(tmp_path: Path) -> None:
    usual = typical_host()
    slower = replace(usual, launch_ms=2 * usual.launch_ms)
    (tmp_path / "slow.json").write_text(json.dumps(to_json(slower)))
    fast, slow = (
        simulate_point(CONFIGURATION | {"sim-host": host}, replace(LOAD, streams=16, requests=64))
        for host in ("typical", str(tmp_path / "slow.json"))
    )
    assert slow.itl_stall_share > fast.itl_stall_share and slow.output_tokens_per_s < fast.output_tokens_per_s
    assert slow.itl_ms_p50 == pytest.approx(fast.itl_ms_p50, rel=0.05)

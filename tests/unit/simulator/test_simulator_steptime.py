"""The step-time model, its calibration file, and the meters that follow the steps."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.cards import CARDS, find_card
from qwenbench.errors import UsageError
from qwenbench.simulator.hosts import to_json
from qwenbench.simulator.meters import EnergyMeter, Histogram, Lateness
from qwenbench.simulator.scheduler import Step
from qwenbench.simulator.steptime import (
    StepSettings,
    StepShape,
    calibration,
    find_host,
    gpu_times,
    measured_hosts,
    step_model,
    typical_host,
)

H200 = step_model(find_card("h200"), "h200-vllm-0.20.2", version="0.20.2")
H100 = step_model(find_card("h100"), "h100-vllm-0.26.0-pair", version="0.26.0")
SLOW_SAMPLER = StepSettings(64, 64, flashinfer_sampler=False)


@pytest.mark.parametrize(("batch", "itl_ms"), [(1, 4.4), (16, 5.2), (32, 6.0), (64, 8.2), (128, 13.0)])
def test_recorded_captured_steps(batch: int, itl_ms: float) -> None:
    assert H200.decode_ms(batch, 128) == pytest.approx(itl_ms, rel=0.05)


@pytest.mark.parametrize(("batch", "itl_ms"), [(128, 24.0), (214, 25.1)])
def test_recorded_steps_above_the_captured_size(batch: int, itl_ms: float) -> None:
    assert H200.decode_ms(batch, 64) == pytest.approx(itl_ms, rel=0.2)


@pytest.mark.parametrize(
    ("rows", "filtered", "penalised", "itl_ms"),
    [(16, 0, 0, 6.0), (64, 0, 0, 10.0), (16, 16, 0, 9.0), (64, 64, 0, 14.0), (16, 16, 16, 9.2), (64, 64, 64, 14.6)],
)
def test_recorded_price_of_sampling_fields(rows: int, filtered: int, penalised: int, itl_ms: float) -> None:
    shape = StepShape(rows, 0, rows * 1250, 0, filtered, penalised)
    assert max(H100.step_ms(shape, SLOW_SAMPLER)) == pytest.approx(itl_ms, rel=0.08)


@pytest.mark.parametrize(("tokens", "gpu_ms"), [(452, 23.8), (900, 40.0), (1793, 75.0), (2048, 83.8)])
def test_prefill_on_the_gpu_as_the_trace_shows_it(tokens: int, gpu_ms: float) -> None:
    assert H100.step_ms(StepShape(prefill_tokens=tokens, prompts=1), SLOW_SAMPLER)[1] == pytest.approx(gpu_ms, rel=0.05)


@pytest.mark.parametrize(("prompt", "step_ms"), [(8_188, 342.0), (32_687, 352.0)])
def test_recorded_steps_of_8192_tokens_of_long_prompts(prompt: int, step_ms: float) -> None:
    attended = 8_192 * prompt / 2
    times = H100.step_ms(StepShape(prefill_tokens=8_192, prompts=2, attended=attended), SLOW_SAMPLER)
    assert max(times) == pytest.approx(step_ms, rel=0.06)


@given(st.integers(1, 600), st.integers(0, 512))
def test_a_larger_batch_is_never_faster_within_one_mode(batch: Any, captured: Any) -> None:
    if (batch <= captured) == (batch + 1 <= captured):
        assert H200.decode_ms(batch + 1, captured) >= H200.decode_ms(batch, captured)


@given(st.integers(0, 300), st.integers(1, 8192))
def test_prefill_costs_more_with_more_tokens_and_more_company(decodes: Any, tokens: Any) -> Any:
    def mixed(more_decodes: Any, more_tokens: Any) -> Any:
        return max(H100.step_ms(StepShape(decodes + more_decodes, tokens + more_tokens), SLOW_SAMPLER))

    assert mixed(0, 1) >= mixed(0, 0)
    assert mixed(1, 0) > mixed(0, 0)


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_card_is_scaled_and_a_slower_one_is_not_faster(name: str) -> None:
    card = find_card(name)
    times, known = gpu_times(card), gpu_times(find_card("h100"))
    if card.bandwidth_gb_s < find_card("h100").bandwidth_gb_s:
        assert times.decode(64) > known.decode(64)
    if card.bf16_tflops < find_card("h100").bf16_tflops:
        assert times.prefill_token_ms > known.prefill_token_ms
    assert step_model(card).host == typical_host()


def test_long_contexts_cost_their_bytes_over_the_bandwidth() -> None:
    short, long = (H200.step_ms(StepShape(64, 0, 64 * each), SLOW_SAMPLER)[1] for each in (500, 32_000))
    at_full_bandwidth_ms = 64 * 31_500 * 32_768 / 4.8e12 * 1e3
    assert at_full_bandwidth_ms < long - short < 2.5 * at_full_bandwidth_ms


def test_stretched_time_stretches_every_kind_of_step() -> None:
    slow = H200.stretched(10)
    for args in ((1,), (100,), (3, 500), (3, 2048), (64, 0, 60_000, 0, 64, 64)):
        shape = StepShape(*args)
        expected = [10 * value for value in H200.step_ms(shape, SLOW_SAMPLER)]
        assert slow.step_ms(shape, SLOW_SAMPLER) == pytest.approx(expected)
        assert slow.serial_ms(shape) == pytest.approx(10 * H200.serial_ms(shape))


def test_a_host_by_name_from_a_file_or_typical(tmp_path: Path) -> None:
    for name in measured_hosts():
        assert find_host(name).name == name
    fast, *_, slow = sorted(measured_hosts().values(), key=lambda host: host.launch_ms)
    assert fast.launch_ms <= find_host(None).launch_ms <= slow.launch_ms
    (tmp_path / "mine.json").write_text(json.dumps(to_json(slow)))
    assert find_host(str(tmp_path / "mine.json")) == slow
    (tmp_path / "broken.json").write_text("{}")
    for name in ("nowhere", str(tmp_path / "broken.json")):
        with pytest.raises(UsageError, match="--sim-host"):
            find_host(name)


def test_the_file_says_where_it_comes_from_and_has_both_starts() -> None:
    values = calibration()
    assert values["provenance"]["fitted_to"]
    cold, warm = values["startup"]["cold"], values["startup"]["warm"]
    assert set(cold) == set(warm) == {"import_s", "load_s", "compile_s", "profile_s", "graphs_s", "api_s"}
    assert sum(warm.values()) < 0.5 * sum(cold.values())


def test_lateness_percentile_and_mean() -> None:
    late = Lateness()
    assert late.mean_ms == late.p99_ms == 0
    late.add(1.0, 990)
    late.add(50.0, 10)
    assert late.mean_ms == pytest.approx(1.49)
    assert late.p99_ms == pytest.approx(1.05, abs=0.01)
    late.add(50.0, 10)
    assert late.p99_ms == pytest.approx(50.05, abs=0.01)


@given(st.lists(st.floats(0, 5000), max_size=50))
def test_histogram_counts_everything_once(values: Any) -> None:
    histogram = Histogram("sizes", "of a test", (1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.counts[0] == sum(value <= 1.0 for value in values)


def test_energy_is_power_times_time() -> None:
    now = [0.0]
    meter = EnergyMeter(
        {"idle_w": 100, "busy_share": 0.5, "per_sequence_share": 0, "prefill_share": 1}, 300, lambda: now[0]
    )
    meter.step(Step([], 0, 4, 0.0, 0.0, 2.0, whole=True))
    now[0] = 5.0
    assert meter.energy_j == pytest.approx(2 * 200 + 3 * 100)
    assert meter.power_w == 100

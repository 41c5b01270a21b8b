"""The step-time model, its calibration file, and the meters that follow the steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.cards import CARDS, find_card
from qwenbench.simulator.meters import EnergyMeter, Lateness
from qwenbench.simulator.metrics import Histogram
from qwenbench.simulator.scheduler import Step
from qwenbench.simulator.startup import PHASES
from qwenbench.simulator.steptime import calibrated_model, calibration, relative_speed, step_model

MODEL = calibrated_model()


@pytest.mark.parametrize(("batch", "itl_ms"), [(1, 4.4), (16, 5.2), (32, 6.0), (64, 8.2), (128, 13.0)])
def test_recorded_captured_steps(batch, itl_ms):
    assert MODEL.decode_ms(batch, 128) == pytest.approx(itl_ms, rel=0.05)


@pytest.mark.parametrize(("batch", "itl_ms"), [(128, 24.0), (214, 25.1)])
def test_recorded_steps_above_the_captured_size(batch, itl_ms):
    assert MODEL.decode_ms(batch, 64) == pytest.approx(itl_ms, rel=0.05)


@given(st.integers(1, 600), st.integers(0, 512))
def test_a_larger_batch_is_never_faster_within_one_mode(batch, captured):
    if (batch <= captured) == (batch + 1 <= captured):
        assert MODEL.decode_ms(batch + 1, captured) >= MODEL.decode_ms(batch, captured)


@given(st.integers(0, 300), st.integers(1, 8192))
def test_prefill_costs_more_with_more_tokens_and_more_company(decodes, tokens):
    assert MODEL.mixed_ms(decodes, tokens + 1) >= MODEL.mixed_ms(decodes, tokens) >= MODEL.mixed_floor_ms
    assert MODEL.mixed_ms(decodes + 1, tokens) > MODEL.mixed_ms(decodes, tokens)


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_card_is_scaled_and_a_slower_one_is_not_faster(name):
    model, (bandwidth, compute) = step_model(find_card(name)), relative_speed(find_card(name))
    assert (model.decode_ms(1, 64) >= MODEL.decode_ms(1, 64)) == (bandwidth <= 1)
    assert (model.mixed_ms(0, 2048) >= MODEL.mixed_ms(0, 2048)) == (compute <= 1)
    assert step_model(find_card("h200")) == MODEL


def test_long_contexts_cost_their_bytes_over_the_bandwidth():
    (_, short), (_, long) = MODEL.step_ms(64, 0, 64 * 500, 64), MODEL.step_ms(64, 0, 64 * 32_000, 64)
    at_full_bandwidth_ms = 64 * 31_500 * 32_768 / 4.8e12 * 1e3
    assert at_full_bandwidth_ms < long - short < 2.5 * at_full_bandwidth_ms


def test_stretched_time_stretches_every_kind_of_step():
    slow = MODEL.stretched(10)
    for args in ((1, 0, 0, 64), (100, 0, 0, 64), (3, 500, 0, 64), (3, 2048, 0, 64)):
        assert slow.step_ms(*args) == pytest.approx([10 * value for value in MODEL.step_ms(*args)])


def test_the_file_says_where_it_comes_from_and_has_both_starts():
    values = calibration()
    assert values["provenance"]["fitted_to"]
    cold, warm = values["startup"]["cold"], values["startup"]["warm"]
    assert set(cold) == set(warm) == set(PHASES)
    assert sum(warm.values()) < 0.5 * sum(cold.values())


def test_lateness_percentile_and_mean():
    late = Lateness()
    assert late.mean_ms == late.p99_ms == 0
    late.add(1.0, 990)
    late.add(50.0, 10)
    assert late.mean_ms == pytest.approx(1.49)
    assert late.p99_ms == pytest.approx(1.05, abs=0.01)
    late.add(50.0, 10)
    assert late.p99_ms == pytest.approx(50.05, abs=0.01)


@given(st.lists(st.floats(0, 5000), max_size=50))
def test_histogram_counts_everything_once(values):
    histogram = Histogram((1.0, 10.0, 100.0))
    for value in values:
        histogram.observe(value)
    assert sum(histogram.counts) == len(values)
    assert histogram.counts[0] == sum(value <= 1.0 for value in values)


def test_energy_is_power_times_time():
    now = [0.0]
    meter = EnergyMeter(
        {"idle_w": 100, "busy_share": 0.5, "per_sequence_share": 0, "prefill_share": 1}, 300, lambda: now[0]
    )
    meter.step(Step([], 0, 4, 0.0, 2.0))
    now[0] = 5.0
    assert meter.energy_j == pytest.approx(2 * 200 + 3 * 100)
    assert meter.power_w == 100

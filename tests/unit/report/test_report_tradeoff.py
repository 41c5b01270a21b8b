"""The trade-off figure: what it claims in words, which panels it has, and that its axes begin at zero."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.run import Run
from qwenbench.report.answer import answered
from qwenbench.report.page_data import _gpu_words, page_data
from qwenbench.report.tradeoff import MOST_LANES, Tradeoff, faster, tradeoff_of
from qwenbench.report.tradeoff_drawing import file_svg, picture

Planted = Callable[..., Run]


def drawn(run: Run, users: int | None = None) -> Tradeoff:
    found = tradeoff_of(page_data(run, samples=False), answered(run, Question(users=users)))
    assert found is not None
    return found


def with_rates(run: Run, rates: dict[tuple[str, int], float]) -> Run:
    """The same run with these output tokens/s by scenario and capture."""
    points = run.points.copy()
    for (scenario, capture), rate in rates.items():
        here = (points["scenario"] == scenario) & (points["capture"] == capture)
        points.loc[here, "output_tokens_per_s"] = rate
    return replace(run, points=points)


def test_captures_that_buy_nothing_are_called_nothing(planted: Planted) -> None:
    figure = drawn(planted())
    assert figure.title.startswith("Capture 64 to 16 frees 0.05 of 17.3 GiB of KV cache: nothing.")
    assert "At 64 streams capture 64 gives" in figure.title


def test_a_kv_cache_that_is_larger_is_said_to_be(planted: Planted) -> None:
    figure = drawn(planted(captures=(32,), utilizations=(0.9, 0.95)))
    assert figure.title.startswith("cap32-seq32-util0.95 holds 1.57 GiB more KV cache than cap32-seq32-util0.9, 9 %")
    assert "are not told apart" in figure.title


def test_scenarios_that_agree_share_a_panel_and_those_that_do_not_have_their_own(planted: Planted) -> None:
    run = planted(captures=(16, 64), scenarios=("math", "code"), concurrencies=(64,), repeats=3)
    agreeing = drawn(run)
    assert [panel.title for panel in agreeing.panels] == [""] and "which agree" in agreeing.subtitle
    rates = {("math", 16): 900.0, ("math", 64): 500.0, ("code", 16): 500.0, ("code", 64): 900.0}
    split = drawn(with_rates(run, rates))
    assert [panel.title for panel in split.panels] == ["code", "math"]
    assert "Which is faster depends on the scenario." in split.title


def test_the_frontier_leaves_out_what_another_beats_on_both(planted: Planted) -> None:
    lanes = drawn(planted(captures=(16, 64), utilizations=(0.9, 0.95))).panels[0].lanes
    assert [lane.config.id for lane in lanes if lane.frontier] == ["cap64-seq64-util0.95"]
    # slower, but with a larger cache: nothing beats it on both
    bought = planted(captures=(16, 64), utilizations=(0.9, 0.95))
    points = bought.points.copy()
    points.loc[points["config_id"] == "cap16-seq16-util0.95", "kv_cache_gib"] = 25.0
    lanes = drawn(replace(bought, points=points)).panels[0].lanes
    assert {lane.config.id for lane in lanes if lane.frontier} == {"cap64-seq64-util0.95", "cap16-seq16-util0.95"}


def test_the_load_in_question_is_the_measured_one_at_or_above_the_users(planted: Planted) -> None:
    assert drawn(planted(), users=30).load == "32 streams"
    assert drawn(planted(), users=32).load == "32 streams"
    assert drawn(planted()).asked is None
    assert drawn(planted(), users=30).asked == 30


@pytest.mark.parametrize(
    ("one", "other", "order"),
    [
        ((100.0, 95.0, 105.0), (104.0, 99.0, 109.0), 0),
        ((100.0, 99.0, 101.0), (104.0, 103.0, 105.0), -1),
        ((104.0, None, None), (100.0, 99.0, 101.0), 0),
        ((120.0, None, None), (100.0, None, None), 1),
    ],
)
def test_noise_makes_nothing_faster(
    one: tuple[float, float | None, float | None], other: tuple[float, float | None, float | None], order: int
) -> None:
    assert faster(one, other) == order and faster(other, one) == -order


def test_bars_begin_at_zero_and_stand_in_proportion(planted: Planted) -> None:
    run = planted(captures=(16, 64), scenarios=("math",), concurrencies=(64,))
    run = with_rates(run, {("math", 16): 500.0, ("math", 64): 1000.0})
    svg = file_svg(drawn(run))
    lanes = re.findall(r"<g data-config.*?</g>", svg, re.S)
    assert len(lanes) == 2
    bars = [[float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)" height="14', lane)] for lane in lanes]
    # the marker at the name, KV, fits, runs, tokens/s, TTFT
    assert bars[0][4] / bars[1][4] == pytest.approx(0.5, rel=0.01)
    assert bars[0][1] / bars[1][1] == pytest.approx(17.34 / 17.29, rel=0.01)


def test_both_drawings_say_simulated_and_a_measured_run_does_not(planted: Planted) -> None:
    simulated, measured = picture(drawn(planted())), picture(drawn(planted(simulated=False)))
    assert "SIMULATED" in simulated.svg and "SIMULATED" in simulated.narrow_svg
    assert "SIMULATED" not in measured.svg + measured.narrow_svg


def test_a_failed_configuration_has_its_row_and_many_are_cut_to_the_best(planted: Planted) -> None:
    assert "did not start" in file_svg(drawn(planted(failed=(16,))))
    figure = drawn(planted(captures=tuple(range(8, 8 * 20, 8)), scenarios=("math",), concurrencies=(64,)))
    assert len(figure.panels[0].lanes) == MOST_LANES and figure.left_out == 19 - MOST_LANES
    assert any(lane.frontier for lane in figure.panels[0].lanes)


def test_nothing_valid_is_no_figure(planted: Planted) -> None:
    run = planted()
    run.points["valid"] = False
    assert tradeoff_of(page_data(run, samples=False)) is None
    assert tradeoff_of(page_data(replace(run, points=pd.DataFrame()), samples=False)) is None


def test_one_launch_of_a_real_server_is_held_against_the_spread_between_launches(planted: Planted) -> None:
    rates = {("math", 16): 1000.0, ("math", 64): 1090.0, ("code", 16): 1090.0, ("code", 64): 1000.0}
    recipe = {"captures": (16, 64), "scenarios": ("math", "code"), "concurrencies": (64,)}
    simulated, measured = planted(**recipe), planted(**recipe, simulated=False)
    # 9 % apart: more than a simulator without spread plays, less than two launches of a real server lie apart
    assert len(drawn(with_rates(simulated, rates)).panels) == 2
    figure = drawn(with_rates(measured, rates))
    assert len(figure.panels) == 1 and "are not told apart" in figure.title
    assert "bars hold the spread between launches" in figure.subtitle
    rate = figure.panels[0].lanes[0].rate
    assert rate is not None and rate[1] is not None and rate[1] < 0.95 * rate[0]


def test_the_cards_name_is_short() -> None:
    assert _gpu_words("NVIDIA H100 80GB HBM3") == "H100"
    assert _gpu_words("NVIDIA Unheard Of 3000") == "Unheard Of 3000"


def test_prompts_that_only_the_larger_capture_holds_are_told_with_their_ttft(planted: Planted) -> None:
    run = planted(captures=(64, 512), scenarios=("math",), concurrencies=(64,))
    points = run.points.assign(max_num_seqs=64, requests_per_s=10.0, input_tokens_per_s=2_400.0)
    points.loc[points["capture"] == 512, "ttft_ms_p50"] = 60.0
    points.loc[points["capture"] == 64, "ttft_ms_p50"] = 89.0
    title = drawn(replace(run, points=points)).title
    assert title.endswith("(math) fit under capture 512, not under 64: TTFT p50 60 ms for 89.")
    assert "fit under" not in drawn(run).title, "sequences differ as well: TTFT is not the capture's"

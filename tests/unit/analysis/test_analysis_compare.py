from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from analysis_records import request, table
from analysis_runs import plant, repeats, row
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.analysis.changes import MetricChange, relative_changes, shown_by
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.compare import Comparison, compare, parse_gate
from qwenbench.analysis.run import Run, load_run, point_frame, records
from qwenbench.cli.main import dispatch
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell

TOKENS = "output_tokens_per_s"


def change_of(comparison: Comparison, key: str, concurrency: int = 8) -> MetricChange:
    return next(r for r in comparison.rows if r.key == key and r.concurrency == concurrency)


def pair(tmp_path: Path, before: list[dict[str, Any]], after: list[dict[str, Any]], **meta: Any) -> tuple[Run, Run]:
    return plant(tmp_path / "before", before, **meta), plant(tmp_path / "after", after, **meta)


def test_change_and_interval_by_hand(tmp_path: Path) -> None:
    runs = pair(
        tmp_path,
        repeats("cap16", 8, output_tokens_per_s=[99.0, 100.0, 101.0]),
        repeats("cap16", 8, output_tokens_per_s=[88.0, 90.0, 92.0]),
    )
    found = change_of(compare(runs), TOKENS)
    assert (found.before, found.after) == (100.0, 90.0)
    assert found.change == pytest.approx(-0.1)
    # log ratio; s = 1 and 2 over three repeats each
    before, after = (1 / 100) ** 2 / 3, (2 / 90) ** 2 / 3
    error = math.sqrt(before + after)
    degrees = (before + after) ** 2 / (before**2 / 2 + after**2 / 2)
    assert 2.7 < degrees < 2.8  # rounded down to 2.7: t = 3.3847 (interpolated in tables between 4.303 and 3.182)
    assert math.log1p(float(found.high or 0)) - math.log(0.9) == pytest.approx(3.39 * error, rel=0.01)
    assert math.log1p(float(found.low or 0)) + math.log1p(float(found.high or 0)) == pytest.approx(2 * math.log(0.9))
    assert found.verdict == "worse"


def test_lower_latency_is_better_and_noise_is_no_difference(tmp_path: Path) -> None:
    runs = pair(
        tmp_path,
        repeats("cap16", 8, ttft_ms_p50=[100.0, 101, 99], tpot_ms_p50=[10.0, 12, 11]),
        repeats("cap16", 8, ttft_ms_p50=[80.0, 81, 79], tpot_ms_p50=[12.0, 11, 10.5]),
    )
    comparison = compare(runs)
    assert change_of(comparison, "ttft_p50").verdict == "better"
    assert change_of(comparison, "tpot_p50").verdict == "no difference shown"


def test_one_repeat_is_indicative_only(tmp_path: Path) -> None:
    runs = pair(tmp_path, [row("cap16", 8, output_tokens_per_s=100)], repeats("cap16", 8, output_tokens_per_s=[1, 1.1]))
    comparison = compare(runs)
    found = change_of(comparison, TOKENS)
    assert (found.low, found.high, found.verdict) == (None, None, "indicative")
    assert found.change == pytest.approx(-0.9895)
    assert "--repeats 3" in comparison.notes[0]


def test_missing_points_and_figures_are_named_not_guessed(tmp_path: Path) -> None:
    runs = pair(
        tmp_path,
        [*repeats("cap16", 8, output_tokens_per_s=[1, 1], goodput_rps=[5, 5]), row("cap16", 64, output_tokens_per_s=1)],
        [*repeats("cap16", 8, output_tokens_per_s=[1, 1]), row("cap32", 8, output_tokens_per_s=1)],
    )
    comparison = compare(runs)
    assert comparison.unmatched == (
        "only in before: cap16, math (instruct-general), 64 streams",
        "only in after: cap32, math (instruct-general), 8 streams",
    )
    goodput = change_of(comparison, "goodput_rps")
    assert (goodput.before, goodput.after, goodput.change, goodput.verdict) == (5.0, None, None, "missing")
    assert change_of(comparison, TOKENS).verdict == "no difference shown"
    assert not any(r.key == "ttft_p50" for r in comparison.rows)  # neither run knows it


def test_invalid_repeats_do_not_count(tmp_path: Path) -> None:
    before = repeats("cap16", 8, output_tokens_per_s=[100, 101, 5])
    before[2]["valid"] = False
    found = change_of(compare(pair(tmp_path, before, repeats("cap16", 8, output_tokens_per_s=[100, 101]))), TOKENS)
    assert (found.before, found.change) == (100.5, 0.0)


def test_all_invalid_has_nothing_to_say(tmp_path: Path) -> None:
    before = [row("cap16", 8, output_tokens_per_s=100, valid=False)]
    comparison = compare(pair(tmp_path, before, [row("cap16", 8, output_tokens_per_s=100)]))
    assert {r.verdict for r in comparison.rows} == {"missing"}


def test_figures_that_fall_to_zero(tmp_path: Path) -> None:
    runs = pair(
        tmp_path, repeats("cap16", 8, goodput_rps=[5.0, 5.1, 4.9]), repeats("cap16", 8, goodput_rps=[0.0, 0.0, 0.0])
    )
    found = change_of(compare(runs), "goodput_rps")
    assert (found.change, found.verdict) == (-1.0, "worse")
    assert found.low < -1 < found.high < 0
    back = change_of(compare((runs[1], runs[0])), "goodput_rps")
    assert (back.before, back.change, back.verdict) == (0.0, None, "indicative")


def test_single_configurations_align_whatever_their_names(tmp_path: Path) -> None:
    runs = pair(
        tmp_path,
        repeats("server", 8, output_tokens_per_s=[1, 2], kv_cache_gib=[17.0, 17.0]),
        repeats("cap16", 8, output_tokens_per_s=[1, 2], kv_cache_gib=[16.0, 16.0]),
    )
    comparison = compare(runs)
    assert [(r.config, r.change) for r in comparison.rows if r.key == TOKENS] == [("server", 0.0)]
    assert [(c.before, c.after) for c in comparison.capacities if c.name == "kv_cache_gib"] == [(17.0, 16.0)]


def test_no_load_point_in_common_is_refused(tmp_path: Path) -> None:
    runs = pair(tmp_path, [row("cap16", 8, output_tokens_per_s=1)], [row("cap16", 9, output_tokens_per_s=1)])
    with pytest.raises(UsageError, match="no load point in common"):
        compare(runs)


@pytest.mark.parametrize("what", ["simulated", "lengths", "hashes", "output tokens"])
def test_refuses_what_is_no_comparison_unless_forced(tmp_path: Path, what: str) -> None:
    rows = [row("cap16", 8, output_tokens_per_s=1)]
    before = plant(tmp_path / "before", rows)
    if what == "simulated":
        after = plant(tmp_path / "after", rows, simulated=True)
    elif what == "lengths":
        after = plant(tmp_path / "after", [rows[0] | {"length_controlled": False}])
    elif what == "output tokens":
        before, after = (
            plant(tmp_path / name, rows, scenarios={"math": {"effective": {"output_tokens": length}}})
            for name, length in (
                ("before", {"min": 64, "max": 192, "median": None}),
                ("after", {"min": 32, "max": 768, "median": 220}),
            )
        )
    else:
        after = plant(tmp_path / "after", rows, scenarios={"math": {"sha256": "9" * 64, "prompts_sha256": "2" * 64}})
    words = {
        "simulated": "SIMULATED",
        "lengths": "forced in before and natural",
        "hashes": "scenario math",
        "output tokens": "64-192 in before and median 220",
    }[what]
    with pytest.raises(UsageError, match=words):
        compare((before, after))
    forced = compare((before, after), force=True)
    assert words in forced.forced[0]


def test_conditions_come_first(tmp_path: Path) -> None:
    rows = [row("cap16", 8, output_tokens_per_s=1)]
    same: dict[str, Any] = {"options": {"requests": "4x"}}
    before = plant(tmp_path / "before", rows, versions={"vllm": "0.18.0", "driver": "580"}, seed=1, **same)
    after = plant(tmp_path / "after", rows, versions={"vllm": "0.20.2", "driver": "580"}, seed=1, **same)
    found = [(d.what, d.before, d.after) for _, d in compare((before, after)).conditions]
    assert found == [("versions.vllm", "0.18.0", "0.20.2")]


def test_settings_of_shared_configurations_differ_and_others_are_only_named(tmp_path: Path) -> None:
    before = plant(tmp_path / "before", [row("cap16", 8, output_tokens_per_s=1)])
    rows = [row("cap16", 8, output_tokens_per_s=1), row("cap32", 8, output_tokens_per_s=1)]
    plant(tmp_path / "after", rows)
    launch = tmp_path / "after" / "servers" / "cap16" / "launch.json"
    changed = json.loads(launch.read_text())
    changed["server"]["flags"]["kv-cache-dtype"] = "fp8"
    launch.write_text(json.dumps(changed))
    found = [str(d) for _, d in compare((before, load_run(tmp_path / "after"))).conditions]
    assert found == ["cap16.flags.kv-cache-dtype: - -> fp8", "configuration cap32: - -> yes"]


def test_three_runs_are_compared_to_the_first(tmp_path: Path) -> None:
    runs = [
        plant(tmp_path / f"r{i}", repeats("cap16", 8, output_tokens_per_s=[v, v + 1])) for i, v in enumerate((9, 8, 7))
    ]
    found = [(r.run, r.before, r.after) for r in compare(runs).rows]
    assert found == [("r1", 9.5, 8.5), ("r2", 9.5, 7.5)]


# --- the gate


def test_gate_breaks_on_sure_changes_past_the_limit_only(tmp_path: Path) -> None:
    before = repeats("cap16", 8, ttft_ms_p99=[100.0, 101, 99], output_tokens_per_s=[100.0, 101, 99]) + repeats(
        "cap16", 16, ttft_ms_p99=[100.0, 101, 99], output_tokens_per_s=[100.0, 130, 70]
    )
    after = repeats("cap16", 8, ttft_ms_p99=[112.0, 113, 111], output_tokens_per_s=[97.0, 98, 96]) + repeats(
        "cap16", 16, ttft_ms_p99=[108.0, 109, 107], output_tokens_per_s=[90.0, 120, 60]
    )
    runs = pair(tmp_path, before, after)
    gate = compare(runs, parse_gate("ttft_p99:+10%,output_tokens_per_s:-5%")).gate
    # +8 % at 16 and -3 % at 8 are within the limits; -10 % at 16 may be chance
    assert [(r.key, r.concurrency) for r in gate.broken] == [("ttft_p99", 8)]
    assert not gate.passed
    assert compare(runs, parse_gate("ttft_p99:+15%")).gate.passed
    assert compare(runs, parse_gate("ttft_p99:-5%")).gate.passed  # it rose


@pytest.mark.parametrize(
    ("rule", "change", "low", "high", "broken"),
    [
        ("ttft_p99:+10%", 0.11, 0.01, 0.2, True),
        ("ttft_p99:+10%", 0.11, -0.01, 0.2, False),
        ("ttft_p99:+10%", 0.09, 0.01, 0.2, False),
        ("ttft_p99:+10%", -0.11, -0.2, -0.01, False),
        ("ttft_p99:-10%", -0.11, -0.2, -0.01, True),
        ("ttft_p99:-10%", -0.11, -0.2, 0.01, False),
        ("ttft_p99:-10%", 0.11, 0.01, 0.2, False),
        ("ttft_p50:+10%", 0.11, 0.01, 0.2, False),
    ],
)
def test_gate_rule(rule: str, change: float, low: float, high: float, broken: bool) -> None:
    row = MetricChange("r", "c", "s", "p", 8, None, "ttft_p99", 1.0, 1.0 + change, change, low, high, "worse")
    assert parse_gate(rule)[0].broken_by(row) == broken


def test_gate_does_not_pass_what_it_cannot_judge(tmp_path: Path) -> None:
    runs = pair(tmp_path, [row("cap16", 8, output_tokens_per_s=1)], [row("cap16", 8, output_tokens_per_s=1)])
    gate = compare(runs, parse_gate("output_tokens_per_s:-5%")).gate
    assert (gate.passed, gate.outcome, gate.broken, gate.unjudged) == (False, "undecided", (), (TOKENS,))
    folders = [str(run.path) for run in runs]
    assert dispatch(["compare", *folders, "--gate", "output_tokens_per_s:-5%"]) == 3


def test_runs_without_a_figure_in_common_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = [row("cap16", 8)]
    folders = [str(run.path) for run in pair(tmp_path, nothing, nothing)]
    assert dispatch(["compare", *folders]) == 0
    told = capsys.readouterr().out
    assert "Nothing to compare" in told and "0 rows" not in told and "single repeat" not in told


@pytest.mark.parametrize("text", ["", "ttft_p99", "ttft_p99:10%", "ttft_p99:+10", "ttft_p98:+10%", "ttft_p99:+x%",
                                  "ttft_p99:+1%,ttft_p99:+2%"])  # fmt: skip
def test_bad_gates_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--gate"):
        parse_gate(text)


# --- statistics


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_benjamini_hochberg_agrees_with_its_definition(values: list[float]) -> None:
    p = np.array(values)
    ordered = sorted(values)
    passing = [v for k, v in enumerate(ordered, 1) if v <= 0.05 * k / len(values)]
    limit = max(passing, default=-1.0)
    assert shown_by(p).tolist() == [v <= limit for v in values]


def test_unknown_p_values_do_not_count_as_rows() -> None:
    p = np.array([[0.04, np.nan], [np.nan, np.nan]])
    assert shown_by(p).tolist() == [[True, False], [False, False]]


@given(
    st.lists(st.floats(0.1, 1e4), min_size=2, max_size=4),
    st.lists(st.floats(0.1, 1e4), min_size=2, max_size=4),
)
def test_change_lies_in_its_interval_and_reverses(before: list[float], after: list[float]) -> None:
    def change(a: list[float], b: list[float]) -> tuple[float, float, float]:
        n, mean, se = (
            [np.array([f(values)]) for values in (a, b)]
            for f in (len, np.mean, lambda v: np.std(v, ddof=1) / math.sqrt(len(v)))
        )
        found = relative_changes(n[0], mean[0], se[0], n[1], mean[1], se[1])
        return found.low.item(), found.change.item(), found.high.item()

    low, middle, high = change(before, after)
    assert low <= middle + 1e-9 and middle <= high + 1e-9
    back = change(after, before)
    assert math.isclose((1 + middle) * (1 + back[1]), 1, rel_tol=1e-9)
    assert math.isclose((1 + low) * (1 + back[2]), 1, rel_tol=1e-6) or low == high or math.isinf(back[2])


def synthetic_run(seed: int, factor: float = 1.0) -> Run:
    """Three repeats of 2 configurations x 2 concurrencies; latencies `factor` times slower, rates as much lower.

    Repeats differ by 1 %, as runs on one machine do; every metric has noise of its own on top.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for config in ("cap16", "cap64"):
        for concurrency in (8, 64):
            for repeat in (1, 2, 3):
                drift = rng.normal(1, 0.01)
                figures = {}
                for column in METRICS.values():
                    noise = drift * rng.normal(1, 0.02 if "p99" in column.name else 0.005)
                    slow = factor if column.better == "lower" else 1 / factor
                    figures[column.name] = 100 * slow * (noise if column.better == "lower" else 1 / noise)
                rows.append(row(config, concurrency, repeat, **figures))
    meta = {"run_id": f"seed-{seed}", "seed": seed}
    return Run(Path(f"nowhere/seed-{seed}"), meta, point_frame(rows), {}, {}, {}, {})


def test_a_planted_slowdown_of_5_percent_is_called_worse() -> None:
    for seed in range(5):
        runs = synthetic_run(seed), synthetic_run(100 + seed, 1.05)
        verdicts = [r.verdict for r in compare(runs).rows]
        assert verdicts.count("better") == 0
        assert verdicts.count("worse") > 0.7 * len(verdicts)
        rates = [r.verdict for r in compare(runs).rows if r.key == TOKENS]
        assert rates.count("worse") >= 3


def test_runs_that_differ_only_in_seed_are_hardly_ever_called_worse() -> None:
    runs = [synthetic_run(seed) for seed in range(400)]
    worse = sum(any(r.verdict == "worse" for r in compare((runs[2 * i], runs[2 * i + 1])).rows) for i in range(200))
    assert worse <= 20


def same_draws(seed: int, factor: float, draws: tuple[float, ...] = (1.0, 1.2, 0.85), each: float = 0.002) -> Run:
    """Repeats whose requests differ a lot, drawn alike in every such run; the machine adds noise of its own."""
    rng = np.random.default_rng(seed)
    rows = [
        row("cap16", concurrency, repeat, seed=repeat, output_tokens_per_s=100 * draw / factor * rng.normal(1, each))
        for concurrency in (1, 8, 16, 32)
        for repeat, draw in enumerate(draws, 1)
    ]
    return Run(Path(f"nowhere/{seed}"), {"run_id": f"run-{seed}"}, point_frame(rows), {}, {}, {}, {})


def test_runs_of_one_launch_each_hold_the_spread_between_launches(tmp_path: Path) -> None:
    """18 % between two launches of one configuration were recorded: a change of 15 % in one launch shows nothing."""

    def once(values: list[float]) -> list[dict[str, Any]]:
        return [r | {"launch": 1} for r in repeats("cap16", 8, output_tokens_per_s=values)]

    found = compare(pair(tmp_path / "one", once([100.0, 101, 99]), once([85.0, 86, 84])))
    assert change_of(found, TOKENS).verdict == "no difference shown"
    assert "18 % between two launches" in found.notes[-1]
    several = compare(pair(tmp_path / "three", *(repeats("cap16", 8, output_tokens_per_s=v)
                                                 for v in ([100.0, 101, 99], [85.0, 86, 84]))))  # fmt: skip
    assert (change_of(several, TOKENS).verdict, several.notes) == ("worse", ())
    # the simulator plays none
    played = compare(pair(tmp_path / "sim", once([100.0, 101, 99]), once([85.0, 86, 84]), simulated=True))
    assert change_of(played, TOKENS).verdict == "worse"


def test_runs_that_drew_the_same_requests_are_paired() -> None:
    comparison = compare((same_draws(1, 1.0), same_draws(2, 1.05)))
    assert {r.verdict for r in comparison.rows} == {"worse"}
    assert "repeats are paired" in comparison.notes[0]
    # by hand, for one load point: mean and standard error of the three log ratios, 2 degrees of freedom
    before, after = (run.points.query("concurrency == 8")["output_tokens_per_s"] for run in
                     (same_draws(1, 1.0), same_draws(2, 1.05)))  # fmt: skip
    spread = np.log(after.to_numpy() / before.to_numpy()).std(ddof=1) / math.sqrt(3)
    found = change_of(comparison, TOKENS)
    assert math.log1p(float(found.high or 0)) - math.log1p(float(found.change or 0)) == pytest.approx(
        4.30265 * spread, rel=1e-4
    )


def test_other_requests_or_too_few_load_points_are_not_paired() -> None:
    other = same_draws(2, 1.05)
    other.points["seed"] += 100
    assert {r.verdict for r in compare((same_draws(1, 1.0), other)).rows} == {"no difference shown"}
    runs = (same_draws(1, 1.0), same_draws(2, 1.05))
    assert compare([replace(run, points=run.points.query("concurrency == 8")) for run in runs]).notes == ()
    # nor are those whose seeds are not known
    assert compare([replace(run, points=run.points.assign(seed=None)) for run in runs]).notes == ()
    # repeats that share a seed but nothing else are better held against each other as they are
    apart = [same_draws(seed, 1.0, (1.0, 1.0, 1.0), each=0.02) for seed in (3, 4)]
    assert compare(apart).notes == ()


def plant_requests(run: Run, seed: int, factor: float) -> None:
    """Request records for each cell of a run: 120 requests, ttft of 100 ms on average."""
    rng = np.random.default_rng(seed)
    (run.path / "requests").mkdir()
    for point in records(run.points):
        rows = [
            request(i * 1000, (i + 1) * 1000, ttft_ms=float(value))
            for i, value in enumerate(factor * rng.gamma(25, 4, 120))
        ]
        pq.write_table(table(rows), run.path / "requests" / f"{Cell.of_row(point).cell_id}.parquet")


def test_requests_are_resampled_too_where_the_folder_has_them(tmp_path: Path) -> None:
    # two repeats whose medians happen to agree to a hair: alone they would claim a precision that they lack
    before = plant(tmp_path / "before", repeats("cap16", 1, ttft_ms_p50=[98.0, 98.01]))
    after = plant(tmp_path / "after", repeats("cap16", 1, ttft_ms_p50=[99.0, 99.01]))
    assert change_of(compare((before, after)), "ttft_p50", 1).verdict == "worse"
    plant_requests(before, 1, 1.0)
    plant_requests(after, 2, 1.0)
    found = change_of(compare((before, after)), "ttft_p50", 1)
    assert found.verdict == "no difference shown"
    assert found.low < 0 < found.high


# --- the command


def test_command_prints_json_and_exits_by_the_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(
        tmp_path,
        repeats("cap16", 8, output_tokens_per_s=[100, 101, 99]),
        repeats("cap16", 8, output_tokens_per_s=[80, 81, 79]),
    )
    runs = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert dispatch(["compare", *runs, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"conditions", "rows", "gate"} <= set(answer)
    fields = {"config", "scenario", "concurrency", "metric", "before", "after", "change", "low", "high", "verdict"}
    assert fields <= set(answer["rows"][0])
    assert answer["gate"] is None
    assert dispatch(["compare", *runs, "--json", "--gate", "output_tokens_per_s:-10%"]) == 1
    gate = json.loads(capsys.readouterr().out)["gate"]
    assert (gate["passed"], len(gate["broken"])) == (False, 1)
    assert dispatch(["compare", *runs, "--gate", "output_tokens_per_s:-30%"]) == 0
    assert dispatch(["compare", runs[0]]) == 2
    assert dispatch(["compare", *runs, "--gate", "nonsense"]) == 2


def test_command_shows_text_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(
        tmp_path,
        repeats("cap16", 8, output_tokens_per_s=[100, 101, 99], ttft_ms_p50=[10, 11, 12]),
        repeats("cap16", 8, output_tokens_per_s=[80, 81, 79], ttft_ms_p50=[10, 11, 12]),
        simulated=True,
    )
    runs = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert dispatch(["compare", *runs]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("SIMULATED")
    assert "worse" in shown and "-20.0%" in shown and "Benjamini-Hochberg" in shown
    assert dispatch(["compare", *runs, "--markdown", "--gate", "output_tokens_per_s:-10%"]) == 1
    printed = capsys.readouterr()
    assert "| worse |" in printed.out
    assert "broken" in printed.err.splitlines()[-1]


def test_command_writes_a_page_in_which_no_name_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    pair(
        tmp_path,
        [r | {"scenario": evil} for r in repeats("cap16", 8, output_tokens_per_s=[100, 101, 99])],
        [r | {"scenario": evil} for r in repeats("cap16", 8, output_tokens_per_s=[80, 81, 79])],
    )
    page = tmp_path / "page.html"
    assert dispatch(["compare", str(tmp_path / "before"), str(tmp_path / "after"), "--html", str(page)]) == 0
    text = page.read_text()
    assert "alert(1)" in text and evil not in text
    assert 'http-equiv="Content-Security-Policy"' in text and "default-src 'none'" in text
    assert "src=" not in text.split("<script")[0]

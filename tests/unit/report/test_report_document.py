"""From a run to what the page draws: repeats, intervals, workloads, thinned samples, missing files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qwenbench.analysis.intervals import interval_of_means
from qwenbench.analysis.run import Run, load_run
from qwenbench.analysis.statistics import summary_rows
from qwenbench.report.page import build_report
from qwenbench.report.page_data import config_views, launch_flags, page_data, price_views
from qwenbench.report.points import (
    MOST_SAMPLES,
    MOST_TIMELINES,
    point_views,
    read_summary,
    thinned,
    timelines,
    workload_names,
)
from qwenbench.runfolder.names import RunPaths

Planted = Callable[..., Run]


def test_repeats_become_one_point_with_students_interval(planted: Planted) -> None:
    run = planted(captures=(16,), scenarios=("math",), concurrencies=(8,), repeats=3)
    (point,) = point_views(run.points)
    expected = interval_of_means(run.points["output_tokens_per_s"].tolist())
    assert point.n == 3
    assert point.metrics["output_tokens_per_s"] == pytest.approx(
        (expected.value, expected.low, expected.high), rel=1e-5
    )


def test_one_repeat_has_no_interval_and_unknown_metrics_are_missing(planted: Planted) -> None:
    (point,) = point_views(planted(captures=(16,), scenarios=("math",), concurrencies=(8,)).points)
    assert point.metrics["ttft_p50"][1:] == (None, None)
    assert "ttft_p99" not in point.metrics


def test_invalid_repeats_do_not_count_but_an_invalid_point_is_still_shown(planted: Planted) -> None:
    run = planted(captures=(16,), scenarios=("math",), concurrencies=(8,), repeats=2)
    run.points["valid"] = [False, True]
    run.points["invalid_reason"] = ["clock stepped", None]
    run.points.loc[0, "output_tokens_per_s"] = 1.0
    (point,) = point_views(run.points)
    assert point.valid and point.n == 1
    assert point.metrics["output_tokens_per_s"][0] == pytest.approx(run.points.loc[1, "output_tokens_per_s"], rel=1e-5)
    run.points["valid"] = False
    (point,) = point_views(run.points)
    assert not point.valid and point.invalid_reason == "clock stepped" and "output_tokens_per_s" in point.metrics


def test_intervals_come_from_the_sweeps_summary_where_it_is_there(planted: Planted) -> None:
    run = planted(captures=(16,), scenarios=("math",), repeats=2)
    summary = summary_rows(run.points)
    summary["ttft_p50_high"] = 12345.0
    path = RunPaths(run.path).summary
    summary.to_csv(path, index=False)
    views = point_views(run.points, read_summary(path))
    assert {view.metrics["ttft_p50"][2] for view in views} == {12345.0}


def test_a_scenario_under_several_profiles_is_several_workloads() -> None:
    points = pd.DataFrame({"scenario": ["math", "math", "code"], "profile": ["a", "b", "a"]})
    assert workload_names(points).tolist() == ["math · a", "math · b", "code"]


def test_open_loop_runs_are_drawn_over_their_rates(planted: Planted) -> None:
    run = planted()
    points = run.points.assign(rate=run.points["concurrency"] / 10.0, concurrency=np.nan, load_shape="poisson")
    document = page_data(replace(run, points=points))
    assert {point.level for point in document.points} == {0.1, 0.8, 3.2, 6.4}
    assert "second" in document.level_label and not document.level_log
    assert "no closed-loop points" in build_report(replace(run, points=points))


def test_a_folder_with_the_three_needed_files_is_enough(planted: Planted) -> None:
    run = planted()
    for name in ("memory.json", "prediction.json"):
        for file in run.path.glob(f"servers/*/{name}"):
            file.unlink()
    for folder in run.path.glob("servers/*/samples"):
        shutil.rmtree(folder)
    bare = load_run(run.path)
    document = page_data(bare)
    assert document.timelines == () and len(document.points) == 48
    assert "docker run" in build_report(bare)


@pytest.mark.parametrize(
    "meta",
    [
        {"hardware": None, "options": [], "versions": "x", "seed": None},
        {"hardware": {"card": "no-such-card", "gpus": [None]}, "options": {"slo": {"ttft": 1000.0}}},
        {"hardware": {"gpus": [{"name": "NVIDIA H200"}]}, "options": {"slo": []}},
    ],
)
def test_conditions_of_any_shape_do_not_break_the_page(planted: Planted, meta: dict[str, Any]) -> None:
    assert build_report(planted(captures=(16,), scenarios=("math",), meta=meta)).endswith("</html>\n")


def test_flags_are_read_in_both_spellings_and_cards_are_multiplied(planted: Planted) -> None:
    argv = ["vllm", "serve", "--tensor-parallel-size=2", "--pipeline-parallel-size", "3", "--enforce-eager"]
    assert launch_flags({"argv": argv})["tensor-parallel-size"] == "2"
    run = planted(captures=(16,), scenarios=("math",))
    (view,) = config_views(replace(run, launches={"cap16-seq16": {"shown_argv": argv}}))
    assert view.cards == 6


def test_a_failed_configuration_keeps_its_settings(planted: Planted) -> None:
    views = config_views(planted(failed=(64,)))
    assert [(view.capture, view.failed) for view in views] == [(16, False), (32, False), (64, True)]
    assert views[2].vram_peak_gib is None


def test_time_lines_are_capped_and_the_rest_is_counted(planted: Planted) -> None:
    run = planted(captures=(16,), scenarios=("math",), concurrencies=tuple(range(1, MOST_TIMELINES + 21)))
    lines, left_out = timelines(run)
    assert len(lines) == MOST_TIMELINES and left_out == 20
    levels = [line.level for line in lines]
    assert levels[0] == 1 and levels[-1] == MOST_TIMELINES + 20


def test_a_time_line_holds_what_was_watched(planted: Planted) -> None:
    run = planted(captures=(16,), scenarios=("math",), concurrencies=(64,))
    (line,), _ = timelines(run)
    row = run.points.iloc[0]
    assert max(value for value in line.running if value is not None) == row["running_peak"]
    assert max(v for v in line.output_tokens_per_s if v is not None) == pytest.approx(
        row["output_tokens_per_s"], rel=1e-3
    )
    assert max(v for v in line.vram_gib if v is not None) == pytest.approx(row["vram_peak_mib"] / 1024, abs=1e-3)
    assert len(line.vram_t) <= MOST_SAMPLES


@given(arrays(np.float64, st.integers(1, 2000), elements=st.floats(0, 1e6)))
def test_thinning_keeps_the_peak_and_every_sample_counts_once(values: np.ndarray[Any, Any]) -> None:
    times = np.arange(len(values), dtype=float)
    kept = thinned({"t": times, "running": values})
    assert len(kept["t"]) == len(kept["running"]) <= MOST_SAMPLES
    assert max(value or 0.0 for value in kept["running"]) == pytest.approx(values.max(), abs=1e-3)
    # groups of neighbours, none of them empty and all of about one size: their means rise and stay within the samples
    known = [value for value in kept["t"] if value is not None]
    assert len(known) == len(kept["t"]) and known == sorted(set(known))
    assert known[0] <= len(values) / len(known) and known[-1] >= times[-1] - len(values) / len(known)


def test_each_step_of_capture_has_its_cost_and_its_gain_at_each_load(planted: Planted) -> None:
    run = planted(repeats=2)
    first, second = price_views(run)
    assert (first.before, first.after, second.after) == ("cap16-seq16", "cap32-seq32", "cap64-seq64")
    assert first.costs["kv_cache_gib"].change == pytest.approx(-0.02, abs=1e-9)
    gain = next(g for g in second.gains if g["workload"] == "math" and g["level"] == 64)
    means = (
        run.points.query("scenario == 'math' and concurrency == 64").groupby("capture")["output_tokens_per_s"].mean()
    )
    assert gain["change"] == pytest.approx(means[64] - means[32])
    assert gain["low"] is not None and gain["low"] <= means[64] - means[32]

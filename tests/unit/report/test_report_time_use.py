"""Where the time goes: stalls in words and bars, the clocks side by side, throttling and drafters, and silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qwenbench.analysis.run import Run
from qwenbench.report.document import Picture
from qwenbench.report.html_writer import HtmlWriter
from qwenbench.report.page_data import page_data
from qwenbench.report.text_writers import to_markdown
from qwenbench.report.time_use import time_use, uses_of

Planted = Callable[..., Run]


def with_columns(run: Run, **columns: Any) -> Run:
    return replace(run, points=run.points.assign(**columns))


def words(run: Run, chosen: str | None = "cap64-seq64") -> str:
    return to_markdown(time_use(run, page_data(run, samples=False), chosen))


def test_the_sentence_is_of_the_recommended_configuration_under_its_highest_load(planted: Planted) -> None:
    run = planted(captures=(16, 64))
    share = run.points["concurrency"] / 100 + run.points["capture"] / 1000
    run = with_columns(run, itl_stall_share=share, itl_stall_ms_p50=90.0, gpu_util_mean=70.0)
    assert "Under 64 streams, cap64-seq64 spent 70% of the time between tokens in stalls" in words(run)
    assert "90 ms at the median" in words(run) and "The GPU was idle 30% of that time" in words(run)
    uses = uses_of(run)
    assert len(uses) == 8 and uses[-1].stalls == pytest.approx(0.704) and uses[-1].gpu == pytest.approx(0.7)


def test_an_unknown_share_is_no_bar_and_no_word(planted: Planted) -> None:
    run = planted()
    assert words(run) == "Stalls were not measured in this run.\n"
    known = with_columns(run, itl_stall_share=run.points["capture"].map({16: 0.2}))
    assert "cap16-seq16 spent 20%" in words(known, chosen=None)
    assert {use.config for use in uses_of(known) if use.stalls is not None} == {"cap16-seq16"}
    assert "GPU was idle" not in words(known, None)


def test_the_figure_marks_simulated_runs_and_follows_the_filters(planted: Planted) -> None:
    run = with_columns(planted(), itl_stall_share=0.5)
    picture = next(b for b in time_use(run, page_data(run, samples=False), None) if isinstance(b, Picture))
    assert "SIMULATED" in picture.svg and picture.svg.count('data-config="cap32-seq32"') == 4
    assert "50%" in picture.narrow_svg


def test_heat_and_drafters_are_told_where_they_were(planted: Planted) -> None:
    run = planted(captures=(16,), scenarios=("math",))
    hot = with_columns(run, throttled_share=[0.0, 0.01, 0.4, 0.2], throttle_reasons=["", "", "heat 40 %", "heat 20 %"])
    assert "clocks held back in up to 40% of a point's samples (heat 40 %; heat 20 %)" in words(hot)
    drafted = with_columns(run, acceptance_length=2.4, acceptance_rate=0.7)
    page = HtmlWriter().write(time_use(drafted, page_data(drafted, samples=False), None))
    assert "2.40" in page and ">70<" in page
    assert "Drafter" not in words(run)


def test_a_drafter_is_told_up_to_how_many_streams_it_pays(planted: Planted) -> None:
    """The break-even itself is `analysis/price.py`'s; here: a sentence and a row a load."""
    run = planted(captures=(16, 32), scenarios=("math",), concurrencies=(1, 16, 64))
    with_it = run.points["capture"] == 32
    steps = {(16, 1): 4.4, (16, 16): 8.0, (16, 64): 11.8, (32, 1): 9.8, (32, 16): 19.8, (32, 64): 67.6}
    keys = zip(run.points["capture"], run.points["concurrency"], strict=True)
    run = with_columns(
        run,
        itl_ms_p50=[steps[int(capture), int(level)] for capture, level in keys],
        acceptance_length=with_it.map({True: 2.6, False: None}).astype(float),
        drafted_tokens=with_it.map({True: 100, False: None}).astype("Int64"),
        vary_speculative_config=with_it.map({True: "mtp", False: None}),
        capture=16,
        max_num_seqs=16,
    )
    text = words(run)
    assert "cap32-seq32: the drafter pays up to 16 streams." in text
    assert "| 64 | – | 2.60 | 5.73 | 67.6 | 11.8 | no |" in text

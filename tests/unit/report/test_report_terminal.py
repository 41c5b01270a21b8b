"""The final table and the live view, as text."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from qwenbench.analysis.run import Run
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.report.summary import final_tables
from qwenbench.report.text_writers import terminal_parts
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.sweep.progress import Live

Planted = Callable[..., Run]

CONFIGURATION = Configuration("cap16-seq16", ServerConfig(), {}, 0.95)
CELL = Cell("cap16-seq16", 1, LoadPoint("math[bold]", "instruct-general", 8, None, 1))
LIVE = Live("load", 30, 120, 2, 8, 1234.5, 56.0, 8.0, 3.0, 0.25, 30_720.0)


def printed(run: Run, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    for part in terminal_parts(final_tables(run), console):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_loses_no_figure_at_any_width(planted: Planted, width: int) -> None:
    run = planted()
    lines = printed(run, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for value in run.points["output_tokens_per_s"]:
        assert f"{value:,.0f}" in text


def test_four_levels_fit_into_one_block_of_100_columns(planted: Planted) -> None:
    text = "\n".join(printed(planted(), 100))
    assert "at 1 " in text and "at 64" in text
    assert text.count("\nmath ") == 1


def test_bounds_and_invalid_points_are_marked_and_explained(planted: Planted) -> None:
    text = "\n".join(printed(planted(captures=(16,), invalid_concurrency=8), 100))
    assert "s: max-num-seqs reached" in text
    assert "!: invalid" in text
    assert "k: KV" not in text


def test_a_trace_is_headed_as_one_and_rates_as_rates(planted: Planted) -> None:
    run = planted()
    points = run.points
    open_loop = points.assign(concurrency=np.nan, rate=np.nan, load_shape="trace")
    text = "\n".join(printed(replace(run, points=open_loop), 100))
    assert " trace" in text and "at 0" not in text
    rates = points.assign(concurrency=np.nan, rate=points["concurrency"] / 4, load_shape="poisson")
    assert "at 2/s" in "\n".join(printed(replace(run, points=rates), 100))


def test_only_a_simulated_table_says_so(planted: Planted) -> None:
    assert "SIMULATED" in "\n".join(printed(planted(), 100))
    assert "SIMULATED" not in "\n".join(printed(planted(simulated=False), 100))


def test_a_run_without_points_has_a_line_instead_of_a_table(planted: Planted) -> None:
    run = planted(failed=(16, 32, 64))
    assert printed(run, 80) == ["No load point finished."]

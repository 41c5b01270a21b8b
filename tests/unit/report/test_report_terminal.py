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
from qwenbench.engine.failures import Failure
from qwenbench.report.live import Pace, duration, terminal_progress
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


def play(console: Console, clock: Callable[[], float]) -> None:
    with terminal_progress(console, clock) as progress:
        progress.plan(4, 1)
        progress.launching(CONFIGURATION, 1)
        progress.ready(CONFIGURATION, 12.3)
        progress.cell_started(CELL, 1)
        progress.live(CELL, LIVE)
        progress.cell_done(CELL, {"output_tokens_per_s": 1200.0, "ttft_ms_p50": 60.0, "bound": "load"})
        progress.failed("cap32-seq32", Failure("port_taken", "[red]in use[/]", "Stop it."))
        progress.note("that was it")


def clock_of(*seconds: float) -> Callable[[], float]:
    """A clock that shows these seconds one after the other, then stays at the last."""
    left = list(seconds)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_without_a_terminal_each_event_is_one_whole_plain_line() -> None:
    console = Console(file=io.StringIO(), width=40)
    play(console, clock_of(0.0, 0.0, 10.0))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "4 points, 1 of them done already",
        "cap16-seq16: starting the server",
        "cap16-seq16: ready after 12.3 s",
        "[2/4 points, 20 s left] cap16-seq16 math[bold] 8 streams: 1,200 tok/s, TTFT 60 ms, bound load",
        "cap32-seq32: FAILED, port_taken: [red]in use[/]",
        "  Stop it.",
        "that was it",
    ]


def test_on_a_terminal_the_current_point_is_shown_with_all_that_is_known() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, _environ={"TERM": "xterm"})
    play(console, lambda: 0.0)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for figure in (
        "1,234 tok/s",
        "TTFT 56 ms",
        "running 8",
        "waiting 3",
        "KV 25%",
        "VRAM 30.00 GiB",
        "failed 2",
        "30/120",
    ):
        assert figure in text, figure
    assert "math[bold]" in text
    assert "starting the server" in text


def test_unknown_figures_are_left_out_not_shown_as_zero() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, _environ={"TERM": "xterm"})
    with terminal_progress(console) as progress:
        progress.plan(1, 0)
        progress.live(CELL, Live("load", 0, None, 0, 8, None, None, None, None, None, None))
    assert isinstance(console.file, io.StringIO)
    assert "VRAM" not in console.file.getvalue() and "tok/s" not in console.file.getvalue()


def test_the_pace_leaves_out_what_a_resumed_run_had_already() -> None:
    pace = Pace(clock_of(0.0, 100.0, 130.0))
    pace.plan(10, 4)
    assert pace.seconds_left() is None
    pace.done += 2
    assert pace.seconds_left() == pytest.approx(30 / 2 * 4)


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3700, "1 h 01 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words

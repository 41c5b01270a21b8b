"""The view of a sweep while it runs."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from qwenbench.analysis.run import Run
from qwenbench.cli.live_view import terminal_progress
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.failures import Failure
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.sweep.progress import Expected, Live, Schedule

Planted = Callable[..., Run]

CONFIGURATION = Configuration("cap16-seq16", ServerConfig(), {}, 0.95)
CELL = Cell("cap16-seq16", 1, LoadPoint("math[bold]", "instruct-general", 8, None, 1))
LIVE = Live("load", 30, 120, 2, 8, 1234.5, 56.0, 8.0, 3.0, 0.25, 30_720.0)


def play(console: Console) -> None:
    others = [replace(CELL, launch=2), replace(CELL, launch=3)]
    schedule = Schedule([CELL, *others], 1, Expected(5.0, lambda point: 10.0), clock=clock_of(0.0, 3.0, 10.0))
    with terminal_progress(console, lambda: 0.0) as progress:
        progress.plan(schedule)
        schedule.launching(CELL.config_id, 1)
        progress.launching(CONFIGURATION, 1)
        for seconds, phase in ((1.0, None), (2.0, "loading weights"), (3.0, "loading weights")):
            progress.starting(CONFIGURATION, seconds, phase)
        progress.ready(CONFIGURATION, 12.3)
        schedule.cell_started(CELL)
        progress.cell_started(CELL, 1)
        progress.live(CELL, LIVE)
        schedule.cell_done(CELL)
        progress.cell_done(CELL, {"output_tokens_per_s": 1200.0, "ttft_ms_p50": 60.0, "bound": "load"})
        progress.failed("cap32-seq32", Failure("port_taken", "[red]in use[/]", "Stop it."))
        progress.note("that was it")


def clock_of(*seconds: float) -> Callable[[], float]:
    """A clock that shows these seconds one after the other, then stays at the last."""
    left = list(seconds)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_without_a_terminal_each_event_is_one_whole_plain_line() -> None:
    console = Console(file=io.StringIO(), width=40)
    play(console)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "4 points, 1 of them done already",
        "cap16-seq16: starting the server",
        "cap16-seq16: 2 s: loading weights",
        "cap16-seq16: ready after 12.3 s",
        "[2/4 points, 20 s left] cap16-seq16 math[bold] instruct-general 8 streams: "
        "1,200 tok/s, TTFT 60 ms, bound load",
        "cap32-seq32: FAILED, port_taken: [red]in use[/]",
        "  Stop it.",
        "that was it",
    ]


def test_on_a_terminal_the_current_point_is_shown_with_all_that_is_known() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, _environ={"TERM": "xterm"})
    play(console)
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
        progress.plan(Schedule([CELL], 0, Expected(5.0, lambda point: 10.0)))
        progress.live(CELL, Live("load", 0, None, 0, 8, None, None, None, None, None, None))
    assert isinstance(console.file, io.StringIO)
    assert "VRAM" not in console.file.getvalue() and "tok/s" not in console.file.getvalue()

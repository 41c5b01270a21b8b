"""The view of a sweep while it runs: bars with ETA and the current points on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure
from qwenbench.runfolder.cells import Cell
from qwenbench.sweep.progress import Live, Progress, Schedule, duration

Clock = Callable[[], float]


@contextmanager
def terminal_progress(console: Console, clock: Clock = time.monotonic) -> Iterator[Progress]:
    """A Progress for this console: a live view where it is a terminal, one line per event where it is not."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    # refreshed by the sweep's own ticks: a refresh thread would take the interpreter away from the load
    with Screen(console=console, auto_refresh=False, transient=True) as screen:
        yield LiveView(console, screen, clock)


class PlainLines:
    """One line per event, for logs and pipes."""

    def __init__(self, console: Console, prefix: str = "") -> None:
        """`prefix` begins each line, where several sweeps share a console."""
        self._console = console
        self._prefix = prefix
        self._schedule: Schedule | None = None
        self._phases: dict[str, str] = {}

    def plan(self, schedule: Schedule) -> None:
        self._schedule = schedule
        if schedule.cells:
            self._say(f"{schedule.cells} points" + (f", {schedule.done} of them done already" if schedule.done else ""))

    def launching(self, configuration: Configuration, launch: int) -> None:
        again = f" (launch {launch})" if launch > 1 else ""
        self._say(f"{configuration.config_id}: starting the server{again}")

    def starting(self, configuration: Configuration, seconds: float, phase: str | None) -> None:
        """A line for each new phase, not for each step of its count."""
        name = phase.partition(" (")[0] if phase is not None else None
        if name is not None and self._phases.get(configuration.config_id) != name:
            self._phases[configuration.config_id] = name
            self._say(f"{configuration.config_id}: {duration(seconds)}: {phase}")

    def ready(self, configuration: Configuration, seconds: float) -> None:
        self._say(f"{configuration.config_id}: ready after {seconds:.1f} s")

    def cell_started(self, cell: Cell, number: int) -> None:
        """Silent: the line comes when the point is done."""

    def live(self, cell: Cell, live: Live) -> None:
        """Silent: a log is no place for a figure that changes every second."""

    def cell_done(self, cell: Cell, point: Mapping[str, Any]) -> None:
        self._say(f"[{self._schedule}] {describe_point(cell, point)}")

    def failed(self, config_id: str, failure: Failure) -> None:
        self._say(f"{config_id}: FAILED, {failure.kind}: {failure.evidence}")
        if failure.advice:
            self._say(f"  {failure.advice}")

    def note(self, text: str) -> None:
        self._say(text)

    def _say(self, text: str) -> None:
        # lines stay whole whatever the width: they are grepped
        self._console.print(Text(self._prefix + text), soft_wrap=True)


@dataclass(slots=True)
class _Running:
    load_began: float | None = None
    live: Live | None = None

    def seconds_left(self, now: float) -> float | None:
        """From the requests done so far, once the warm-up is over; None where the number of requests is open."""
        live = self.live
        if live is None or self.load_began is None or not live.total or not live.done:
            return None
        return (now - self.load_began) / live.done * max(0, live.total - live.done)


class LiveView:
    """Bars and figures that stay in place; what is finished scrolls past above them."""

    def __init__(self, console: Console, screen: Screen, clock: Clock = time.monotonic) -> None:
        self._schedule: Schedule | None = None
        self._lines = PlainLines(console)
        self._screen = screen
        self._clock = clock
        self._running: dict[Cell, _Running] = {}
        self._starting: dict[str, str] = {}

    def plan(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._refresh()

    def launching(self, configuration: Configuration, launch: int) -> None:
        self._starting[configuration.config_id] = "starting the server"
        self._refresh()

    def starting(self, configuration: Configuration, seconds: float, phase: str | None) -> None:
        told = f"starting the server, {duration(seconds)}" + (f": {phase}" if phase else "")
        self._starting[configuration.config_id] = told
        self._refresh()

    def ready(self, configuration: Configuration, seconds: float) -> None:
        self._starting.pop(configuration.config_id, None)
        self._lines.ready(configuration, seconds)
        self._refresh()

    def cell_started(self, cell: Cell, number: int) -> None:
        self._running[cell] = _Running()
        self._refresh()

    def live(self, cell: Cell, live: Live) -> None:
        running = self._running.setdefault(cell, _Running())
        if live.phase == "load" and running.load_began is None:
            running.load_began = self._clock()
        running.live = live
        self._refresh()

    def cell_done(self, cell: Cell, point: Mapping[str, Any]) -> None:
        self._running.pop(cell, None)
        self._lines.cell_done(cell, point)
        self._refresh()

    def failed(self, config_id: str, failure: Failure) -> None:
        self._starting.pop(config_id, None)
        for cell in [cell for cell in self._running if cell.config_id == config_id]:
            del self._running[cell]
        self._lines.failed(config_id, failure)
        self._refresh()

    def note(self, text: str) -> None:
        self._lines.note(text)

    def _refresh(self) -> None:
        self._screen.update(self._view(), refresh=True)

    def _view(self) -> Group:
        now = self._clock()
        rows: list[Table | Text] = []
        if (plan := self._schedule) is not None:
            rows.append(_bar(Text("sweep", style="bold"), plan.done, plan.cells, str(plan)))
        rows += [Text(f"{config_id}: {told}") for config_id, told in self._starting.items()]
        for cell, running in self._running.items():
            rows += _cell_rows(cell, running, now)
        return Group(*rows)


def _cell_rows(cell: Cell, running: _Running, now: float) -> list[Table | Text]:
    live, left = running.live, running.seconds_left(now)
    phase = live.phase if live else "warm-up"
    status = f"{live.done}/{live.total}" if live and live.total else f"{live.done} done" if live else ""
    status += "" if left is None else f", {duration(left)} left"
    head = _bar(
        Text(f"{describe_cell(cell)} · {phase}"), live.done if live else 0, live.total if live else None, status
    )
    return [head, Text("  " + "   ".join(figures(live)), style="cyan")] if live else [head]


def figures(live: Live) -> list[str]:
    """The current point's figures as words; what is not known is left out."""
    return _said(
        (live.output_tokens_per_s, "{:,.0f} tok/s"),
        (live.ttft_ms, "TTFT {:,.0f} ms"),
        (live.running, "running {:,.0f}"),
        (live.waiting, "waiting {:,.0f}"),
        (live.kv_cache_usage, "KV {:.0%}"),
        (None if live.vram_mib is None else live.vram_mib / 1024, "VRAM {:.2f} GiB"),
        (live.failed or None, "failed {}"),
    )


def _said(*figures: tuple[Any, str]) -> list[str]:
    """Each known value in its words."""
    return [words.format(value) for value, words in figures if value is not None]


def _bar(title: Text, done: int, total: int | None, status: str) -> Table:
    grid = Table.grid(padding=(0, 2), expand=False)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_column(width=24)
    grid.add_column(no_wrap=True)
    grid.add_row(title, ProgressBar(total=total or 1, completed=done if total else 0, width=24), Text(status))
    return grid


def describe_cell(cell: Cell) -> str:
    point = cell.point
    repeat = f" #{point.repeat}" if point.repeat > 1 else ""
    return f"{cell.config_id} {point.scenario} {point.profile} {point.label}{repeat}"


def describe_point(cell: Cell, point: Mapping[str, Any]) -> str:
    words = _said(
        (point.get("output_tokens_per_s"), "{:,.0f} tok/s"),
        (point.get("ttft_ms_p50"), "TTFT {:,.0f} ms"),
        (point.get("tpot_ms_p50"), "TPOT {:.1f} ms"),
        (point.get("requests_failed") or None, "{:g} requests failed"),
        (point.get("bound") or None, "bound {}"),
    )
    if point.get("valid") is False:
        words.append(f"INVALID: {point.get('invalid_reason')}")
    return f"{describe_cell(cell)}: {', '.join(words)}"

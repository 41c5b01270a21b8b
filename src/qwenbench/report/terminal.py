"""The table at the end of a sweep: what each configuration holds, and how fast each scenario ran on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from qwenbench.report.document import PointView
from qwenbench.report.points import point_views
from qwenbench.runfolder.cells import TRACE

MARKS = {"kv": "k", "scheduler": "s", "graph-miss": "g", "prefill": "p", "client": "c"}
"""Bound -> the letter behind a rate. `load` and `decode` carry none: nothing is in the way."""
_MEANING = {
    "k": "KV cache full",
    "s": "max-num-seqs reached",
    "g": "batch above the captured size",
    "p": "prefill takes half the steps",
    "c": "the client was too slow",
    "!": "invalid",
}
_CELLS = (("output_tokens_per_s", "tok/s", 0), ("ttft_p50", "TTFT", 0), ("tpot_p50", "TPOT", 1))
_LEVEL_WIDTH = 20
"""Columns of one load level: a rate with its mark, TTFT, TPOT and the room between them."""


class FinalTable:
    """Lays itself out for the width it gets: load levels that do not fit go into a further block."""

    def __init__(self, points: pd.DataFrame) -> None:
        self._rows = points
        self._views = point_views(points)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Blocks: configurations first, then each scenario over its load levels, then what the marks mean."""
        yield from self._blocks(options.max_width)

    def _blocks(self, width: int) -> list[RenderableType]:
        workloads = list(dict.fromkeys(view.workload for view in self._views))
        blocks: list[RenderableType] = [self._configurations()]
        for workload in workloads:
            blocks += self._workload(workload, width)
        return [*blocks, Text(), self._legend()]

    def _configurations(self) -> Table:
        table = _table("Configuration", "KV GiB", "holds", "seqs", "VRAM peak", "start-up", "failed")
        for config, rows in self._rows.groupby("config_id", sort=False):
            table.add_row(
                Text(str(config)),
                _number(_largest(rows, "kv_cache_gib"), 2),
                _number(_smallest(rows, "requests_that_fit")),
                _number(_largest(rows, "max_num_seqs")),
                _number(_largest(rows, "vram_peak_mib"), 2, scale=1024, unit=" GiB"),
                _number(_largest(rows, "startup_s"), 1, unit=" s"),
                _number(rows["requests_failed"].sum()),
            )
        return table

    def _workload(self, workload: str, width: int) -> list[RenderableType]:
        points = [view for view in self._views if view.workload == workload]
        loads = {view.level or 0.0: view.load for view in points}
        levels = sorted(loads)
        names = list(dict.fromkeys(view.config for view in points))
        room = width - max(len(workload), *map(len, names)) - 4
        most = max(1, room // _LEVEL_WIDTH)
        blocks = math.ceil(len(levels) / most)
        size = math.ceil(len(levels) / blocks)
        cells = {(view.config, view.level or 0.0): view for view in points}
        starts = range(0, len(levels), size)
        tables = [self._block(workload, names, levels[start : start + size], loads, cells) for start in starts]
        return [part for table in tables for part in (Text(), table)]

    def _block(
        self,
        workload: str,
        names: Sequence[str],
        levels: Sequence[float],
        loads: Mapping[float, str],
        cells: Mapping[tuple[str, float], PointView],
    ) -> Table:
        heads = [
            f"{_heading(loads[level]) if not index else ''}\n{label}"
            for level in levels
            for index, (_, label, _) in enumerate(_CELLS)
        ]
        table = _table(f"\n{workload}", *heads)
        for name in names:
            row: list[Text] = []
            for level in levels:
                row += _level(cells.get((name, level)))
            table.add_row(Text(name), *row)
        return table

    def _legend(self) -> Text:
        used = {mark for view in self._views if (mark := _mark(view))}
        parts = ["holds: requests that fit into the KV cache (of the scenario that fits worst); TTFT, TPOT: p50, ms"]
        parts += [f"{mark}: {meaning}" for mark, meaning in _MEANING.items() if mark in used]
        if "simulated" in self._rows and self._rows["simulated"].astype(str).str.lower().eq("true").any():
            parts.insert(0, "SIMULATED")
        return Text("; ".join(parts) + ".", style="dim")


def final_table(points: pd.DataFrame) -> RenderableType:
    """What a person wants after a sweep; `points` is points.csv. Fits 80 columns and more."""
    return FinalTable(points) if len(points) else Group(Text("No load point finished."))


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    table.add_column(Text(first), overflow="fold", min_width=12)
    for name in others:
        table.add_column(Text(name, justify="right"), justify="right", no_wrap=True)
    return table


def _heading(load: str) -> str:
    return load if load == TRACE else f"at {load}"


def _level(view: PointView | None) -> list[Text]:
    cells: list[Text] = []
    for index, (key, _, digits) in enumerate(_CELLS):
        estimate = view.metrics.get(key) if view else None
        cell = _number(estimate[0] if estimate else None, digits)
        if index == 0:
            mark = _mark(view) if view else ""
            cell.append(mark or " ", style="yellow" if mark else "")
        cells.append(cell)
    return cells


def _mark(view: PointView) -> str:
    return "!" if not view.valid else MARKS.get(view.bound or "", "")


def _number(value: float | None, digits: int = 0, *, scale: float = 1.0, unit: str = "") -> Text:
    return Text("–" if value is None or math.isnan(value) else f"{value / scale:,.{digits}f}{unit}")


def _largest(rows: pd.DataFrame, name: str) -> float | None:
    values = pd.to_numeric(rows[name], errors="coerce").dropna()
    return float(values.max()) if len(values) else None


def _smallest(rows: pd.DataFrame, name: str) -> float | None:
    values = pd.to_numeric(rows[name], errors="coerce").dropna()
    return float(values.min()) if len(values) else None

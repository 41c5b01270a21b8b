"""The price of capture for the page: what each step costs once, and what it buys at each load."""

from __future__ import annotations

from typing import Any

import pandas as pd

from qwenbench.analysis.cells import LOAD_POINT, row_records
from qwenbench.analysis.price import PER_LAUNCH, PER_LOAD, PER_SCENARIO, price_of_capture
from qwenbench.report.document import Change, PriceView
from qwenbench.report.markup import Html, Row, join, number, table, tag, term
from qwenbench.report.points import known, level_of, workload_index
from qwenbench.runfolder.run import Run

_SHOWN = {
    "graphs_actual_gib": ("CUDA graphs, GiB", 2),
    "kv_cache_gib": ("KV cache, GiB", 2),
    "kv_cache_blocks": ("KV blocks", 0),
    "vram_ready_mib": ("VRAM ready, MiB", 0),
    "capture_s": ("Capture, s", 1),
    "startup_s": ("Start-up, s", 1),
}
"""Cost -> its title and digits, in the order of the table."""


def price_views(run: Run) -> tuple[PriceView, ...]:
    """One view per step of capture size; empty without two sizes."""
    if run.points.empty:
        return ()
    needed = {"valid", "launch", "repeat", "capture", "max_num_seqs", "gpu_memory_utilization", *LOAD_POINT}
    needed |= {*PER_LAUNCH, *PER_SCENARIO, *PER_LOAD}
    columns = [name for name in run.points if name in needed or str(name).startswith("vary_")]
    prices = price_of_capture(run.points[columns].copy(), run.ledgers)
    steps = prices.groupby(["config_from", "config_to"], sort=False)
    names = workload_index(run.points)
    return tuple(_view(str(before), str(after), rows, names) for (before, after), rows in steps)


def _view(before: str, after: str, rows: pd.DataFrame, names: dict[tuple[str, str], str]) -> PriceView:
    costs: dict[str, Change] = {}
    gains: list[Change] = []
    for row in row_records(rows):
        if known(row["scenario"]) is None:
            costs[str(row["metric"])] = _change(row, None)
        elif row["metric"] == "output_tokens_per_s":
            gains.append(_change(row, names.get((str(row["scenario"]), str(row["profile"])))))
    return PriceView(before, after, f"{before} → {after}", costs, tuple(gains))


def _change(row: dict[str, Any], workload: str | None) -> Change:
    level = None if workload is None else level_of(row)
    before, after, change, low, high = (known(row[name]) for name in ("before", "after", "change", "low", "high"))
    return Change(workload, level, before, after, change, low, high, str(row["basis"]))


def price_table(prices: tuple[PriceView, ...]) -> Html:
    """One row per step: what it costs, whatever the load."""
    if not prices:
        return tag("p", "One capture size only: there is no step to price.", class_="quiet")
    shown = {key: value for key, value in _SHOWN.items() if any(key in price.costs for price in prices)}
    head = ["Step", *(term(title, key) for key, (title, _) in shown.items())]
    rows = [
        Row((price.label, *(_cell(price.costs.get(key), digits) for key, (_, digits) in shown.items())))
        for price in prices
    ]
    return table(head, rows, caption="Change from one capture size to the next")


def _cell(change: Change | None, digits: int) -> Html:
    if change is None or change.change is None:
        return Html("–")
    sign = "+" if change.change > 0 else "−" if change.change < 0 else "±"
    value = join((sign, number(abs(change.change), digits)))
    if change.low is None or change.high is None:
        return value
    return tag("span", value, title=f"95 %: {change.low:,.{digits}f} to {change.high:,.{digits}f} ({change.basis})")

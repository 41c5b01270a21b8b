"""A comparison as one self-contained page: overlaid curves, and every row with its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.compare import Comparison
from qwenbench.report.comparison import HEAD, SIMULATED, cells_of, chosen_rows, counted, gate_lines
from qwenbench.report.html import asset, content_policy, embedded, plotly_js
from qwenbench.report.markup import Html, Row, fill, join, table, tag, text

_MOST_ROWS = 1000
"""More are not drawn as a table: nobody reads them, and the page would be slow."""


def build_comparison_page(comparison: Comparison) -> str:
    """The page as text. Nothing in it is fetched, and its policy forbids fetching."""
    script, library = asset("comparison.js"), plotly_js()
    return fill(
        asset("comparison.html"),
        {
            "policy": content_policy(library, script),
            "title": text(f"{'SIMULATED · ' if comparison.simulated else ''}{' against '.join(comparison.runs)}"),
            "style": asset("report.css"),
            "heading": text(" against ".join(comparison.runs)),
            "banner": tag("p", SIMULATED, class_="banner") if comparison.simulated else Html(""),
            "conditions": _conditions(comparison),
            "summary": join(tag("p", line) for line in _summary(comparison)),
            "rows": _rows(comparison),
            "data": embedded(_data(comparison)),
            "library": library,
            "script": script,
        },
    )


def _summary(comparison: Comparison) -> Iterator[str]:
    yield counted(comparison)
    yield from comparison.notes
    yield from gate_lines(comparison)
    yield from comparison.unmatched


def _conditions(comparison: Comparison) -> Html:
    rows = [Row((run, found.what, _shown(found.before), _shown(found.after))) for run, found in comparison.conditions]
    rows += [
        Row((found.run, f"{found.config}: {found.name}", _shown(found.before), _shown(found.after)))
        for found in comparison.capacities
        if found.before != found.after
    ]
    forced = join(tag("p", f"FORCED: {reason}", class_="banner") for reason in comparison.forced)
    if not rows:
        return join((forced, tag("p", "None that is recorded.", class_="quiet")))
    return join((forced, table(("Run", "What", "Before", "After"), rows, numbers_from=99, caption="Conditions")))


def _shown(value: Any) -> str:
    return "–" if value is None else str(value)


def _rows(comparison: Comparison) -> Html:
    shown = list(comparison.rows)
    note = Html("")
    if len(shown) > _MOST_ROWS:
        shown = chosen_rows(comparison, everything=False)[:_MOST_ROWS]
        note = tag("p", f"{len(shown)} of {len(comparison.rows)} rows: --json has them all.", class_="quiet")
    rows = [Row((row.run, *cells_of(row))) for row in shown]
    return join((note, table(("Run", *HEAD), rows, numbers_from=99, caption="Changes")))


def _data(comparison: Comparison) -> Mapping[str, Any]:
    """What the curves are drawn from."""
    points = [
        {
            "run": run,
            "config": str(point["config_id"]),
            "workload": f"{point['scenario']} ({point['profile']})",
            "level": point["concurrency"] if point["concurrency"] is not None else point["rate"],
            "figures": {
                key: [_short(e.value), _short(e.low), _short(e.high)]
                for key, e in run_table.estimates(index).items()
                if e.value is not None
            },
        }
        for run, run_table in zip(comparison.runs, comparison.tables, strict=True)
        for index, point in enumerate(run_table.load_points)
    ]
    return {
        "simulated": comparison.simulated,
        "runs": list(comparison.runs),
        "metrics": {key: {"unit": column.unit, "better": column.better} for key, column in METRICS.items()},
        "points": points,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")

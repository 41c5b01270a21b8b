"""The parts of the page that are words and tables: they can be read before any script has run, and printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwenbench.analysis.bounds import BOUNDS
from qwenbench.analysis.cells import row_records
from qwenbench.analysis.columns import POINT_COLUMNS
from qwenbench.report.document import ConfigView, Document, PointView
from qwenbench.report.markup import Html, Row, join, number, swatch, table, tag, term
from qwenbench.report.points import is_true, known, level_of
from qwenbench.runfolder.run import Run


def configurations(document: Document) -> Html:
    """One row per configuration: what it holds and what it takes."""
    head = ["Configuration", *_terms("kv_cache_gib", "kv_cache_tokens", "requests_that_fit", "max_num_seqs")]
    head += [term("Best output tok/s", "output_tokens_per_s"), term("TTFT p50 there", "ttft_ms_p50")]
    head += [term("VRAM peak GiB", "vram_peak_mib"), term("Start-up s", "startup_s")]
    return table(head, [_configuration(document, view) for view in document.configs], caption="Configurations")


def _configuration(document: Document, view: ConfigView) -> Row:
    points = [point for point in document.points if point.config == view.id]
    best = max(
        (point for point in points if point.valid and "output_tokens_per_s" in point.metrics),
        key=lambda point: point.metrics["output_tokens_per_s"][0],
        default=None,
    )
    fits = [point.requests_that_fit for point in points if point.requests_that_fit is not None]
    low, high = min(fits, default=None), max(fits, default=None)
    fit = number(low) if low == high else join((number(low), "–", number(high)))
    name = join((swatch(view.id), view.id, tag("span", " failed", class_="bad") if view.failed else Html("")))
    ledger = view.ledger
    return Row(
        (
            name,
            number(ledger.get("kv_cache_gib"), 2),
            number(ledger.get("kv_cache_tokens")),
            fit,
            number(view.max_num_seqs),
            number(_value(best, "output_tokens_per_s")),
            join((number(_value(best, "ttft_p50")), " ms" if _value(best, "ttft_p50") is not None else "")),
            number(view.vram_peak_gib, 2),
            number(view.startup_s, 1),
        ),
        config=view.id,
    )


def _value(point: PointView | None, key: str) -> float | None:
    estimate = point.metrics.get(key) if point else None
    return estimate[0] if estimate else None


def _terms(*names: str) -> Iterator[Html]:
    labels = {"kv_cache_gib": "KV GiB", "kv_cache_tokens": "KV tokens", "requests_that_fit": "Requests that fit"}
    labels["max_num_seqs"] = "max-num-seqs"
    for name in names:
        yield term(labels.get(name, name), name)


_POINT_COLUMNS = (
    ("output_tokens_per_s", "Output tok/s", "output_tokens_per_s", 0),
    ("ttft_p50", "TTFT p50, ms", "ttft_ms_p50", 0),
    ("ttft_p99", "TTFT p99, ms", "ttft_ms_p99", 0),
    ("tpot_p50", "TPOT p50, ms", "tpot_ms_p50", 2),
    ("itl_p99", "ITL p99, ms", "itl_ms_p99", 2),
    ("e2e_p50", "E2E p50, ms", "e2e_ms_p50", 0),
)
"""Metric -> title, the column that defines it, digits."""


def points(document: Document) -> Html:
    """Every load point with its main figures and their intervals, for reading aloud, copying and printing."""
    head = ["Configuration", "Scenario", "Load", *(term(title, name) for _, title, name, _ in _POINT_COLUMNS)]
    rows = [
        Row(
            (
                join((swatch(point.config), point.config)),
                point.workload,
                "trace" if point.level is None else f"{point.level:g}",
                *(_estimate(point, key, digits) for key, _, _, digits in _POINT_COLUMNS),
            ),
            config=point.config,
            workload=point.workload,
        )
        for point in document.points
    ]
    return table(head, rows, numbers_from=2, caption="Load points; the small figure is half of the 95 % interval")


def _estimate(point: PointView, key: str, digits: int) -> Html:
    if key not in point.metrics:
        return Html("–")
    value, low, high = point.metrics[key]
    shown = number(value, digits) if point.valid else tag("s", number(value, digits), title=point.invalid_reason)
    if low is None or high is None:
        return shown
    return join((shown, tag("small", " ± ", number((high - low) / 2, digits))))


def bounds(document: Document) -> Html:
    """Why each point is not faster: one table per workload, configurations x load."""
    if not document.points:
        return tag("p", "No load point finished.", class_="quiet")
    blocks = []
    for workload in document.workloads:
        points = [point for point in document.points if point.workload == workload]
        levels = sorted({point.level for point in points}, key=lambda level: level or 0.0)
        cells = {(point.config, point.level): point for point in points}
        rows = [
            Row(
                (join((swatch(view.id), view.id)), *(_bound(cells.get((view.id, level))) for level in levels)),
                config=view.id,
            )
            for view in document.configs
            if any((view.id, level) in cells for level in levels)
        ]
        head = ["Configuration", *("trace" if level is None else f"{level:g}" for level in levels)]
        block = table(head, rows, numbers_from=99, caption=f"{workload}, by {document.level_label.lower()}")
        blocks.append(tag("div", block, data_workload=workload, class_="bounds"))
    legend = join(
        tag("li", tag("span", word, class_=f"bound b-{word}"), " ", meaning) for word, meaning in BOUNDS.items()
    )
    return join((tag("div", *blocks, class_="bounds-grid"), tag("ul", legend, class_="legend")))


def _bound(point: PointView | None) -> Html:
    if point is None:
        return Html("–")
    if not point.valid:
        return tag("span", "invalid", class_="bound b-invalid", title=point.invalid_reason or "no reason given")
    if point.bound is None:
        return Html("–")
    kind = point.bound if point.bound in BOUNDS else "other"
    return tag("span", point.bound, class_=f"bound b-{kind}", title=point.bound_all)


def failures(run: Run) -> Html:
    """A row per failed configuration with its evidence and advice, and the points that cannot be used."""
    parts = [
        tag(
            "article",
            tag("h3", swatch(config), config, " ", tag("span", failure.get("class") or "unknown", class_="badge")),
            tag("pre", failure.get("evidence") or "(no evidence in the log)"),
            tag("p", tag("strong", "What to do: "), failure["advice"]) if failure.get("advice") else Html(""),
            tag("p", _failure_facts(failure), class_="quiet"),
            class_="failure",
            data_config=config,
        )
        for config, failure in run.failures.items()
    ]
    if not parts:
        parts.append(tag("p", "Every configuration started and stayed up.", class_="quiet"))
    return join((*parts, _left_out(run)))


def _failure_facts(failure: Mapping[str, Any]) -> str:
    code = failure.get("exit_code")
    return f"phase: {failure.get('phase') or 'unknown'}; exit code: {'unknown' if code is None else code}"


def _left_out(run: Run) -> Html:
    if run.points.empty:
        return tag("p", "No load point finished.", class_="quiet")
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    for row in row_records(run.points):
        broken = not is_true(row.get("valid", True))
        failed = int(known(row.get("requests_failed")) or 0)
        if broken or failed:
            level = level_of(row)
            reason = str(known(row.get("invalid_reason")) or "no reason given") if broken else ""
            key = (str(row["config_id"]), str(row["scenario"]), "trace" if level is None else f"{level:g}", reason)
            groups.setdefault(key, []).append(failed)
    if not groups:
        return tag("p", "Every point is valid and no request failed.", class_="quiet")
    rows = [
        Row((config, scenario, level, len(failed), sum(failed), "no" if reason else "yes", reason), config=config)
        for (config, scenario, level, reason), failed in groups.items()
    ]
    head = ("Configuration", "Scenario", "Load", "Repeats", "Failed requests", "Valid", "Why not")
    summary = tag("summary", "Points that are invalid or had failed requests ", tag("span", len(rows), class_="count"))
    return tag("details", summary, table(head, rows, numbers_from=99), open="" if len(rows) <= 12 else None)


def conditions(run: Run) -> Html:
    """run.json as it stands, one line per value: versions, hardware, seed, order, hashes, command line."""
    groups: dict[str, list[Row]] = {}
    for name, value in _flat(run.meta):
        group, _, rest = name.partition(".")
        groups.setdefault(group if rest else "run", []).append(Row((rest or group, value)))
    warnings = [
        Row((config, warning), config=config)
        for config, ledger in run.ledgers.items()
        for warning in ledger.get("warnings") or ()
    ]
    if warnings:
        groups["warnings of the servers"] = warnings
    return join(
        tag(
            "details",
            tag("summary", group.replace("_", " "), " ", tag("span", f"{len(rows)}", class_="count")),
            table(("Name", "Value"), rows, numbers_from=99),
            open="" if group in ("run", "versions", "hardware") else None,
        )
        for group, rows in groups.items()
    )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if all(not isinstance(inner, Mapping | list) for inner in value):
            yield name, " ".join(map(str, value)) or "none"
        else:
            for index, inner in enumerate(value):
                yield from _flat(inner, f"{name}.{index}")
    else:
        yield name, "not known" if value is None else str(value)


def definitions() -> Html:
    """Every column's definition, from the same table that hovering takes them from."""
    rows = [Row((column.name, column.unit or "–", column.definition)) for column in POINT_COLUMNS]
    return table(("Column", "Unit", "Definition"), rows, numbers_from=99, caption="Columns of points.csv")

"""The parts of the page that are words and tables: they can be read before any script has run, and printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qwenbench.analysis.bounds import BOUNDS
from qwenbench.analysis.columns import POINT_COLUMNS, label
from qwenbench.analysis.conditions import places_of
from qwenbench.analysis.price import Price, profile_costs
from qwenbench.analysis.run import Run, records
from qwenbench.report.comparison import places_table
from qwenbench.report.document import (
    Block,
    Code,
    Config,
    Fold,
    Group,
    Heading,
    Inline,
    Number,
    Paragraph,
    Row,
    Span,
    Table,
    number,
    term,
)
from qwenbench.report.page_data import ConfigView, PageData
from qwenbench.report.points import PointView
from qwenbench.runfolder.cells import load_label


def configurations(data: PageData) -> Iterator[Block]:
    """One row per configuration: what it holds and what it takes."""
    keys = ("kv_cache_gib", "requests_that_fit", "max_num_seqs")
    head = ["Configuration", *(term(key) for key in keys)]
    head += [term("output_tokens_per_s", "Best output tokens/s"), term("ttft_p50", "TTFT p50 there, ms")]
    head += [term("vram_peak_mib"), term("startup_s")]
    yield Table(head, [_configuration(data, view) for view in data.configs], caption="Configurations")
    yield from _longest(data)


def _longest(data: PageData) -> Iterator[Block]:
    """The longest request, as a note: where max_model_len caps it, every configuration has the same figure."""
    held = [(view, view.ledger["kv_cache_tokens"]) for view in data.configs if view.ledger.get("kv_cache_tokens")]
    capped = {tokens for view, tokens in held if tokens == view.ledger.get("max_model_len_effective")}
    if held and len(capped) == 1 and all(tokens in capped for _, tokens in held):
        words = f"The longest request has {capped.pop():,} tokens: max_model_len caps it, the KV cache holds more."
        yield Paragraph(words, "quiet")
    elif held:
        words = ", ".join(f"{view.id} {tokens:,}" for view, tokens in held)
        yield Paragraph(f"Longest request that fits, tokens: {words}.", "quiet")


def _configuration(data: PageData, view: ConfigView) -> Row:
    points = data.points_of(view.id)
    best = max(
        (point for point in points if point.valid and "output_tokens_per_s" in point.metrics),
        key=lambda point: point.metrics["output_tokens_per_s"][0],
        default=None,
    )
    fits = [point.requests_that_fit for point in points if point.requests_that_fit is not None]
    low, high = Number(min(fits, default=None), digits=0), Number(max(fits, default=None), digits=0)
    name: Inline = (Config(view.id), Span(" failed", "bad")) if view.failed else Config(view.id)
    return Row(
        (
            name,
            number("kv_cache_gib", view.ledger.get("kv_cache_gib"), bare=True),
            low if low == high else (low, "–", high),
            Number(view.max_num_seqs, digits=0),
            _value(best, "output_tokens_per_s"),
            _value(best, "ttft_p50"),
            Number(view.vram_peak_gib, digits=2),
            number("startup_s", view.startup_s, bare=True),
        ),
        config=view.id,
    )


def _value(point: PointView | None, key: str) -> Number:
    estimate = point.metrics.get(key) if point else None
    return number(key, estimate[0] if estimate else None, bare=True)


_POINT_KEYS = ("output_tokens_per_s", "ttft_p50", "ttft_p99", "tpot_p50", "itl_p99", "e2e_p50")


def points(data: PageData) -> Iterator[Block]:
    """Every load point with its main figures and their intervals, for reading aloud, copying and printing."""
    head = ["Configuration", "Scenario", "Load", *(term(key) for key in _POINT_KEYS)]
    rows = [
        Row(
            (Config(point.config), point.workload, point.load, *(_estimate(point, key) for key in _POINT_KEYS)),
            config=point.config,
            workload=point.workload,
        )
        for point in data.points
    ]
    yield Table(head, rows, numbers_from=2, caption="Load points; the small figures are the 95 % interval")


def _estimate(point: PointView, key: str) -> Inline:
    if key not in point.metrics:
        return None
    value = number(key, *point.metrics[key], bare=True)
    return value if point.valid else Span(str(value), "struck", hint=point.invalid_reason)


def bounds(data: PageData) -> Iterator[Block]:
    """Why each point is not faster: one table per workload, configurations x load."""
    if not data.points:
        yield Paragraph("No load point finished.", "quiet")
        return
    blocks = []
    for workload in data.workloads:
        loads, grid = data.grid(workload)
        rows = [Row((Config(view.id), *map(_bound, row)), config=view.id) for view, row in grid]
        caption = f"{workload}, by {data.level_label.lower()}"
        table = Table(["Configuration", *loads], rows, numbers_from=99, caption=caption)
        blocks.append(Group((table,), workload=workload, style="bounds"))
    yield Group(blocks, style="grid")
    used = {point.bound for point in data.points}
    words = {word: meaning for word, meaning in BOUNDS.items() if word in used}
    rows = [Row((Span(word, "bound", kind=word), meaning)) for word, meaning in words.items()]
    yield Table((), rows, numbers_from=99)


def _bound(point: PointView | None) -> Inline:
    if point is None:
        return None
    if not point.valid:
        return Span("invalid", "bound", hint=point.invalid_reason or "no reason given", kind="invalid")
    if point.bound is None:
        return None
    return Span(point.bound, "bound", hint=point.bound_all, kind=point.bound if point.bound in BOUNDS else "other")


def failures(run: Run) -> Iterator[Block]:
    """Each failed configuration with its evidence and advice, and the points that cannot be used."""
    for config, failure in run.failures.items():
        blocks: list[Block] = [
            Heading((Config(config), " ", Span(failure.get("class") or "unknown", "badge")), 3),
            Code(failure.get("evidence") or "(no evidence in the log)"),
        ]
        if failure.get("advice"):
            blocks.append(Paragraph((Span("What to do: "), failure["advice"])))
        code = failure.get("exit_code")
        facts = f"phase: {failure.get('phase') or 'unknown'}; exit code: {'unknown' if code is None else code}"
        yield Group((*blocks, Paragraph(facts, "quiet")), config=config, style="failure")
    if not run.failures:
        yield Paragraph("Every configuration started and stayed up.", "quiet")
    yield from _unusable(run)


def _unusable(run: Run) -> Iterator[Block]:
    if run.points.empty:
        yield Paragraph("No load point finished.", "quiet")
        return
    groups: dict[tuple[str, ...], list[int]] = {}
    for row in records(run.points):
        failed = int(row["requests_failed"] or 0)
        if failed or not row["valid"]:
            load = load_label(row["concurrency"], row["rate"], short=True)
            why = "" if row["valid"] else str(row["invalid_reason"] or "no reason given")
            key = (str(row["config_id"]), str(row["scenario"]), load, why, str(row["error_top"] or ""))
            groups.setdefault(key, []).append(failed)
    if not groups:
        yield Paragraph("Every point is valid and no request failed.", "quiet")
        return
    rows = [
        Row((config, scenario, load, len(failed), sum(failed), errors, not why, why), config=config)
        for (config, scenario, load, why, errors), failed in groups.items()
    ]
    head = ("Configuration", "Scenario", "Load", "Repeats", "Failed requests", "Why they failed", "Valid", "Why not")
    table = Table(head, rows, numbers_from=99)
    yield Fold("Points that are invalid or had failed requests", (table,), count=len(rows), open=len(rows) <= 12)


def speed_settings(data: PageData) -> Iterator[Block]:
    """What makes a server slower than it could be, as its log tells; nothing where no log was read."""
    found: dict[tuple[str, ...], list[str]] = {}
    for view in data.configs:
        for setting in view.ledger.get("speed_settings") or ():
            key = tuple(str(setting.get(part) or "") for part in ("state", "cost", "advice", "source"))
            found.setdefault(key, []).append(view.id)
    read = [view for view in data.configs if view.ledger.get("speed_settings") is not None]
    if not found:
        words = "No setting that costs speed stands in the servers' logs." if read else "No start-up log was read."
        yield Paragraph(words, "quiet")
        return
    rows = []
    for (state, cost, advice, source), configs in found.items():
        of = "all" if len(configs) == len(read) else ", ".join(configs)
        cells = (state, cost or None, advice, of, Span(source, "quiet"))
        rows.append(Row(cells, config=configs[0] if len(configs) == 1 else None))
    head = ("What the log says", "What it costs", "What to do", "Configurations", "Known from")
    yield Table(head, rows, numbers_from=99)


def profile_price_table(run: Run) -> Iterator[Block]:
    """What each sampling profile costs against none; nothing to say where no scenario was run without one too."""
    costs = profile_costs(run)
    if not costs:
        return
    yield Heading("Price of a profile", 3)
    rows = []
    for cost in costs:
        where = (Config(cost.config_id), cost.scenario, load_label(cost.concurrency, cost.rate), cost.profile)
        low, high = (None if bound is None else 100 * bound for bound in (cost.low, cost.high))
        change = Number(100 * cost.change, "%", 1, low, high, signed=True)
        figures = (label(cost.metric), number(cost.metric, cost.before), number(cost.metric, cost.after), change)
        rows.append(Row((*where, *figures), config=cost.config_id))
    head = ("Configuration", "Scenario", "Load", "Profile", "Metric", "without sampling fields", "with them", "change")
    table = Table(head, rows, numbers_from=5, caption="Change against the same requests without sampling fields")
    yield table if len(rows) <= 24 else Fold("Every load", (table,), count=len(rows))


_COSTS = ("graphs_actual_gib", "kv_cache_gib", "kv_cache_blocks", "vram_ready_mib", "capture_s", "startup_s")


def prices(data: PageData) -> Iterator[Block]:
    """One row per step of the captured size: what it costs, whatever the load."""
    if not data.prices:
        yield Paragraph("One capture size only: there is no step to price.", "quiet")
        return
    shown = [key for key in _COSTS if any(key in price.costs for price in data.prices)]
    rows = [Row((price.label, *(_step(key, price.costs.get(key)) for key in shown))) for price in data.prices]
    yield Table(("Step", *map(term, shown)), rows, caption="Change from one capture size to the next")


def _step(key: str, change: Price | None) -> Inline:
    if change is None:
        return None
    return number(key, change.change, change.low, change.high, bare=True, signed=True)


def conditions(run: Run) -> Iterator[Block]:
    """run.json as it stands, one line per value: versions, hardware, seed, order, hashes, command line."""
    yield from places_table([(run.run_id, place) for place in places_of(run)])
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
    for group, rows in groups.items():
        table, shown = Table(("Name", "Value"), rows, numbers_from=99), group in ("versions", "hardware")
        yield Fold(group.replace("_", " "), (table,), count=len(rows), open=shown and len(rows) <= 16)


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


def definitions() -> Iterator[Block]:
    """Every column's definition, from the same table that hovering takes them from."""
    rows = [Row((column.name, column.unit or "–", column.definition)) for column in POINT_COLUMNS]
    yield Table(("Column", "Unit", "Definition"), rows, numbers_from=99, caption="Columns of points.csv")

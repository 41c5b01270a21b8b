"""A run in tables: what each configuration holds and how fast each scenario ran on it, for a terminal and Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from qwenbench.analysis.run import Run
from qwenbench.report.answer import answered, question_of, short_answer
from qwenbench.report.document import SIMULATED, Block, Bullets, Heading, Inline, Number, Paragraph, Row, Span, Table
from qwenbench.report.names import number
from qwenbench.report.page_data import ConfigView, PageData, page_data
from qwenbench.report.points import PointView
from qwenbench.runfolder.cells import TRACE

MARKS = {"kv": "k", "scheduler": "s", "graph-miss": "g", "prefill": "p", "client": "c"}
"""Bound -> the letter behind a rate. `load` and `decode` carry none: nothing is in the way."""
_MEANING = {
    "k": "KV cache full",
    "s": "max-num-seqs reached",
    "g": "batch above the captured size",
    "p": "other requests' prompts take most of the time",
    "c": "the client was too slow",
    "!": "invalid",
}
_CELLS = (("output_tokens_per_s", "tok/s"), ("ttft_p50", "TTFT"), ("tpot_p50", "TPOT"))


def final_tables(run: Run) -> Iterator[Block]:
    """What a person wants after a sweep: the tables, and what their marks mean."""
    data = page_data(run, samples=False)
    if not data.points:
        yield Paragraph("No load point finished.")
        return
    yield from _tables(data)
    yield Paragraph(_legend(data), "quiet")


def example_tables(run: Run) -> Iterator[Block]:
    """The tables alone with what their marks mean, for README.md."""
    data = page_data(run, samples=False)
    yield from _tables(data, intervals=True)
    yield Paragraph(_legend(data))


def run_summary(run: Run) -> Iterator[Block]:
    """Answer, tables, failures and conditions: short enough for the description of a pull request."""
    data = page_data(run, samples=False)
    yield Heading(f"qwenbench: {run.run_id}")
    if run.simulated:
        interval = run.meta.get("simulated_interval")
        yield Paragraph(f"{SIMULATED} {interval}" if interval else SIMULATED, "warning")
    yield from short_answer(answered(run, question_of(run)))
    yield from _tables(data, intervals=True)
    if data.points:
        yield Paragraph(_legend(data))
    if run.failures:
        yield Heading("Failures", 3)
        yield Bullets(
            [
                (
                    config,
                    f": {failure.get('class')}. {failure.get('evidence') or ''} {failure.get('advice') or ''}",
                )
                for config, failure in run.failures.items()
            ]
        )
    versions = run.meta.get("versions")
    shown = [f"{name} {value}" for name, value in versions.items() if value] if isinstance(versions, dict) else []
    parts = [data.card_name or "card not known", *shown, f"seed {run.meta.get('seed', 'not known')}"]
    yield Paragraph(f"Conditions: {', '.join(parts)}.")


def _tables(data: PageData, intervals: bool = False) -> Iterator[Block]:
    yield _configurations(data)
    for workload in data.workloads:
        yield _workload(data, workload, intervals)


def _configurations(data: PageData) -> Table:
    head = ("Configuration", "KV GiB", "holds", "seqs", "VRAM peak GiB", "start-up s", "failed")
    return Table(head, [_configuration(data, view) for view in data.configs])


def _configuration(data: PageData, view: ConfigView) -> Row:
    points = [point for point in data.points if point.config == view.id]
    fits = [point.requests_that_fit for point in points if point.requests_that_fit is not None]
    kv = next(
        (point.kv_cache_gib for point in points if point.kv_cache_gib is not None), view.ledger.get("kv_cache_gib")
    )
    name: Inline = (view.id, Span(" did not start", "bad")) if view.failed and not points else view.id
    return Row(
        (
            name,
            number("kv_cache_gib", kv, bare=True),
            Number(min(fits, default=None), digits=0),
            Number(view.max_num_seqs, digits=0),
            Number(view.vram_peak_gib, digits=2),
            number("startup_s", view.startup_s, bare=True),
            Number(sum(point.requests_failed for point in points) if points else None, digits=0),
        )
    )


def _workload(data: PageData, workload: str, intervals: bool) -> Table:
    points = [point for point in data.points if point.workload == workload]
    loads = {point.level: point.load for point in points}
    levels = sorted(loads, key=lambda level: level or 0.0)
    cells = {(point.config, point.level): point for point in points}
    head = [f"\n{workload}"]
    for level in levels:
        at = loads[level] if loads[level] == TRACE else f"at {loads[level]}"
        head += [f"{at if not index else ''}\n{title}" for index, (_, title) in enumerate(_CELLS)]
    rows = [
        Row((view.id, *(cell for level in levels for cell in _cells(cells.get((view.id, level)), intervals))))
        for view in data.configs
        if any((view.id, level) in cells for level in levels)
    ]
    return Table(head, rows, group=len(_CELLS))


def _cells(point: PointView | None, intervals: bool) -> Iterator[Inline]:
    for index, (key, _) in enumerate(_CELLS):
        estimate = point.metrics.get(key) if point else None
        value, *bounds = estimate or (None, None, None)
        shown = number(key, value, *(bounds if intervals else ()), bare=True)
        mark = _mark(point) if point and not index else ""
        yield (shown, Span(mark, "bad")) if mark else shown


def _mark(point: PointView) -> str:
    return "!" if not point.valid else MARKS.get(point.bound or "", "")


def _legend(data: PageData) -> str:
    used = {mark for point in data.points if (mark := _mark(point))}
    unit = "client streams" if data.level_log else "sessions a second"
    parts = [
        "holds: requests that fit into the KV cache (of the scenario that fits worst)",
        f"at N: {unit}; TTFT, TPOT: p50, ms",
    ]
    parts += [f"{mark}: {meaning}" for mark, meaning in _MEANING.items() if mark in used]
    return f"{'SIMULATED; ' if data.simulated else ''}{'; '.join(parts)}."

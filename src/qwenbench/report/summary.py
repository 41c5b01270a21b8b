"""A run in short: tables for a terminal and Markdown, and one picture to post, 1200 x 630, with its results.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qwenbench import __version__
from qwenbench.analysis.columns import column_of, label
from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.recommend import Answer
from qwenbench.analysis.run import Run, known_numbers
from qwenbench.errors import RunError
from qwenbench.report.answer import answered, asked_flags, question_of, short_answer
from qwenbench.report.document import (
    SIMULATED,
    Block,
    Bullets,
    Heading,
    Inline,
    Number,
    Paragraph,
    Row,
    Span,
    Table,
    counted,
    number,
)
from qwenbench.report.page_data import ConfigView, PageData, Subject, page_data, subject_of
from qwenbench.report.points import PointView
from qwenbench.report.svg import LIGHT, Drawing, shortened, text_width, wrapped
from qwenbench.runfolder.cells import TRACE

if TYPE_CHECKING:
    import pandas as pd

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
                (config, f": {failure.get('class')}. {failure.get('evidence') or ''} {failure.get('advice') or ''}")
                for config, failure in run.failures.items()
            ]
        )
    shown = [f"{name} {value}" for name, value in run.part("versions").items() if value]
    parts = [data.subject.card or "card not known", *shown, f"seed {run.meta.get('seed', 'not known')}"]
    yield Paragraph(f"Conditions: {', '.join(parts)}.")


def _tables(data: PageData, intervals: bool = False) -> Iterator[Block]:
    yield _configurations(data)
    for workload in data.workloads:
        yield _workload(data, workload, intervals)


def _configurations(data: PageData) -> Table:
    head = ("Configuration", "KV GiB", "holds", "seqs", "VRAM peak GiB", "start-up s", "failed")
    return Table(head, [_configuration(data, view) for view in data.configs])


def _configuration(data: PageData, view: ConfigView) -> Row:
    points = data.points_of(view.id)
    fits = [point.requests_that_fit for point in points if point.requests_that_fit is not None]
    kv = next((p.kv_cache_gib for p in points if p.kv_cache_gib is not None), view.ledger.get("kv_cache_gib"))
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
    loads, grid = data.grid(workload)
    head = [f"\n{workload}"]
    for load in loads:
        at = load if load == TRACE else f"at {load}"
        head += [f"{at if not index else ''}\n{title}" for index, (_, title) in enumerate(_CELLS)]
    rows = [Row((view.id, *(cell for point in row for cell in _cells(point, intervals)))) for view, row in grid]
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


WIDTH, HEIGHT = 1200.0, 630.0
_FIGURES = ("output_tokens_per_s", "ttft_p50", "tpot_p50", "requests_that_fit", "vram_peak_mib")
_SPARE = ("kv_cache_gib", "startup_s", "e2e_p50", "output_tokens_per_s_per_user")
"""Taken, in this order, where one of the five is not known."""
_FLAGS = ("max-cudagraph-capture-size", "max-num-seqs", "gpu-memory-utilization")
FIVE = 5


@dataclass(frozen=True, slots=True)
class CardFacts:
    subject: Subject
    config_id: str
    flags: Mapping[str, str]
    load: str
    estimates: Mapping[str, Estimate]
    """Metric or column -> its figure in the column's own unit, in the order of the picture."""
    interpolated: bool
    """The load lies between two that were measured."""
    measured: Mapping[str, Any]
    """How it was measured: scenarios, requests, repeats, launches, window, lengths, client error."""
    decided: bool

    @property
    def figures(self) -> dict[str, Number]:
        return {key: number(key, e.value, e.low, e.high) for key, e in self.estimates.items()}


def card_facts(run: Run, answer: Answer) -> CardFacts:
    """The card of the recommended configuration. Raises RunError where no configuration qualifies."""
    if answer.config_id is None:
        near = f" Nearest miss: {answer.nearest_miss}." if answer.nearest_miss else ""
        raise RunError(f"no configuration qualifies, so there is nothing to put on a card.{near}")
    figures = {key: answer.expected.get(key, Estimate(0, None)) for key in (*_FIGURES, *_SPARE)}
    expected = dict([(key, found) for key, found in figures.items() if found.value is not None][:FIVE])
    own = run.points[run.points["config_id"] == answer.config_id]
    flags = asked_flags(run.launches.get(answer.config_id, {}))
    return CardFacts(
        subject=subject_of(run),
        config_id=answer.config_id,
        flags={name: str(flags[name]) for name in _FLAGS if flags.get(name) is not None},
        load=counted(answer.users, "stream") if answer.users is not None else "",
        estimates=expected,
        interpolated=answer.users is not None and answer.users not in known_numbers(own, "concurrency"),
        measured=_measured(own[own["valid"].eq(True)]),
        decided=answer.decided,
    )


def _measured(points: pd.DataFrame) -> dict[str, Any]:
    def largest(column: str) -> float | None:
        return max(known_numbers(points, column), default=None)

    def words(column: str) -> list[str]:
        return sorted(points[column].dropna().astype(str).unique().tolist())

    controlled = points["length_controlled"].dropna()
    return {
        "scenarios": words("scenario"),
        "profiles": words("profile"),
        "points": len(points),
        "requests": int(points["requests_ok"].sum()),
        "repeats": int(largest("repeat") or 0) or None,
        "launches": int(largest("launch") or 0) or None,
        "windows": words("window"),
        "length_controlled": bool(controlled.eq(True).all()) if len(controlled) else None,
        "client_error_ms": largest("client_error_ms"),
    }


def results_json(facts: CardFacts) -> dict[str, Any]:
    """results.json: what the picture shows, for machines. null is "not known"."""
    subject = facts.subject
    return {
        "schema_version": 1,
        "simulated": subject.simulated,
        "run_id": subject.run_id,
        "started": subject.started,
        "model": list(subject.models),
        "card": subject.card,
        "gpu": subject.gpu,
        "vllm_version": subject.vllm,
        "driver": subject.driver,
        "qwenbench_version": __version__,
        "config_id": facts.config_id,
        "flags": dict(facts.flags),
        "load": facts.load or None,
        "interpolated": facts.interpolated,
        "decided": facts.decided,
        "figures": {
            key: {"label": label(key), "value": e.value, "low": e.low, "high": e.high, "unit": column_of(key).unit}
            for key, e in facts.estimates.items()
        },
        "measured": dict(facts.measured),
    }


def card_svg(facts: CardFacts, theme: Mapping[str, str] = LIGHT) -> str:
    drawing = Drawing(WIDTH, theme)
    drawing.height = HEIGHT
    left, right = 64.0, WIDTH - 64
    drawing.rect(0, 0, 12, HEIGHT, colour="accent", radius=0)
    drawing.text(left, 78, "qwenbench", colour="accent", size=22, bold=True)
    if facts.subject.simulated:
        drawing.simulated(right, 76, size=20)
    y = 142.0
    for line in wrapped(facts.subject.title, right - left, 44, bold=True)[:2]:
        drawing.text(left, y, line, size=44, bold=True)
        y += 54
    settings = "   ".join(f"--{name} {value}" for name, value in facts.flags.items()) or facts.config_id
    size = _fitting((settings,), right - left, (24, 22, 20), bold=False)
    drawing.text(left, y, shortened(settings, right - left, size), colour="accent", size=size)
    _figures(drawing, facts, left, right, 396.0)
    drawing.line(left, 508, right, 508, colour="rule", width=1.5)
    y = 544
    for line in wrapped(how(facts), right - left, 20)[:2]:
        drawing.text(left, y, line, colour="soft", size=20)
        y += 28
    drawing.text(left, 604, f"qwenbench {__version__} · {facts.subject.run_id}", colour="faint", size=16)
    return drawing.svg(background=True)


def _figures(drawing: Drawing, facts: CardFacts, left: float, right: float, y: float) -> None:
    width = (right - left) / FIVE
    # tokens/s and counts have their unit in their name
    shown = {key: str(replace(n, unit="") if n.unit == "tok/s" else n) for key, n in facts.figures.items()}
    size = _fitting(shown.values(), width - 18, (42, 38, 34, 30, 26), bold=True)
    for place, (key, value) in enumerate(facts.figures.items()):
        x, room = left + place * width, width - 18
        drawing.text(x, y, shown[key], size=size, bold=True)
        drawing.text(x, y + 32, shortened(label(key), room, 18), colour="soft", size=18)
        if value.interval:
            drawing.text(x, y + 58, shortened(f"95 %: {value.interval}", room, 16), colour="soft", size=16)
    where = f"at {facts.load}, interpolated" if facts.interpolated else f"at {facts.load}"
    if facts.load:
        drawing.text(left, y - 58, where, colour="soft", size=22)


def _fitting(texts: Iterable[str], width: float, sizes: Sequence[float], bold: bool) -> float:
    """The largest of the sizes at which every text fits; the smallest where none does."""
    lines = list(texts)
    return next((s for s in sizes if all(text_width(line, s, bold) <= width for line in lines)), sizes[-1])


def how(facts: CardFacts) -> str:
    measured, verb = facts.measured, "Simulated" if facts.subject.simulated else "Measured"
    parts = [f"{verb}: {measured['requests']:,} requests of {', '.join(measured['scenarios'])}"]
    words = (("launches", "launch"), ("repeats", "repeat"))
    parts += [counted(measured[name], word) for name, word in words if measured[name]]
    if measured["windows"]:
        steady = measured["windows"] == ["steady"]
        parts.append("steady windows" if steady else "whole runs, ramp and drain included, in part")
    if measured["length_controlled"] is not None:
        parts.append("forced output lengths" if measured["length_controlled"] else "natural output lengths")
    if not any(value.interval for value in facts.figures.values()):
        parts.append("one repeat: no interval")
    if facts.subject.driver:
        parts.append(f"driver {facts.subject.driver}")
    return ", ".join(parts) + "."

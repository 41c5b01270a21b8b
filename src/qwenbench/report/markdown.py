"""A run as Markdown, short enough for the description of a pull request."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from qwenbench.analysis.recommend import Answer, recommend
from qwenbench.errors import UsageError
from qwenbench.report.answer import question_of
from qwenbench.report.collect import build_document
from qwenbench.report.document import ConfigView, Document, PointView
from qwenbench.runfolder.run import Run

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~])")
_POINT = (("output_tokens_per_s", 0), ("ttft_p50", 0), ("tpot_p50", 1))
_ALIGN_LEFT, _ALIGN_RIGHT = ":--", "--:"


def markdown_summary(run: Run) -> str:
    """Answer, configurations, a table per scenario, failures and conditions."""
    document = build_document(run)
    parts = [f"## qwenbench: {plain(run.run_id)}"]
    if run.simulated:
        parts.append("**SIMULATED**: made by qwenbench's simulator, not measured on a GPU.")
    parts += _answer(run)
    parts += ["### Configurations", _configurations(document)]
    for workload in document.workloads:
        parts += [f"### {plain(workload)}", _workload(document, workload)]
    if document.points:
        parts.append("Each cell: output tok/s · TTFT p50 ms · TPOT p50 ms. ± is half of the 95 % interval of tok/s.")
    parts += _failures(run)
    parts.append(_conditions(run, document))
    return "\n\n".join(parts) + "\n"


def plain(text: object) -> str:
    """Text in which no character is markup, on one line."""
    escaped = html.escape(" ".join(str(text).split()), quote=False)
    return _SPECIAL.sub(r"\\\1", escaped)


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of back-ticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _answer(run: Run) -> list[str]:
    try:
        answer = recommend(run, question_of(run))
    except UsageError:
        return []
    if answer.config_id is None:
        near = f" Closest: {plain(answer.nearest_miss)}." if answer.nearest_miss else ""
        return [f"**No configuration qualifies.**{near}"]
    return [_sentence(answer), *([fenced(answer.lines.bash, "sh")] if answer.lines.bash else [])]


def _sentence(answer: Answer) -> str:
    users = "" if answer.users is None else f" at {answer.users:,} client streams"
    rate = answer.expected.get("output_tokens_per_s")
    figure = f", {rate.value:,.0f} output tok/s expected" if rate and rate.value is not None else ""
    sure = "" if answer.decided else " (not decided yet)"
    risks = "".join(f" Risk: {plain(risk)}." for risk in answer.risks)
    return f"**Deploy {plain(answer.config_id)}**{users}{figure}{sure}.{risks}"


def _configurations(document: Document) -> str:
    head = ["Configuration", "KV GiB", "KV tokens", "VRAM peak GiB", "Start-up s"]
    return _table(head, [_configuration(view) for view in document.configs])


def _configuration(view: ConfigView) -> list[str]:
    name = plain(view.id) + (" (failed)" if view.failed else "")
    kv, tokens = view.ledger.get("kv_cache_gib"), view.ledger.get("kv_cache_tokens")
    return [name, _number(kv, 2), _number(tokens), _number(view.vram_peak_gib, 2), _number(view.startup_s, 1)]


def _workload(document: Document, workload: str) -> str:
    points = [point for point in document.points if point.workload == workload]
    levels = sorted({point.level for point in points}, key=lambda level: level or 0.0)
    cells = {(point.config, point.level): point for point in points}
    head = [document.level_label, *("trace" if level is None else f"{level:g}" for level in levels)]
    rows = [
        [plain(view.id), *(_cell(cells.get((view.id, level))) for level in levels)]
        for view in document.configs
        if any((view.id, level) in cells for level in levels)
    ]
    return _table(head, rows)


def _cell(point: PointView | None) -> str:
    if point is None:
        return "–"
    if not point.valid:
        return "invalid"
    figures = []
    for key, digits in _POINT:
        value, low, high = point.metrics.get(key, (None, None, None))
        half = f" ± {(high - low) / 2:,.0f}" if digits == 0 and key.endswith("_per_s") and low and high else ""
        figures.append(_number(value, digits) + half)
    return " · ".join(figures)


def _failures(run: Run) -> list[str]:
    if not run.failures:
        return []
    lines = [
        f"- {plain(config)}: {plain(failure.get('class'))}. {plain(failure.get('evidence') or '')} "
        f"{plain(failure.get('advice') or '')}".rstrip()
        for config, failure in run.failures.items()
    ]
    return ["### Failures", "\n".join(lines)]


def _conditions(run: Run, document: Document) -> str:
    versions = run.meta.get("versions")
    shown = [f"{name} {value}" for name, value in versions.items() if value] if isinstance(versions, dict) else []
    parts = [document.card_name or "card not known", *shown, f"seed {run.meta.get('seed', 'not known')}"]
    return "Conditions: " + ", ".join(plain(part) for part in parts) + "."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    align = [_ALIGN_LEFT, *[_ALIGN_RIGHT] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, align, *rows))


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"

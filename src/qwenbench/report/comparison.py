"""A comparison of runs: the verdict first, then the conditions that differ, then the changes, the surest first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qwenbench.analysis.changes import MetricChange
from qwenbench.analysis.columns import METRICS, label
from qwenbench.analysis.compare import VERDICTS, Comparison
from qwenbench.analysis.conditions import Place
from qwenbench.report.document import (
    SIMULATED,
    Block,
    Bullets,
    Fold,
    Heading,
    Inline,
    Paragraph,
    Row,
    Span,
    Table,
    number,
)

FIRST_ROWS = 36
"""Rows of the page that stand open; the others are folded away."""
MOST_ROWS = 1000
"""More are not put on a page: nobody reads them, and it would be slow."""
_MOST_LINES = 8
MAIN = ("output_tokens_per_s", "ttft_p50", "tpot_p50")
_STATED = ("worse", "better")
_WORDS = {
    "output_tokens_per_s": ("faster", "slower"),
    "ttft_p50": ("sooner to the first token", "later to the first token"),
    "tpot_p50": ("quicker between tokens", "slower between tokens"),
}
"""Main metric -> what better and worse mean in a sentence."""
_INCIDENTAL = re.compile(
    r"hardware\.(os|machine)|\.uuid|\.index|\.pid|versions\.(python|qwenbench)|\.port\b|\.name$|command_line|devices"
)
"""Conditions that differ from machine to machine and day to day without a say in the figures."""


def verdict(comparison: Comparison) -> str:
    stated = [row for row in comparison.rows if row.verdict in _STATED]
    judged = sum(row.verdict == "no difference shown" for row in comparison.rows)
    if not comparison.rows:
        return "Nothing to compare: neither run knows a figure of a load point that both have."
    if not stated:
        if judged:
            return f"No difference shown: {judged:,} changes were tested and none stands out of the noise."
        return _undecided(comparison)
    parts = [part for key in MAIN for part in _stated(key, stated)]
    others = [row for row in stated if row.key not in MAIN]
    if not parts:
        counts = Counter(row.verdict for row in others)
        parts = [" and ".join(f"{counts[word]} figures {word}" for word in _STATED[::-1] if counts[word])]
        others = []
    further = list(dict.fromkeys(f"{label(row.key)} {row.verdict}" for row in others))
    rest = f"also {', '.join(further[:4])}{' ...' if len(further) > 4 else ''}" if further else "nothing else shown"
    sentence = f"{'; '.join(parts)}; {rest}."
    return sentence[0].upper() + sentence[1:]


def _stated(key: str, rows: Sequence[MetricChange]) -> Iterator[str]:
    for word, shown in zip(("better", "worse"), _WORDS[key], strict=True):
        found = [row for row in rows if row.key == key and row.verdict == word and row.change is not None]
        if found:
            sizes = sorted(abs(row.change or 0.0) for row in found)
            low, high = f"{sizes[0]:.0%}"[:-1], f"{sizes[-1]:.0%}"[:-1]
            by = f"{low} to {high} %" if low != high else f"{high} %"
            yield f"{shown} {_where(found)} by {by}"


def _where(rows: Sequence[MetricChange]) -> str:
    streams = sorted({row.concurrency for row in rows if row.concurrency is not None})
    rates = sorted({row.rate for row in rows if row.concurrency is None and row.rate is not None})
    if not streams and not rates:
        return "on the trace"
    levels = streams or rates
    words = [f"{level:g}" for level in levels]
    listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    unit = ("stream" if levels == [1] else "streams") if streams else "sessions/s"
    return f"at {listed} {unit}"


def _undecided(comparison: Comparison) -> str:
    main = [row for row in comparison.rows if row.key == "output_tokens_per_s" and row.change is not None]
    largest = max(main, key=lambda row: abs(row.change or 0.0), default=None)
    seen = ""
    if largest is not None and largest.change is not None:
        seen = f" Largest change seen: {largest.change:+.0%} output tokens/s at {largest.load} ({largest.scenario})."
    return f"Undecided: one side has a single repeat, so no change can be told from noise.{seen}"


def comparison_blocks(comparison: Comparison, everything: bool = False) -> Iterator[Block]:
    """The whole answer for a terminal and for Markdown."""
    title = Heading(f"{comparison.runs[0]} (before) against {', '.join(comparison.runs[1:])}", 3)
    yield from comparison_head(comparison, title)
    rows = list(comparison.rows) if everything else chosen_rows(comparison)
    if rows:
        yield changes_table(rows, several=len(comparison.runs) > 2)
    yield from comparison_notes(comparison)


def comparison_page(comparison: Comparison) -> Iterator[Block]:
    """The rows of the page: the surest and largest open, the others folded away."""
    rows = sorted(comparison.rows, key=_importance)
    several = len(comparison.runs) > 2
    if rows:
        yield changes_table(rows[:FIRST_ROWS], several)
    if rest := rows[FIRST_ROWS:MOST_ROWS]:
        words = "The other rows" if len(rows) <= MOST_ROWS else f"More rows (--json has all {len(rows):,})"
        yield Fold(words, (changes_table(rest, several),), count=len(rest))
    yield from comparison_notes(comparison)


def comparison_head(comparison: Comparison, *title: Heading) -> Iterator[Block]:
    """Verdict, gate, and what differs in the conditions and in what the configurations hold."""
    if comparison.simulated:
        yield Paragraph(SIMULATED, "warning")
    yield from title
    yield Paragraph(Span(verdict(comparison)), "answer")
    yield from conditions(comparison)


def conditions(comparison: Comparison) -> Iterator[Block]:
    """The gate, what differs in the conditions, and what the configurations hold."""
    yield from places_table(comparison.places)
    for reason in comparison.forced:
        yield Paragraph(("FORCED: ", reason), "warning")
    yield from _gate(comparison)
    several = len(comparison.runs) > 2
    rows = [
        Row((*_run(run, several), condition_words(found.what), _value(found.before), _value(found.after)))
        for run, found in comparison.conditions
    ]
    mattering = [row for row, (_, found) in zip(rows, comparison.conditions, strict=True) if not incidental(found.what)]
    others = [row for row in rows if row not in mattering]
    head = (*_run("Run", several), "Condition", "Before", "After")
    if mattering:
        yield Table(head, mattering, caption="Conditions that differ", numbers_from=99)
    else:
        yield Paragraph("No condition that is recorded and matters differs.")
    if others:
        yield Fold("Other differences", (Table(head, others, numbers_from=99),), count=len(others))
    capacities = [found for found in comparison.capacities if found.before != found.after]
    if capacities:
        yield Table(
            (*_run("Run", several), "Configuration", "What it holds", "Before", "After"),
            [
                Row((*_run(c.run, several), c.config, label(c.name), number(c.name, c.before), number(c.name, c.after)))
                for c in capacities
            ],
            caption="Capacities that differ",
            numbers_from=4 if several else 2,
        )


def places_table(places: Sequence[tuple[str, Place]]) -> Iterator[Block]:
    """Runs and their machines side by side; nothing where all is of one host."""
    hosts = {(place.machine, place.nodes) for _, place in places}
    if len(hosts) < 2 and not any(len(place.nodes) > 1 for _, place in places):
        return
    several = len({run for run, _ in places}) > 1
    rows = []
    for run, place in places:
        lists = (", ".join(words) or None for words in (place.nodes, place.drivers, place.vllm))
        rows.append(Row((*_run(run, several), place.machine, *lists, place.launches)))
    head = (*_run("Run", several), "Machine", "Hosts", "Driver", "vLLM", "Launches")
    yield Table(head, rows, caption="Measured on", numbers_from=len(head) - 1)


def incidental(condition: str) -> bool:
    """Whether a condition differs between machines and days without a say in the figures."""
    return bool(_INCIDENTAL.search(condition))


def condition_words(condition: str) -> str:
    """A condition's path in the run's files, for people: `versions.vllm` -> `vllm version`, `options.ramp_s` ->
    `--ramp-s`."""
    group, _, name = condition.partition(".")
    if group == "options" and name:
        return f"--{name.replace('_', '-')}"
    if group == "versions" and name:
        return f"{name} version"
    return name.replace("_", " ") if group == "hardware" and name else condition


def _run(word: str, several: bool) -> tuple[str, ...]:
    return (word,) if several else ()


def _value(value: Any) -> Inline:
    return None if value is None else str(value)


def chosen_rows(comparison: Comparison) -> list[MetricChange]:
    """Rows with a verdict, the largest change first; where all are only indicative, those of the main metrics."""
    stated = [row for row in comparison.rows if row.verdict in _STATED]
    if not stated and not any(row.verdict == "no difference shown" for row in comparison.rows):
        stated = [row for row in comparison.rows if row.key in MAIN]
    return sorted(stated, key=_importance)


def _importance(row: MetricChange) -> tuple[int, float]:
    return (VERDICTS.index(row.verdict), -abs(row.change or 0.0))


def changes_table(rows: Iterable[MetricChange], several: bool = False) -> Table:
    where = (*_run("Run", several), "Configuration", "Scenario", "Load", "Metric")
    head = (*where, "Before", "After", "Change", "95 % interval", "Verdict")
    return Table(head, [_row(row, several) for row in rows], numbers_from=len(where), numbers_to=len(where) + 3)


def change_cells(row: MetricChange) -> tuple[str | None, str | None]:
    """The relative change, and its interval; None: not known."""
    interval = None if row.low is None or row.high is None else f"{row.low:+.1%} to {row.high:+.1%}"
    return None if row.change is None else f"{row.change:+.1%}", interval


def _row(row: MetricChange, several: bool) -> Row:
    word: Inline = Span(row.verdict, "bad") if row.verdict == "worse" else row.verdict
    figures = (number(row.key, row.before), number(row.key, row.after), *change_cells(row))
    where = (row.config, f"{row.scenario} ({row.profile})", row.load, label(row.key))
    return Row((*_run(row.run, several), *where, *figures, word))


def comparison_notes(comparison: Comparison) -> Iterator[Block]:
    """How many rows have which verdict, how they were corrected, and what could not be compared."""
    counts = Counter(row.verdict for row in comparison.rows)
    words = ", ".join(f"{counts[word]:,} {word}" for word in VERDICTS if counts[word])
    total = f"{len(comparison.rows):,} rows: {words}. Verdicts: {comparison.correction}, 5 % false discoveries at most."
    notes = [*([total] if comparison.rows else []), *comparison.notes, *comparison.unmatched[:_MOST_LINES]]
    if len(comparison.unmatched) > _MOST_LINES:
        notes.append(f"and {len(comparison.unmatched) - _MOST_LINES} more load points of one run only")
    yield Bullets(notes)


def _gate(comparison: Comparison) -> Iterator[Block]:
    gate = comparison.gate
    if gate is None:
        return
    rules = ", ".join(map(str, gate.rules))
    yield Paragraph((Span("Gate "), f"{rules}: ", Span(gate.outcome, "bad" if gate.outcome == "broken" else "strong")))
    if gate.broken:
        yield changes_table(gate.broken, len(comparison.runs) > 2)
    if gate.unjudged:
        why = "no row has an interval (two repeats on each side are needed), so nothing can be said of it"
        yield Bullets([f"{label(key) if key in METRICS else key}: {why}" for key in gate.unjudged])

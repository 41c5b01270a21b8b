"""A comparison of runs as text: for the terminal, and as Markdown for a pull request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.compare import VERDICTS, Comparison
from qwenbench.analysis.comparison_rows import Change
from qwenbench.analysis.limits import show
from qwenbench.runfolder.cells import load_label

SIMULATED = "SIMULATED: made by qwenbench's simulator, not measured on a GPU."
HEAD = ("Configuration", "Scenario", "Load", "Metric", "Before", "After", "Change", "95 % interval", "Verdict")
_MOST_LINES = 8
_RIGHT = frozenset({"Before", "After", "Change"})


def chosen_rows(comparison: Comparison, everything: bool) -> list[Change]:
    """Rows with a verdict, the largest change first; where all are only indicative, those of the main metrics."""
    if everything:
        return list(comparison.rows)
    stated = [row for row in comparison.rows if row.verdict in ("worse", "better")]
    if not stated and not any(row.verdict == "no difference shown" for row in comparison.rows):
        stated = [row for row in comparison.rows if row.key in ("output_tokens_per_s", "ttft_p50", "tpot_p50")]
    return sorted(stated, key=lambda row: (VERDICTS.index(row.verdict), -abs(row.change or 0.0)))


def cells_of(row: Change) -> tuple[str, ...]:
    """A row as words, in the order of `HEAD`."""
    unit = METRICS[row.key].unit
    interval = f"{row.low:+.1%} to {row.high:+.1%}" if row.low is not None and row.high is not None else "-"
    return (
        row.config,
        f"{row.scenario} ({row.profile})",
        load_label(row.concurrency, row.rate),
        row.key,
        "-" if row.before is None else show(row.before, unit),
        "-" if row.after is None else show(row.after, unit),
        "-" if row.change is None else f"{row.change:+.1%}",
        interval,
        row.verdict,
    )


def counted(comparison: Comparison) -> str:
    """How many rows have which verdict, and how they were corrected."""
    counts = Counter(row.verdict for row in comparison.rows)
    words = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{len(comparison.rows)} rows: {words}. Verdicts: {comparison.correction}, 5 % false discoveries at most."


def terminal_lines(comparison: Comparison, everything: bool = False) -> Iterator[str]:
    """The comparison for a terminal: conditions first, then the rows, then the gate."""
    if comparison.simulated:
        yield SIMULATED
    yield f"{comparison.runs[0]} (before) against {', '.join(comparison.runs[1:])}"
    for reason in comparison.forced:
        yield f"FORCED: {reason}"
    yield "\nConditions that differ:"
    several = len(comparison.runs) > 2
    yield from (f"  {f'{run}: ' if several else ''}{found}" for run, found in comparison.conditions)
    if not comparison.conditions:
        yield "  none that is recorded"
    capacities = _capacity_lines(comparison)
    if capacities:
        yield "\nCapacities that differ:"
        yield from (f"  {line}" for line in capacities)
    rows = chosen_rows(comparison, everything)
    if rows:
        yield ""
        yield from _aligned([HEAD, *(cells_of(row) for row in rows)])
    yield f"\n{counted(comparison)}"
    yield from comparison.notes
    yield from _shortened(comparison.unmatched)
    yield from gate_lines(comparison)


def _shortened(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"and {len(lines) - _MOST_LINES} more load points of one run only"


def _capacity_lines(comparison: Comparison) -> list[str]:
    return [
        f"{found.config}: {found.name} {_or_dash(found.before)} -> {_or_dash(found.after)}"
        for found in comparison.capacities
        if found.before != found.after
    ]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else show(value)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    for row in rows:
        words = (
            word.rjust(width) if name in _RIGHT else word.ljust(width)
            for word, width, name in zip(row, widths, HEAD, strict=True)
        )
        yield "  ".join(words).rstrip()


def gate_lines(comparison: Comparison) -> Iterator[str]:
    """The gate's outcome, one line per broken row; nothing without a gate."""
    gate = comparison.gate
    if gate is None:
        return
    yield f"gate {', '.join(map(str, gate.rules))}: {'passed' if gate.passed else 'broken'}"
    for row in gate.broken:
        config, scenario, load, key, before, after, change, interval, _ = cells_of(row)
        yield f"  {config}, {scenario}, {load}: {key} {before} -> {after}, {change} ({interval})"
    for key in gate.unjudged:
        yield f"  {key}: no row has an interval (two repeats on each side are needed), so nothing can be said of it"


def markdown_lines(comparison: Comparison, everything: bool = False) -> Iterator[str]:
    """The comparison as Markdown."""
    yield f"### {_plain(comparison.runs[0])} against {', '.join(map(_plain, comparison.runs[1:]))}"
    if comparison.simulated:
        yield f"\n**{SIMULATED}**"
    yield from (f"\n**FORCED:** {_plain(reason)}" for reason in comparison.forced)
    yield "\n**Conditions that differ**\n"
    yield from (f"- {_plain(run)}: {_plain(str(found))}" for run, found in comparison.conditions)
    if not comparison.conditions:
        yield "- none that is recorded"
    yield from (f"- {_plain(line)}" for line in _capacity_lines(comparison))
    rows = chosen_rows(comparison, everything)
    if rows:
        yield ""
        yield _table_row(HEAD)
        yield _table_row(["---:" if name in _RIGHT else "---" for name in HEAD])
        yield from (_table_row([_plain(cell) for cell in cells_of(row)]) for row in rows)
    yield f"\n{counted(comparison)}"
    yield from (f"\n{_plain(note)}" for note in (*comparison.notes, *_shortened(comparison.unmatched)))
    lines = [_plain(line) for line in gate_lines(comparison)]
    if lines:
        yield "\n" + "\n".join(f"- {line.strip()}" for line in lines)


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    escaped = text.replace("\\", "\\\\").replace("\n", " ").replace("<", "&lt;")
    for sign in "|*_`[]":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped

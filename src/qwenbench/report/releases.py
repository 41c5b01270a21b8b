"""A campaign over engine versions: where figures first changed, then each figure over versions with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from qwenbench.analysis.columns import in_words, label
from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.releases import CHANGED, FigureOver, Releases
from qwenbench.report.comparison import MAIN, MOST_ROWS, change_cells, comparison_notes, conditions
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
    titled,
)
from qwenbench.report.svg import SERIES, Drawing, picture, shortened

MOST_FIGURES = 12
"""Curves of a drawing; of more load points the first are drawn."""


def verdict(releases: Releases) -> str:
    """What the releases show, in one sentence."""
    names = [release.name for release in releases.compared]
    if len(names) < 2:
        return "Nothing to compare: fewer than two releases could be measured."
    first = releases.first_changed
    if first is None and not releases.judged:
        return "Undecided: a release has a single repeat, so no change can be told from noise (--repeats 3)."
    if first is None:
        return f"No change shown from {names[0]} to {names[-1]}: {len(releases.figures):,} figures were followed."
    at = [figure for figure in releases.changed if releases.compared[figure.first or 0] is first]
    told = sorted(at, key=lambda figure: figure.change.key not in MAIN)
    words = "; ".join(dict.fromkeys(map(_change_words, told[:3])))
    more = f"; and {len(told) - 3} more figures" if len(told) > 3 else ""
    later = len(releases.changed) - len(at)
    rest = f" Another {later} changed later." if later else ""
    return f"First change at {first.name} (against {names[0]}): {words}{more}.{rest}"


def _change_words(figure: FigureOver) -> str:
    change = figure.change
    where = f"{change.config}, {change.scenario}, {change.load}"
    return f"{in_words(change.key)} {change.verdict} by {abs(change.change or 0.0):.1%} ({where})"


def releases_blocks(releases: Releases, everything: bool = False) -> Iterator[Block]:
    """The whole answer for a terminal and for Markdown."""
    yield from releases_head(releases)
    yield from releases_rows(releases, everything)


def releases_head(releases: Releases) -> Iterator[Block]:
    """The answer, the releases themselves, the curves of the main metrics, and what else differs."""
    if any(release.run.simulated for release in releases.all):
        yield Paragraph(SIMULATED, "warning")
    yield Paragraph(Span(verdict(releases)), "answer")
    failures = [
        f"{name}: {config or 'the campaign'} failed ({why.get('class')}): {why.get('evidence')}"
        for name, found in releases.failed.items()
        for config, why in found.items()
    ]
    for release in releases.all:
        reasons = dict.fromkeys(str(point.values["invalid_reason"]) for point in release.run.measured)
        if not release.usable and not release.run.failures:
            failures.append(f"{release.name}: no valid point ({'; '.join(reasons) or 'nothing was measured'})")
    if failures:
        yield Bullets(failures)
    held = [
        f"{releases.named(change.run)}: {config} holds {change.after:,.0f} KV blocks, before {change.before:,.0f}"
        for config, change in releases.held.items()
    ]
    if held:
        yield Bullets(held)
    yield _releases_table(releases)
    for key in MAIN:
        if any(figure.change.key == key for figure in releases.figures):
            simulated = any(release.run.simulated for release in releases.compared)
            yield picture(f"{titled(key)} over releases", partial(_draw, releases, key), simulated=simulated)
    if releases.comparison is not None:
        yield from conditions(releases.comparison)


def _releases_table(releases: Releases) -> Table:
    rows = []
    for release in releases.all:
        points = release.run.measured
        machines = dict.fromkeys(str(point.values["machine"]) for point in points if point.values["machine"])
        valid = sum(point.valid for point in points)
        rows.append(Row((release.name, release.vllm, ", ".join(machines) or None, valid, str(release.run.path))))
    return Table(("Release", "vLLM", "Machine", "Valid points", "Run"), rows, numbers_from=3, numbers_to=4)


def releases_rows(releases: Releases, everything: bool = True) -> Iterator[Block]:
    """Each figure over releases: what changed, then the main metrics, then (of everything) the rest."""
    changed = releases.changed
    main = [figure for figure in releases.figures if figure.first is None and figure.change.key in MAIN]
    if changed:
        yield Heading("What changed", 3)
        yield _table(releases, changed[:MOST_ROWS])
    if main:
        yield Heading("Main figures without a change" if changed else "Main figures", 3)
        yield _table(releases, main)
    others = [figure for figure in releases.figures if figure.first is None and figure.change.key not in MAIN]
    if others and everything:
        yield Fold("The other figures", (_table(releases, others[:MOST_ROWS]),), count=len(others))
    if releases.comparison is not None:
        yield from comparison_notes(releases.comparison)


def _table(releases: Releases, figures: Sequence[FigureOver]) -> Table:
    names = [release.name for release in releases.compared]
    several = len({figure.change.profile for figure in releases.figures}) > 1
    head = ("Configuration", "Scenario", "Load", "Metric", *names, "First changed", "By", "95 % interval")
    return Table(head, [_row(names, figure, several) for figure in figures], numbers_from=4, numbers_to=4 + len(names))


def _row(names: Sequence[str], figure: FigureOver, several: bool) -> Row:
    change = figure.change
    scenario = f"{change.scenario} ({change.profile})" if several else change.scenario
    where = (change.config, scenario, change.load)
    values = (_value(change.key, *told) for told in zip(figure.values, figure.verdicts, strict=True))
    first: Inline = None
    if figure.first is not None:
        first = Span(f"{names[figure.first]} ({change.verdict})", "bad" if change.verdict == "worse" else "strong")
    return Row((*where, label(change.key), *values, first or "-", *change_cells(change)))


def _value(key: str, found: Estimate, verdict: str) -> Inline:
    shown = number(key, found.value, found.low, found.high)
    words = f"{shown} ({shown.interval})" if shown.interval else str(shown)
    return Span(words, "bad" if verdict == "worse" else "strong") if verdict in CHANGED else words


def _draw(releases: Releases, key: str, drawing: Drawing) -> None:
    """The metric over releases: a curve per load point with its intervals."""
    figures = [figure for figure in releases.figures if figure.change.key == key][:MOST_FIGURES]
    names = [release.name for release in releases.compared]
    tops = (end for figure in figures for e in figure.values for end in (e.value, e.high) if end is not None)
    top = _round_top(max(tops, default=0.0))
    left, right, upper, height = 64.0, drawing.width - 24.0, 34.0, 200.0
    step = (right - left) / len(names)

    def x(place: int, series: int) -> float:
        return left + step * (place + 0.5) + (series - (len(figures) - 1) / 2) * min(8.0, step / (len(figures) + 1))

    def y(value: float) -> float:
        return upper + height * (1 - max(0.0, min(value, top)) / top)

    drawing.text(0, 16, titled(key), bold=True)
    for part in range(5):
        value = top * part / 4
        drawing.line(left, y(value), right, y(value), colour="grid")
        drawing.text(left - 6, y(value) + 4, f"{value:,.4g}", colour="soft", size=12, anchor="end")
    for place, name in enumerate(names):
        centre = left + step * (place + 0.5)
        drawing.text(centre, upper + height + 20, shortened(name, step, 12), colour="soft", size=12, anchor="middle")
    legend = upper + height + 42
    for series, figure in enumerate(figures):
        colour = f"s{series % SERIES}"
        known = [(place, e) for place, e in enumerate(figure.values) if e.value is not None]
        drawing.path([(x(place, series), y(e.value or 0.0)) for place, e in known], colour=colour)
        for place, estimate in known:
            if estimate.low is not None and estimate.high is not None:
                at = x(place, series)
                drawing.line(at, y(estimate.low), at, y(estimate.high), colour=colour)
            drawing.circle(x(place, series), y(estimate.value or 0.0), 3.5, colour=colour)
        change = figure.change
        words = f"{change.config}, {change.scenario}, {change.load}"
        drawing.rect(left, legend - 9, 10, 10, colour=colour)
        drawing.text(left + 16, legend, shortened(words, right - left - 16, 12), colour="soft", size=12)
        legend += 17
    drawing.height = legend


def _round_top(most: float) -> float:
    """The end of an axis from 0 with four round steps that holds `most`."""
    if most <= 0:
        return 1.0
    tens = 10.0 ** math.floor(math.log10(most / 4))
    return 4 * tens * next(step for step in (1, 2, 2.5, 5, 10) if 4 * tens * step >= most)

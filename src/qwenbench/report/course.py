"""The course of a run: what a search (`qwenbench tune`) tried and why, what was launched when, and load times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from qwenbench.analysis.run import Run
from qwenbench.analysis.spread import start_differences
from qwenbench.report.document import Block, Bullets, Config, Inline, Number, Paragraph, Row, Span, Table, counted
from qwenbench.report.page_data import PageData, number_or_none
from qwenbench.report.svg import Drawing, picture, shortened, text_width
from qwenbench.runfolder.damage import mapping
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.names import RunPaths

MOST_LAUNCHES = 40
"""Rows of the figure; of more launches the first are drawn."""
_PHASES = {
    "setup_s": "set-up",
    "load_s": "weights",
    "compile_s": "compiling",
    "profile_s": "profiling",
    "capture_s": "capturing graphs",
}
"""Key of a ledger -> the phase's name, in the order in which a server goes through them."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load point of a launch; seconds since the run began."""

    start_s: float
    end_s: float
    what: str


@dataclass(frozen=True, slots=True)
class LaunchCourse:
    """One launch of a configuration; seconds since the run began."""

    config: str
    launch: int
    begun_s: float
    startup_s: float | None
    cells: tuple[Loaded, ...]

    @property
    def end_s(self) -> float:
        return max(cell.end_s for cell in self.cells)


def course_of(run: Run) -> tuple[LaunchCourse, ...]:
    """The launches that finished a point, in their order; empty without a journal.

    A launch begins when its launch.json says; where that is not known, or is of a later start under the same number
    (--resume), at the end of the one before, or at its own first point where the two ran side by side.
    """
    entries = Journal(RunPaths(run.path).journal).readable_entries()
    groups: dict[tuple[str, int], list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.finished_ns):
        groups.setdefault((entry.config, entry.launch), []).append(entry)
    if not groups:
        return ()
    origin = _origin(run, entries)
    found: list[LaunchCourse] = []
    for (config, launch), own in groups.items():
        cells = tuple(_loaded(entry, origin) for entry in own)
        startup = number_or_none(own[0].point.get("startup_s"))
        first = min(cell.start_s for cell in cells) - (startup or 0.0)
        told = run.launch_records.get((config, launch), {}).get("started_ns")
        begun = told / 1e9 - origin if isinstance(told, int) else None
        if begun is None or begun > min(cell.start_s for cell in cells):
            before = [each.end_s for each in found if each.end_s <= first]
            begun = max([0.0, *before]) if before or not found else first
        found.append(LaunchCourse(config, launch, max(0.0, begun), startup, cells))
    return tuple(found)


def _origin(run: Run, entries: Sequence[Entry]) -> float:
    """Seconds since the epoch when the run began: run.json's word, unless the first point contradicts it."""
    first = min(
        entry.finished_ns / 1e9 - _duration(entry) - (number_or_none(entry.point.get("startup_s")) or 0.0)
        for entry in entries
    )
    try:
        return min(first, datetime.fromisoformat(str(run.meta.get("started"))).timestamp())
    except ValueError:
        return first


def _loaded(entry: Entry, origin: float) -> Loaded:
    point, end = entry.point, entry.finished_ns / 1e9 - origin
    load = point.get("concurrency") if point.get("concurrency") is not None else point.get("rate")
    return Loaded(
        max(0.0, end - _duration(entry)), end, f"{point.get('scenario')}, load {'trace' if load is None else load}"
    )


def _duration(entry: Entry) -> float:
    return number_or_none(entry.point.get("duration_s")) or 0.0


def course(run: Run, data: PageData) -> Iterator[Block]:
    """Figure and table for the page; nothing to say of a run without a journal and ledgers."""
    launches = course_of(run)
    if launches:
        words = f"Course of the run: {counted(len(launches), 'launch')} in {duration(launches[-1].end_s)}"
        yield picture(words, partial(_draw, launches, data), simulated=data.simulated)
        if len(launches) > MOST_LAUNCHES:
            yield Paragraph(f"The first {MOST_LAUNCHES} of {len(launches)} launches are drawn.", "quiet")
    rows = [Row(row, config=view.id) for view in data.configs if (row := _phases(view.id, view.ledger, view.startup_s))]
    if rows:
        head = ("Configuration", "ready after, s", *_PHASES.values(), "rest", "compile cache")
        yield Table(head, rows, caption="Start-up by phase, seconds, as the server's log tells it", numbers_to=8)
    if cold := start_differences(run):
        yield Bullets([str(found) for found in cold])
    if not launches and not rows:
        yield Paragraph("The run holds neither its journal nor a ledger.", "quiet")


def _phases(config: str, ledger: Mapping[str, Any], startup_s: float | None) -> list[Any] | None:
    times = [number_or_none(ledger.get(key)) for key in _PHASES]
    if all(time is None for time in times):
        return None
    known = sum(time for time in times if time is not None)
    rest = None if startup_s is None or startup_s < known else startup_s - known
    cells = (Number(value, digits=1) for value in (startup_s, *times, rest))
    return [Config(config), *cells, ledger.get("compile_cache") or None]


def duration(seconds: float) -> str:
    """`48 s`, `12 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _draw(launches: Sequence[LaunchCourse], data: PageData, drawing: Drawing) -> None:
    shown = launches[:MOST_LAUNCHES]
    narrow = drawing.width < 500
    names = [_name(launch, launches) for launch in shown]
    left = 0.0 if narrow else min(230.0, max(text_width(name, 13) for name in names) + 24)
    end = max(launch.end_s for launch in shown)
    right = drawing.width - 8

    def x(seconds: float) -> float:
        return left + (right - left) * seconds / end

    y = 26.0
    for launch, name in zip(shown, names, strict=True):
        drawing.group(config=launch.config)
        if narrow:
            drawing.text(0, y + 12, shortened(name, drawing.width, 12.5), size=12.5)
            y += 17
        else:
            drawing.text(0, y + 14, shortened(name, left - 12, 13))
        if launch.startup_s is not None:
            begun, ready = x(launch.begun_s), x(min(launch.begun_s + launch.startup_s, launch.cells[0].start_s))
            drawing.rect(begun, y + 4, max(1.0, ready - begun), 12, colour="faint", opacity=0.45)
        for cell in launch.cells:
            width = max(1.2, x(cell.end_s) - x(cell.start_s) - 0.6)
            drawing.rect(x(cell.start_s), y + 2, width, 16, colour=data.colour(launch.config), radius=1)
        drawing.end(_hint(launch))
        y += 24
    drawing.line(left, y, right, y, colour="rule")
    y = _axis(drawing, x, end, y, 3 if narrow else 6)
    drawing.entry(left, y, "start-up", colour="faint", opacity=0.45)
    at, y = (left, y + 19) if narrow else (left + 96, y)
    drawing.entry(at, y, "a load point (between them: warm-up and stopping)")
    drawing.height = y + 8


def _name(launch: LaunchCourse, launches: Sequence[LaunchCourse]) -> str:
    again = any(other.config == launch.config and other.launch != launch.launch for other in launches)
    return f"{launch.config} launch {launch.launch}" if again else launch.config


def _axis(drawing: Drawing, x: Any, end: float, y: float, most: int) -> float:
    """Ticks at round times; returns the base line of what comes below."""
    steps = (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
    step = next((step for step in steps if end / step <= most), steps[-1])
    tick = 0.0
    while tick <= end:
        anchor = "start" if tick == 0 else "middle"
        drawing.line(x(tick), y, x(tick), y + 5, colour="faint")
        drawing.text(x(tick), y + 19, duration(tick), colour="soft", size=12, anchor=anchor)
        tick += step
    return y + 44


def _hint(launch: LaunchCourse) -> str:
    ready = "" if launch.startup_s is None else f"ready after {launch.startup_s:,.0f} s"
    points = "\n".join(f"{cell.what}: {cell.end_s - cell.start_s:.0f} s" for cell in launch.cells[:12])
    return f"{launch.config}, launch {launch.launch}\n{ready}\n{points}"


_VERDICTS = {"shown": "shown to hold", "broken": "broken", "open": "not decided", "failed": "failed"}


def search_path(run: Run) -> Iterator[Block]:
    """Conclusion and path as they stand in run.json; nothing for a run that no search made."""
    search = run.part("search")
    found = mapping(search.get("outcome"))
    if not found:
        return
    yield Paragraph(tuple(_conclusion(search, found)), "answer")
    open_loop = bool(search.get("open_loop"))
    objective = "tokens/s" if search.get("users") else "requests/s held" if open_loop else "users held"
    rows = [
        Row(
            (
                str(number),
                Config(tried["config_id"]),
                tried["why"],
                Number(tried["value"], digits=2 if open_loop else 0),
                _VERDICTS.get(tried["verdict"], tried["verdict"]) if search.get("limits") else None,
                tried["dropped"] or "stays in",
            ),
            config=tried["config_id"],
        )
        for number, tried in enumerate(found["path"], start=1)
    ]
    head = ("Launch", "Configuration", "Why it was launched", objective, "Limits", "Afterwards")
    yield Table(head, rows, caption="What the search launched, in its order", numbers_from=3)
    refused = found.get("refused") or {}
    if refused:
        yield Bullets([(Config(name), f" was not launched: {reason}") for name, reason in refused.items()])


def _conclusion(search: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[Inline]:
    launches, space = counted(len(found["path"]), "launch"), counted(search.get("space") or 0, "configuration")
    spent = f"{launches} in a space of {space}; {found['ended']}."
    if found["config_id"] is None:
        unmeasured = all(tried["value"] is None and tried["verdict"] != "broken" for tried in found["path"])
        yield Span("Nothing could be measured" if unmeasured else "Nothing that was tried holds the limits")
        yield f": {spent}"
        return
    users = search.get("users")
    value = found.get("value")
    load = f"holds {value:,.2f} requests/s" if search.get("open_loop") else f"holds {value:,.0f} users"
    holds = f"{value:,.0f} tokens/s at {users} users" if users else load
    within = found.get("within")
    yield Span((found["config_id"],))
    tried = {one["config_id"] for one in found["path"] if one["value"] is not None}
    if len(tried) < 2:
        yield f": {holds}; no other was measured, so nothing is said about the others"
    else:
        claim = "" if within is None else f"; within {within:.1%} of the best that was tried, at 95 %"
        yield f": {holds}{claim}"
    if search.get("limits"):
        yield f"; {', '.join(search['limits'])}: {_VERDICTS[found['verdict']]}"
    yield f". {spent}"

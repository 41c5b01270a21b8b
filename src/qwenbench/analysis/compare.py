"""Two or more runs side by side: what differs in the conditions, every metric's change with a verdict, and the gate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from qwenbench.analysis.changes import (
    CORRECTION,
    FALSE_DISCOVERIES,
    Between,
    CapacityChange,
    Changes,
    MetricChange,
    pair_repeats,
    relative_changes,
    shown_by,
)
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.conditions import Difference, Place, differences, places_of, refusals
from qwenbench.analysis.limit_text import metric_key
from qwenbench.analysis.run import Run
from qwenbench.analysis.spread import Spread, spread_of
from qwenbench.analysis.statistics import KEYS, RepeatTable, repeat_table, requests_under
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import load_label

_SHARE = re.compile(r"([+-])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*%\Z")


@dataclass(frozen=True, slots=True)
class GateRule:
    """A metric may rise (limit above 0) or fall (below 0) by no more than this share."""

    key: str
    limit: float

    def broken_by(self, change: MetricChange) -> bool:
        """Whether the interval excludes zero and the point estimate passes the limit."""
        if change.key != self.key or change.change is None or change.low is None or change.high is None:
            return False
        if self.limit >= 0:
            return change.low > 0 and change.change > self.limit
        return change.high < 0 and change.change < self.limit

    def __str__(self) -> str:
        return f"{self.key}:{self.limit * 100:+.4g}%"


@dataclass(frozen=True, slots=True)
class Gate:
    rules: tuple[GateRule, ...]
    broken: tuple[MetricChange, ...]
    unjudged: tuple[str, ...]
    """Metrics of which no row has an interval: nothing can be said of them, so the gate does not pass."""

    @property
    def outcome(self) -> Literal["passed", "broken", "undecided"]:
        """`undecided`: nothing is broken, but not every metric could be judged."""
        return "broken" if self.broken else "undecided" if self.unjudged else "passed"

    @property
    def passed(self) -> bool:
        """Whether nothing is broken and every metric could be judged."""
        return self.outcome == "passed"


def parse_gate(text: str, option: str = "--gate") -> tuple[GateRule, ...]:
    """Reads `ttft_p99:+10%,output_tokens_per_s:-5%`. Raises UsageError."""
    rules: list[GateRule] = []
    for part in text.split(","):
        name, colon, share = (word.strip() for word in part.partition(":"))
        match = _SHARE.match(share)
        if not colon or not match:
            raise UsageError(f"{option} {part!r}: give METRIC:+N% or METRIC:-N%, e.g. ttft_p99:+10%.")
        sign = -1.0 if match[1] == "-" else 1.0
        rule = GateRule(metric_key(name, option), sign * float(match[2]) / 100)
        if any(rule.key == other.key and (rule.limit < 0) == (other.limit < 0) for other in rules):
            raise UsageError(f"{option} {text!r}: {name} stands twice.")
        rules.append(rule)
    return tuple(rules)


def judge_gate(rules: Sequence[GateRule], changes: Sequence[MetricChange]) -> Gate:
    """What of the changes breaks the rules."""
    broken = tuple(change for change in changes if any(rule.broken_by(change) for rule in rules))
    judged = {change.key for change in changes if change.low is not None}
    return Gate(tuple(rules), broken, tuple(dict.fromkeys(rule.key for rule in rules if rule.key not in judged)))


VERDICTS = ("worse", "better", "no difference shown", "indicative", "missing")
"""`indicative`: one repeat on a side, so no interval. `missing`: only one of the runs knows the figure."""
CAPACITIES = ("kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "vram_ready_mib", "vram_peak_mib", "startup_s")
"""Columns of a configuration that are shown side by side without a verdict."""
_ALIGNED_ON = ("config_id", "scenario", "profile", "load_shape", "concurrency", "rate")


@dataclass(frozen=True, slots=True)
class Comparison:
    runs: tuple[str, ...]
    simulated: bool
    conditions: tuple[tuple[str, Difference], ...]
    """(later run, what differs)."""
    forced: tuple[str, ...]
    """Why the comparison would have been refused without --force."""
    rows: tuple[MetricChange, ...]
    capacities: tuple[CapacityChange, ...]
    unmatched: tuple[str, ...]
    """Load points that only one of the runs has."""
    gate: Gate | None = None
    correction: str = CORRECTION
    tables: tuple[RepeatTable, ...] = ()
    """Each run's own figures, for drawing."""
    notes: tuple[str, ...] = field(default=())
    places: tuple[tuple[str, Place], ...] = ()
    """(run, a machine that it was measured on)."""

    def to_json(self) -> dict[str, Any]:
        return {
            "runs": list(self.runs),
            "simulated": self.simulated,
            "conditions": [{"run": run, **asdict(difference)} for run, difference in self.conditions],
            "forced": list(self.forced),
            "rows": [row.to_json() for row in self.rows],
            "capacities": [asdict(change) for change in self.capacities],
            "unmatched": list(self.unmatched),
            "machines": [{"run": run, **asdict(place)} for run, place in self.places],
            "correction": {"method": self.correction, "false_discovery_rate": FALSE_DISCOVERIES},
            "gate": self.gate
            and {
                "passed": self.gate.passed,
                "outcome": self.gate.outcome,
                "rules": [str(rule) for rule in self.gate.rules],
                "broken": [row.to_json() for row in self.gate.broken],
                "unjudged": list(self.gate.unjudged),
            },
            "notes": list(self.notes),
        }


def compare(runs: Sequence[Run], rules: Sequence[GateRule] = (), *, force: bool = False) -> Comparison:
    """Aligns runs on configuration x scenario x profile x load and tells each metric's change.

    Where every run has a single configuration they are aligned whatever its name. Intervals of latencies rest on
    request records where the folders have them. Raises UsageError for runs that must not be mixed (unless `force`)
    and for runs without a load point in common.
    """
    first, others = runs[0], runs[1:]
    refused = [reason for other in others for reason in refusals(first, other)]
    if refused and not force:
        raise UsageError(f"not comparable: {'; '.join(refused)}. --force compares them nevertheless.")
    any_name = all(run.points["config_id"].nunique() == 1 for run in runs if len(run.points))
    base, *sides = (_Side.of(run, any_name) for run in runs)
    pairs = [_Pair(base, side) for side in sides]
    for pair in pairs:
        if not pair.shared:
            raise UsageError(f"{first.path} and {pair.after.run.path} have no load point in common.")
    rows = _rows(pairs)
    return Comparison(
        runs=tuple(run.run_id for run in runs),
        simulated=any(run.simulated for run in runs),
        conditions=tuple((run.run_id, found) for run in others for found in differences(first, run)),
        forced=tuple(refused),
        rows=tuple(rows),
        capacities=tuple(row for pair in pairs for row in _capacities(pair)),
        unmatched=tuple(line for pair in pairs for line in pair.unmatched()),
        gate=judge_gate(rules, rows) if rules else None,
        tables=(base.table, *(side.table for side in sides)),
        notes=tuple(_notes(rows, pairs)),
        places=tuple((run.run_id, place) for run in runs for place in places_of(run)),
    )


@dataclass(frozen=True)
class _Side:
    """A run with its figures by load point."""

    run: Run
    table: RepeatTable
    spread: Spread
    names: Mapping[tuple[Any, ...], int]
    """Load point -> its place in the table."""

    @classmethod
    def of(cls, run: Run, any_name: bool) -> _Side:
        table = repeat_table(run.points, requests_under(run.path))
        names = {_name(point, any_name): place for place, point in enumerate(table.load_points)}
        return cls(run, table, spread_of(run), names)


class _Pair:
    """Two runs and the load points that both have."""

    def __init__(self, before: _Side, after: _Side) -> None:
        self.before, self.after = before, after
        self.shared = [name for name in before.names if name in after.names]
        self.ours, self.theirs = ([side.names[name] for name in self.shared] for side in (before, after))
        places = list(zip(self.ours, self.theirs, strict=True))
        self.paired = pair_repeats(before.table, after.table, places)

    def changes(self) -> Changes:
        """Shared load points x KEYS."""
        a, b, ours, theirs = self.before.table, self.after.table, self.ours, self.theirs
        once = [
            np.where(side.table.launches[places] == 1, side.spread.launch**2, 0.0)
            for side, places in ((self.before, ours), (self.after, theirs))
        ]
        between = Between(once[0] + once[1], min(self.before.spread.degrees, self.after.spread.degrees))
        return relative_changes(
            a.n[ours], a.value[ours], a.se[ours], b.n[theirs], b.value[theirs], b.se[theirs], self.paired, between
        )

    def launched_once(self) -> str | None:
        """Which spread between launches the intervals hold; None where both sides have several, or play none."""
        for side, places in ((self.before, self.ours), (self.after, self.theirs)):
            if side.spread.launch > 0 and (side.table.launches[places] == 1).any():
                return side.spread.source
        return None

    def unmatched(self) -> list[str]:
        """Load points of one run only, for people."""
        return [
            f"only in {side.run.run_id}: {where(side.table.load_points[place])}"
            for side in (self.before, self.after)
            for name, place in side.names.items()
            if name not in self.shared
        ]


def _name(point: Mapping[str, Any], any_config: bool) -> tuple[Any, ...]:
    return tuple("" if any_config and name == "config_id" else point[name] for name in _ALIGNED_ON)


def where(point: Mapping[str, Any]) -> str:
    load = load_label(point["concurrency"], point["rate"])
    return f"{point['config_id']}, {point['scenario']} ({point['profile']}), {load}"


def _rows(pairs: Sequence[_Pair]) -> list[MetricChange]:
    """All rows of all pairs; verdicts are corrected over all of them together."""
    changes = [pair.changes() for pair in pairs]
    standing = shown_by(np.concatenate([found.p for found in changes]))
    rows: list[MetricChange] = []
    for pair, found in zip(pairs, changes, strict=True):
        stands, standing = standing[: len(found.p)], standing[len(found.p) :]
        figures = {
            "before": pair.before.table.value[pair.ours],
            "after": pair.after.table.value[pair.theirs],
            **{name: getattr(found, name) for name in ("change", "low", "high", "p")},
        }
        for place, i in enumerate(pair.ours):
            point = pair.before.table.load_points[i]
            config = str(point["config_id"])
            where = {name: point[name] for name in ("scenario", "profile", "concurrency", "rate")}
            for column, key in enumerate(KEYS):
                told = {name: values[place, column].item() for name, values in figures.items()}
                known: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in told.items()}
                judged, stated = known.pop("p") is not None, bool(stands[place, column])
                if known["before"] is not None or known["after"] is not None:
                    verdict = _verdict(key, known, judged, stated)
                    rows.append(MetricChange(pair.after.run.run_id, config, **where, key=key, **known, verdict=verdict))
    return rows


def _verdict(key: str, known: Mapping[str, float | None], judged: bool, stands: bool) -> str:
    if known["before"] is None or known["after"] is None:
        return "missing"
    if not judged:
        return "indicative"
    change = known["change"]
    if not stands or not change:
        return "no difference shown"
    return "better" if (change > 0) == (METRICS[key].better == "higher") else "worse"


def _capacities(pair: _Pair) -> list[CapacityChange]:
    """Capacities by configuration: the median over its points (they hardly differ between launches)."""
    before, after = _medians(pair.before.run.points), _medians(pair.after.run.points)
    ours, theirs = pair.before.table.load_points, pair.after.table.load_points
    places = zip(pair.ours, pair.theirs, strict=True)
    names = {str(ours[i]["config_id"]): str(theirs[j]["config_id"]) for i, j in places}
    found = [
        CapacityChange(pair.after.run.run_id, mine, name, before.get((mine, name)), after.get((yours, name)))
        for mine, yours in names.items()
        for name in CAPACITIES
    ]
    return [row for row in found if row.before is not None or row.after is not None]


def _medians(points: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(configuration, column) -> median, where any is known."""
    medians = points.groupby("config_id")[list(CAPACITIES)].median()
    return {
        (str(config), str(name)): float(value)
        for name, column in medians.items()
        for config, value in column.dropna().items()
    }


def _notes(rows: Sequence[MetricChange], pairs: Sequence[_Pair]) -> list[str]:
    notes = [
        f"{pair.before.run.run_id} and {pair.after.run.run_id} drew the same requests (same seeds): repeats are paired."
        for pair in pairs
        if pair.paired is not None
    ]
    indicative = sum(row.verdict == "indicative" for row in rows)
    if indicative:
        notes.append(
            f"{indicative} of {len(rows)} rows are indicative only: a side has one repeat. Run with --repeats 3."
        )
    notes += [
        f"{pair.before.run.run_id} or {pair.after.run.run_id} was launched once: the intervals hold {source}."
        for pair in (pairs if indicative < len(rows) else ())
        if (source := pair.launched_once()) is not None
    ]
    return notes

"""The same campaign on one engine version after the other: each figure over versions, and where it first changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from qwenbench.analysis.changes import CapacityChange, MetricChange
from qwenbench.analysis.compare import Comparison, GateRule, compare
from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.run import Run
from qwenbench.runfolder.damage import text_or_none

CHANGED = ("worse", "better")
"""Verdicts that state a change."""
_PLACE = ("config", "scenario", "profile", "concurrency", "rate")
HELD = "kv_cache_blocks"
"""What a configuration holds, as its server counts it: no sample, so any difference is one."""


@dataclass(frozen=True)
class Release:
    """One engine version of the campaign."""

    name: str
    run: Run

    @property
    def vllm(self) -> str | None:
        """The version that its servers told."""
        return text_or_none(self.run.part("versions").get("vllm"))

    @property
    def usable(self) -> bool:
        """Whether it has a point that decisions may rest on."""
        return any(point.valid for point in self.run.measured)


@dataclass(frozen=True, slots=True)
class FigureOver:
    """One metric at one load point, over all releases that could be measured."""

    change: MetricChange
    """Where it first changed; where it never did, its change up to the last release."""
    values: tuple[Estimate, ...]
    """By release."""
    verdicts: tuple[str, ...]
    """By release; that of the first, which the others are held against, is empty."""

    @property
    def first(self) -> int | None:
        """The first release at which it is shown to have changed."""
        return next((place for place, verdict in enumerate(self.verdicts) if verdict in CHANGED), None)


@dataclass(frozen=True)
class Releases:
    """A campaign over releases, the oldest first."""

    all: tuple[Release, ...]
    compared: tuple[Release, ...]
    """Those with valid points; the first is what the others are held against."""
    comparison: Comparison | None
    """None: fewer than two could be measured."""
    figures: tuple[FigureOver, ...]
    refused: Mapping[str, str]
    """Release -> why its campaign could not be begun."""

    @property
    def changed(self) -> tuple[FigureOver, ...]:
        """What changed, the earliest and then the largest change first."""
        found = [figure for figure in self.figures if figure.first is not None]
        return tuple(sorted(found, key=lambda figure: (figure.first or 0, -abs(figure.change.change or 0.0))))

    @property
    def first_changed(self) -> Release | None:
        """The first release at which any figure is shown to have changed."""
        return self.compared[self.changed[0].first or 0] if self.changed else None

    @property
    def held(self) -> dict[str, CapacityChange]:
        """Configuration -> where its KV blocks first became more or fewer."""
        found: dict[str, CapacityChange] = {}
        for change in self.comparison.capacities if self.comparison else ():
            if change.name == HELD and None not in (change.before, change.after) and change.before != change.after:
                found.setdefault(change.config, change)
        return found

    def named(self, run_id: str) -> str:
        """The release whose run that is."""
        return next(release.name for release in self.compared if release.run.run_id == run_id)

    @property
    def failed(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """Release -> configuration -> why it failed there (failure.json); empty for one of which no point is valid."""
        found = {one.name: one.run.failures for one in self.all if one.run.failures or not one.usable}
        return {**found, **{name: {"": {"class": "refused", "evidence": why}} for name, why in self.refused.items()}}

    @property
    def judged(self) -> bool:
        """Whether any change could be told from noise."""
        return any(verdict not in ("", "indicative", "missing") for f in self.figures for verdict in f.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The object of `releases --json`."""
        names = [release.name for release in self.compared]
        return {
            "releases": [
                {"name": one.name, "run": str(one.run.path), "vllm_version": one.vllm, "usable": one.usable}
                for one in self.all
            ],
            "first_changed": self.first_changed and self.first_changed.name,
            "failed": {
                name: {config: dict(why) for config, why in found.items()} for name, found in self.failed.items()
            },
            "figures": [
                {
                    **{name: getattr(f.change, name) for name in _PLACE},
                    "metric": f.change.key,
                    "first_changed": None if f.first is None else names[f.first],
                    **{name: getattr(f.change, name) for name in ("change", "low", "high")},
                    "values": [
                        {"release": name, "value": e.value, "low": e.low, "high": e.high, "verdict": verdict or None}
                        for name, e, verdict in zip(names, f.values, f.verdicts, strict=True)
                    ],
                }
                for f in self.figures
            ],
            "comparison": self.comparison and self.comparison.to_json(),
        }


def over_releases(
    releases: Sequence[Release], rules: Sequence[GateRule] = (), refused: Mapping[str, str] = MappingProxyType({})
) -> Releases:
    """Holds each release against the first one that could be measured.

    Verdicts are corrected over all figures of all releases together (`compare`). Raises UsageError for runs that must
    not be compared, which the same campaign never makes.
    """
    usable = tuple(release for release in releases if release.usable)
    if len(usable) < 2:
        return Releases(tuple(releases), usable, None, (), refused)
    comparison = compare([release.run for release in usable], rules)
    return Releases(tuple(releases), usable, comparison, tuple(_figures(comparison, usable)), refused)


def _figures(comparison: Comparison, releases: Sequence[Release]) -> list[FigureOver]:
    runs = [release.run.run_id for release in releases]
    changes: dict[tuple[Any, ...], dict[int, MetricChange]] = {}
    for row in comparison.rows:
        name = (*(getattr(row, part) for part in _PLACE), row.key)
        changes.setdefault(name, {})[runs.index(row.run)] = row
    estimates = [
        {
            (*(point["config_id" if part == "config" else part] for part in _PLACE), key): estimate
            for index, point in enumerate(table.load_points)
            for key, estimate in table.estimates(index).items()
        }
        for table in comparison.tables
    ]
    found = []
    for name, by_release in changes.items():
        told = (by_release[place].verdict if place in by_release else "missing" for place in range(1, len(runs)))
        values = tuple(known.get(name, Estimate(0, None)) for known in estimates)
        figure = FigureOver(by_release[max(by_release)], values, ("", *told))
        found.append(figure if figure.first is None else replace(figure, change=by_release[figure.first]))
    return found

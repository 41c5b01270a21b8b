"""A measured point's identity: its load, its name, its files and its words. The one place where they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.runfolder.names import AT, unique_slug

TRACE = "trace"


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What is sent at one point, whatever the configuration."""

    scenario: str
    profile: str
    concurrency: int | None
    """Client streams of a closed loop."""
    rate: float | None
    """Sessions per second of an open loop; a trace has neither."""
    repeat: int

    @property
    def load_name(self) -> str:
        """The load's part of names: `c32`, `r2.0`, `trace`."""
        if self.concurrency is not None:
            return f"c{self.concurrency}"
        # {:g} would give two rates that differ in the seventh digit one name
        return TRACE if self.rate is None else f"r{float(self.rate)!r}"

    @property
    def point_id(self) -> str:
        """Its part of the cell's name."""
        return unique_slug(f"{self.scenario}.{self.profile}.{self.load_name}.{self.repeat}")

    @property
    def label(self) -> str:
        """The load for people: `32 streams`, `2/s`, `trace`."""
        return load_label(self.concurrency, self.rate)

    @property
    def level(self) -> float:
        """Concurrency or rate, for seeds and order; 0 for a trace."""
        return float(self.concurrency if self.concurrency is not None else self.rate or 0.0)


@dataclass(frozen=True, slots=True)
class Cell:
    """One load point in one launch of one configuration."""

    config_id: str
    launch: int
    point: LoadPoint

    @property
    def cell_id(self) -> str:
        """Unique within the run; names its files."""
        return f"{self.config_id}.l{self.launch}.{self.point.point_id}"

    @classmethod
    def of_row(cls, row: Mapping[Any, Any]) -> Cell:
        """The cell that a row of points.csv is of (unknown: None or NaN), whatever machine its configuration names."""
        concurrency, rate = _known(row["concurrency"]), _known(row["rate"])
        point = LoadPoint(
            scenario=str(row["scenario"]),
            profile=str(row["profile"]),
            concurrency=None if concurrency is None else int(concurrency),
            rate=rate,
            repeat=int(row["repeat"]),
        )
        return cls(str(row["config_id"]).partition(AT)[0], int(row["launch"]), point)


def load_label(concurrency: float | None, rate: float | None, short: bool = False) -> str:
    """A load for people: `32 streams` (short, under a heading that says so: `32`), `2/s`, `trace`."""
    if concurrency is not None:
        return f"{concurrency:g}" if short else "1 stream" if concurrency == 1 else f"{concurrency:g} streams"
    return TRACE if rate is None else f"{rate:g}/s"


def _known(value: Any) -> float | None:
    return None if value is None or math.isnan(value) else float(value)

"""A run read back from its folder, its points typed: what report, recommend and compare start from.

points.csv is written and read here, by the kinds of `columns.py`. Once read, a value is text, a whole number, a number
or a boolean, or it is not known: None in a `Point`, missing in the frame. Nobody asks again.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from qwenbench.analysis.columns import BOOLEAN, COLUMN_NAMES, INTEGER, NUMBER, POINT_COLUMNS, TEXT, Kind, varied_column
from qwenbench.analysis.machines import OfLaunches, by_machine, told_apart
from qwenbench.analysis.window import Window
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.damage import (
    if_readable,
    mapping,
    object_or_none,
    read_run_json,
    table_or_none,
    tell_damage,
    text_or_none,
)
from qwenbench.runfolder.journal import Journal
from qwenbench.runfolder.names import AT, RunPaths, launch_folders

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

T = TypeVar("T")
K = TypeVar("K")
Value = str | int | float | bool | None
"""A value of points.csv; None: not known."""
LOAD_POINT = ("config_id", "machine", "scenario", "profile", "load_shape", "concurrency", "rate")
"""Columns that name a load point; its rows differ only in launch and repeat."""
_COLUMNS = {column.name: column for column in POINT_COLUMNS}
_READ_AS: dict[Kind, str] = {TEXT: "object", NUMBER: "float64", INTEGER: "Int64", BOOLEAN: "object"}
_TRUE = frozenset({"true", "1", "1.0"})


@dataclass(frozen=True, slots=True)
class Point:
    """One row of points.csv."""

    cell: Cell
    load_shape: str
    window: Window | None
    """The window that its figures are of; None when it is not known."""
    valid: bool
    """Whether decisions may rest on it."""
    values: Mapping[str, Value]
    """Every column by name."""

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Point:
        """The point of a row whose values are typed."""
        start, end = values.get("window_start_ns"), values.get("window_end_ns")
        window = None
        if isinstance(start, int) and isinstance(end, int):
            window = Window(str(values.get("window")), start, end)
        return cls(Cell.of_row(values), str(values["load_shape"]), window, values.get("valid") is True, values)

    def number(self, name: str) -> float | None:
        """A column's value as a number; None when it is not known."""
        value = self.values.get(name)
        return float(value) if isinstance(value, int | float) else None

    def text(self, name: str) -> str | None:
        """A column's value as text; None when it is not known."""
        return text_or_none(self.values.get(name))


@dataclass(frozen=True)
class Run:
    """A run's folder. Needs run.json, points.csv and servers/*/launch.json; all else may be missing."""

    path: Path
    meta: Mapping[str, Any]
    """run.json."""
    points: pd.DataFrame
    """points.csv with every column of `columns.py` in its kind's type; what is not known is missing. In a run of
    several machines config_id is CONFIG@MACHINE, here and below (`told_apart`)."""
    launches: Mapping[str, Mapping[str, Any]]
    """config_id -> launch.json."""
    ledgers: Mapping[str, Mapping[str, Any]]
    """config_id -> memory.json."""
    failures: Mapping[str, Mapping[str, Any]]
    """config_id -> failure.json."""
    predictions: Mapping[str, Mapping[str, Any]]
    """config_id -> what was predicted before launch (prediction.json, keys of `plan --json`)."""
    launch_records: OfLaunches = field(default_factory=dict)
    """launch.json of each launch, under the configuration's name on disk."""
    kept_ledgers: OfLaunches = field(default_factory=dict)
    """memory.json likewise."""

    @property
    def simulated(self) -> bool:
        """Whether any of it was made by the simulator: one place that says so is enough, whatever the others say."""
        told = [self.meta, *self.launches.values(), *self.ledgers.values()]
        return (
            any(place.get("simulated") is True for place in told)
            or bool(self.meta.get("notice"))
            or bool(self.points["simulated"].fillna(False).astype(bool).any())
        )

    @property
    def run_id(self) -> str:
        """The run's name."""
        return str(self.meta.get("run_id") or self.path.name)

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of run.json that holds names (`options`, `versions`, ...); empty where it does not."""
        return mapping(self.meta.get(name))

    @cached_property
    def measured(self) -> tuple[Point, ...]:
        """The points one by one, in the order of points.csv."""
        return tuple(map(Point.of, records(self.points)))

    @cached_property
    def launch_ledgers(self) -> OfLaunches:
        """memory.json of each launch, under the name that `points` have for its configuration."""
        named = {(p.cell.config_id, p.cell.launch): str(p.values["config_id"]) for p in self.measured}
        return {(named.get(key, key[0]), key[1]): ledger for key, ledger in self.kept_ledgers.items()}

    def requests(self, cell_id: str) -> pa.Table | None:
        """The request records of a cell, or None when the folder was shipped without them."""
        return table_or_none(RunPaths(self.path).cell_requests(cell_id), "its point has no request records")

    def metrics(self, config_id: str, cell_id: str) -> pa.Table | None:
        """The /metrics samples of a cell, or None."""
        return table_or_none(RunPaths(self.path).metrics_samples(config_id, cell_id), "its point has no course")

    def nvml(self, config_id: str, cell_id: str) -> pa.Table | None:
        """The NVML samples of a cell, or None."""
        return table_or_none(RunPaths(self.path).nvml_samples(config_id, cell_id), "its point has no VRAM course")


def load_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads runs that are to be held against each other: where one holds several machines, all are told apart by them,
    so that like stands against like."""
    runs = [load_run(path) for path in paths]
    several = [any(AT in str(name) for name in run.points["config_id"].unique()) for run in runs]
    if not any(several):
        return runs
    return [run if apart else load_run(run.path, apart=True) for run, apart in zip(runs, several, strict=True)]


def load_run(path: Path, apart: bool = False) -> Run:
    """Reads a run's folder; `apart`: its configurations are named with their machine, if it is one only.

    A damaged file is named on the log and costs only what stood in it; rows that points.csv lacks are taken from the
    journal. Raises UsageError when the folder is no run, or when run.json or every record of a point cannot be read.
    """
    paths = RunPaths(path)
    meta = read_run_json(paths.run_json)
    points = told_apart(_points(paths), meta, apart)
    names = list(dict.fromkeys(points["config_id"].astype(str)))

    launches = _of_launches(paths, "launch.json", "its settings are missing")
    ledgers = _of_launches(paths, "memory.json", "its memory is missing")
    predictions = _of_launches(paths, "prediction.json", "its prediction is missing")
    failed = _of_launches(paths, "failure.json", "why it failed is missing")
    # a configuration failed when any of its launches did
    failures = {config: why for (config, _), why in sorted(failed.items(), key=lambda item: (item[0][0], -item[0][1]))}
    return Run(
        path=path,
        meta=meta,
        points=points,
        launches=by_machine(launches, launches, names),
        ledgers=by_machine(ledgers, launches, names),
        # of a configuration that failed on one of its machines nothing is advised on the others either
        failures={name: failures[config] for config in failures for name in _named(config, names)},
        predictions=by_machine(predictions, launches, names),
        launch_records=launches,
        kept_ledgers=ledgers,
    )


def _named(config: str, names: Sequence[str]) -> list[str]:
    """What a configuration on disk is called in the points: its name, or one for each machine."""
    return [name for name in names if name.partition(AT)[0] == config] or [config]


def _of_launches(paths: RunPaths, file: str, cost: str) -> OfLaunches:
    """(configuration's name on disk, launch) -> that file of each launch that has it; a damaged one is told."""
    read = {(config, launch): object_or_none(folder / file, cost) for config, launch, folder in launch_folders(paths)}
    return {key: value for key, value in read.items() if value is not None}


def _points(paths: RunPaths) -> pd.DataFrame:
    """points.csv, and what it lacks of the journal."""
    frame = if_readable(read_points, paths.points, "its rows are taken from the journal")
    entries = Journal(paths.journal).readable_entries()
    if frame is not None and entries:  # what a cut row still says may be cut as well: the journal has it whole
        cut = not paths.points.read_bytes().endswith(b"\n")
        frame = frame.iloc[: len(frame) - cut].dropna(subset=["launch", "repeat"])
    known = set() if frame is None or not entries else {Cell.of_row(row).cell_id for row in records(frame)}
    lost = [entry.point for entry in entries if entry.cell not in known and "config_id" in entry.point]
    if frame is None and not lost and paths.points.exists():
        raise UsageError(
            f"{paths.points}: the run cannot be read: this file is damaged, and the journal has no points."
        )
    if not lost:
        return point_frame([]) if frame is None else frame
    if frame is not None:
        tell_damage(paths.points, f"lacks {len(lost)} of {len(entries)} rows", "they are taken from the journal")
    return point_frame([*([] if frame is None else records(frame)), *lost])


def points_csv(points: Iterable[Mapping[str, Any]], vary: Sequence[str]) -> bytes:
    """points.csv: the contract's columns in their order, then vary_FLAG; unknown values are empty."""
    columns = [*COLUMN_NAMES, *map(varied_column, vary)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for point in points:
        writer.writerow([_written(name, point.get(name)) for name in columns])
    return text.getvalue().encode()


def _written(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        exact = name in _COLUMNS and _COLUMNS[name].exact
        return "" if math.isnan(value) else repr(value if exact else round(value, 6))
    return str(value)


def read_points(path: Path) -> pd.DataFrame:
    """points.csv, typed. Raises ValueError or TypeError: a value not of its column's kind, no column of a point."""
    import pandas as pd

    header = pd.read_csv(path, nrows=0).columns
    if "config_id" not in header:
        raise ValueError("no points: config_id is not among its columns")
    # read by kind: pandas would guess, and `1024` and `fp8` may stand in one column
    dtypes = {str(name): _READ_AS[_kind(str(name))] for name in header}
    frame = pd.read_csv(path, dtype=dtypes)
    return _framed({str(name): frame[name].tolist() for name in frame}, len(frame))


def point_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The same frame from rows at hand (`summarise_point`); None is not known."""
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    return _framed({name: [row.get(name) for row in rows] for name in names}, len(rows))


def _framed(given: Mapping[str, list[Any]], count: int) -> pd.DataFrame:
    """Every column of the table in its kind's type; what has no `valid` holds valid points only."""
    import pandas as pd

    missing = {name: [True if name == "valid" else None] * count for name in COLUMN_NAMES if name not in given}
    columns = {name: given.get(name) or missing.get(name, []) for name in dict.fromkeys([*COLUMN_NAMES, *given])}
    return pd.DataFrame({name: _column(values, _kind(name)) for name, values in columns.items()})


def _kind(name: str) -> Kind:
    """Columns that are not in the table are --vary flags, or another version's: texts."""
    return _COLUMNS[name].kind if name in _COLUMNS else TEXT


def _column(values: Sequence[Any], kind: Kind) -> Any:
    import pandas as pd

    known = [None if pd.isna(value) else value for value in values]
    if kind == NUMBER:
        return np.array([math.nan if value is None else value for value in known], dtype=np.float64)
    if kind == BOOLEAN:
        return pd.array([None if value is None else str(value).lower() in _TRUE for value in known], dtype="boolean")
    # whole numbers beside unknown ones would turn into rounded floats
    return pd.array(known, dtype="Int64") if kind == INTEGER else np.array(known, dtype=object)


def records(points: pd.DataFrame, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The frame's rows as dictionaries of these columns, or of all: Python's own values, None for the unknown."""
    import pandas as pd

    def known(value: Any) -> Any:
        return None if value is pd.NA or value != value else value  # noqa: PLR0124 - only NaN is not itself

    names = list(columns) if columns is not None else [str(name) for name in points]
    # one by one: pandas' own `where` takes some hundred times as long for the few rows of a run
    values = [map(known, points[name].tolist()) for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The rows by their key, in the order in which each key comes first."""
    found: dict[K, list[T]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def columns_of(*names: str) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A key for `grouped`: the values of these columns."""
    return lambda row: tuple(row[name] for name in names)


def level_of(row: Mapping[str, Any]) -> float | None:
    """Client streams of a closed loop, else the scheduled rate; None for a trace."""
    value = row.get("concurrency") if row.get("concurrency") is not None else row.get("rate")
    return None if value is None else float(value)


def mean_of(rows: Iterable[Mapping[str, Any]], column: str) -> float | None:
    """The mean of what is known of a column; None where nothing is."""
    known = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(known)) if known else None


def known_numbers(rows: pd.DataFrame, column: str) -> list[float]:
    """The numbers of a column, without what is not known; empty where there is no such column."""
    return [float(value) for value in rows[column].dropna()] if column in rows else []


def valid_rows(points: pd.DataFrame) -> pd.DataFrame:
    """The rows that decisions may rest on."""
    return points[points["valid"].fillna(False).astype(bool)] if len(points) else points


def files_of(run: Run, file: str) -> dict[str, Mapping[str, Any]]:
    """Configuration's name on disk -> that file of its first launch."""
    read = _of_launches(RunPaths(run.path), file, f"what {file} says is missing")
    return {config: value for (config, launch), value in read.items() if launch == 1}

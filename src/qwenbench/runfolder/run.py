"""A run read back from its folder: what report, recommend and compare start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from qwenbench.errors import UsageError
from qwenbench.runfolder.files import read_json
from qwenbench.runfolder.names import RunPaths

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


@dataclass(frozen=True)
class Run:
    """A run's folder. Needs run.json, points.csv and servers/*/launch.json; all else may be missing."""

    path: Path
    meta: Mapping[str, Any]
    """run.json."""
    points: pd.DataFrame
    """points.csv; unknown values are NaN."""
    launches: Mapping[str, Mapping[str, Any]]
    """config_id -> launch.json."""
    ledgers: Mapping[str, Mapping[str, Any]]
    """config_id -> memory.json."""
    failures: Mapping[str, Mapping[str, Any]]
    """config_id -> failure.json."""
    predictions: Mapping[str, Mapping[str, Any]]
    """config_id -> what was predicted before launch (prediction.json, keys of `plan --json`)."""

    @property
    def simulated(self) -> bool:
        """Whether any of it was made by the simulator."""
        return bool(self.meta.get("simulated"))

    @property
    def run_id(self) -> str:
        """The run's name."""
        return str(self.meta.get("run_id") or self.path.name)

    def requests(self, cell_id: str) -> pa.Table | None:
        """The request records of a cell, or None when the folder was shipped without them."""
        return _table(RunPaths(self.path).cell_requests(cell_id))

    def metrics(self, config_id: str, cell_id: str) -> pa.Table | None:
        """The /metrics samples of a cell, or None."""
        return _table(RunPaths(self.path).metrics_samples(config_id, cell_id))

    def nvml(self, config_id: str, cell_id: str) -> pa.Table | None:
        """The NVML samples of a cell, or None."""
        return _table(RunPaths(self.path).nvml_samples(config_id, cell_id))


def _table(path: Path) -> pa.Table | None:
    import pyarrow.parquet as pq

    return pq.read_table(path) if path.exists() else None


def _objects(servers: Path, name: str) -> dict[str, dict[str, Any]]:
    return {file.parent.name: read_json(file) for file in sorted(servers.glob(f"*/{name}"))}


def _failures(servers: Path) -> dict[str, dict[str, Any]]:
    """A configuration failed when any of its launches did."""
    relaunches = {file.parent.parent.name: read_json(file) for file in servers.glob("*/relaunch-*/failure.json")}
    return {**relaunches, **_objects(servers, "failure.json")}


def load_run(path: Path) -> Run:
    """Reads a run's folder. Raises UsageError when it is none, or when a file in it cannot be read."""
    import pandas as pd

    paths = RunPaths(path)
    if not paths.run_json.exists():
        raise UsageError(f"{path}: no run here (run.json is missing). Give the folder that a sweep or bench wrote.")
    try:
        meta = read_json(paths.run_json)
        points = pd.read_csv(paths.points) if paths.points.exists() else pd.DataFrame()
        return Run(
            path=path,
            meta=meta,
            points=points,
            launches=_objects(paths.servers, "launch.json"),
            ledgers=_objects(paths.servers, "memory.json"),
            failures=_failures(paths.servers),
            predictions=_objects(paths.servers, "prediction.json"),
        )
    except (ValueError, orjson.JSONDecodeError, OSError) as error:
        raise UsageError(f"{path}: the run cannot be read: {error}") from error

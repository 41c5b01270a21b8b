"""Start-up phases from the time stamps of vLLM's logs."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_STAMP = re.compile(r"\b\d\d-\d\d (\d\d):(\d\d):(\d\d)\b")
_MARKS = {
    "init": "Initializing a V1 LLM engine",
    "loaded": "Model loading took",
    "compiled": "torch.compile took",
    "profiled": "Initial profiling/warmup run took",
    "captured": "Graph capturing finished",
    "ready": "Starting vLLM server on",
}
WARM_COMPILE_S = 10.0
"""A start whose torch.compile took less had its caches."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of each phase of one start."""

    name: str
    cold: bool
    seconds: Mapping[str, float]


def read_starts(folder: Path) -> list[Phases]:
    """The starts of a recorder's folder that got ready."""
    starts: list[Phases] = []
    if not (folder / "results.json").exists():
        return starts
    for run in json.loads((folder / "results.json").read_text(encoding="utf-8")):
        seconds = run.get("startup_s") or run.get("ready_s")
        if seconds and (run.get("ok") or run.get("loads")):
            starts.append(_phases(folder / f"{run['name']}.log", run["name"], seconds))
    return starts


def _phases(path: Path, name: str, startup_s: float) -> Phases:
    at: dict[str, float] = {}
    values: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        for mark, text in _MARKS.items():
            stamp = _STAMP.search(line)
            if text in line and mark not in at and stamp is not None:
                hours, minutes, second = map(int, stamp.groups())
                at[mark] = hours * 3600 + minutes * 60 + second
                took = re.search(rf"{re.escape(text)} ([\d.]+) s", line)
                values[mark] = float(took[1]) if took else 0.0
    began = at["ready"] - startup_s
    spent = values["compiled"] + values["profiled"]
    seconds = {
        "import_s": at["init"] - began,
        "load_s": at["loaded"] - at["init"],
        "compile_s": values["compiled"],
        "profile_s": values["profiled"],
        "graphs_s": at["captured"] - at["loaded"] - spent,
        "api_s": at["ready"] - at["captured"],
    }
    return Phases(name, values["compiled"] >= WARM_COMPILE_S, seconds)


def typical(starts: list[Phases]) -> dict[str, dict[str, float]]:
    """Medians of the cold and of the warm starts, by phase."""
    result = {}
    for label, cold in (("cold", True), ("warm", False)):
        group = [start for start in starts if start.cold is cold]
        result[label] = {
            key: round(statistics.median(start.seconds[key] for start in group), 2) for key in group[0].seconds
        }
    return result

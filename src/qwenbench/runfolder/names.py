"""Names in a run's folder, and which run a user means: its folder, its name below the folder of runs, or the newest."""

from __future__ import annotations

import hashlib
import re
from datetime import datetime
from pathlib import Path

from qwenbench.errors import UsageError, near_miss

_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,80}\Z")


def check_name(name: str, what: str) -> str:
    """The name itself. Raises UsageError unless it matches [A-Za-z0-9._-]{1,80} without a leading dot."""
    if not _NAME.match(name):
        raise UsageError(f"{what} {name!r}: use 1 to 80 letters, digits, dots, dashes or underscores, no dot first.")
    return name


def slug(text: str) -> str:
    """The text with everything that a name may not hold turned into dashes, cut to 80 characters."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "x"
    return cleaned[:80]


def unique_slug(text: str) -> str:
    """A slug that two texts never share: one that loses characters ends in a hash of the whole text."""
    name = slug(text)
    return name if name == text else f"{slug(text[:60])}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def new_run_id(now: datetime) -> str:
    """A time-based run id, e.g. 20260131-142501."""
    return now.strftime("%Y%m%d-%H%M%S")


AT = "@"
"""Parts a configuration's name from the machine that its points were measured on, where a run holds several; no name
on disk holds it."""
TEXTS = ".texts.json"


class RunPaths:
    """Where each file of a run lies (design: "A run's folder")."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run_json = root / "run.json"
        self.journal = root / "journal.jsonl"
        self.points = root / "points.csv"
        self.summary = root / "points_summary.csv"
        self.requests = root / "requests"
        self.servers = root / "servers"
        self.report = root / "report.html"
        self.lock = root / ".lock"

    def cell_requests(self, cell_id: str) -> Path:
        """One row per request of this cell."""
        return self.requests / f"{cell_id}.parquet"

    def cell_texts(self, cell_id: str) -> Path:
        """Answers by request id (--save-text), for the owner's eyes only."""
        return self.requests / f"{cell_id}{TEXTS}"

    def cell_files(self, config_id: str, cell_id: str) -> tuple[Path, ...]:
        """All files of a cell; its answers are there with --save-text only."""
        samples = (self.metrics_samples(config_id, cell_id), self.nvml_samples(config_id, cell_id))
        return self.cell_requests(cell_id), *samples, self.cell_texts(cell_id)

    def server(self, config_id: str, launch: int = 1) -> Path:
        """The folder of one launch of a configuration; relaunches lie below the first one's."""
        folder = self.servers / config_id.partition(AT)[0]
        return folder if launch == 1 else folder / f"relaunch-{launch}"

    def metrics_samples(self, config_id: str, cell_id: str) -> Path:
        """/metrics samples of a cell."""
        return self.server(config_id) / "samples" / f"{cell_id}.metrics.parquet"

    def nvml_samples(self, config_id: str, cell_id: str) -> Path:
        """NVML samples of a cell."""
        return self.server(config_id) / "samples" / f"{cell_id}.nvml.parquet"


def launch_folders(paths: RunPaths) -> list[tuple[str, int, Path]]:
    """(configuration, launch, its folder) of every launch that a run has a folder of."""
    found = [(folder.name, 1, folder) for folder in paths.servers.glob("*") if folder.is_dir()]
    for folder in paths.servers.glob("*/relaunch-*"):
        number = folder.name.removeprefix("relaunch-")
        if number.isdecimal() and folder.is_dir():
            found.append((folder.parent.name, int(number), folder))
    return sorted(found)


RUNS = Path("results")
"""Where runs lie unless another folder is named."""


def find_run(named: str | Path | None, what: str = "RUN", runs: Path = RUNS) -> Path:
    """The folder of a run: by path, by name below `runs`, or the one that was written last (None or empty).

    Raises UsageError, which begins with `what`, when there is none.
    """
    if named is None or str(named) == "":
        newest = max(_folders(runs), key=_written, default=None)
        if newest is None:
            raise UsageError(f"{what}: no run in {runs} yet. Name a run's folder, or begin one with qwenbench sweep.")
        return newest
    places = dict.fromkeys((Path(named), runs / named))  # an absolute path is both
    for folder in places:
        if (folder / "run.json").exists():
            return folder
    hint = near_miss(Path(named).name, [folder.name for folder in _folders(runs)])
    raise UsageError(f"{what} {named}: no run there (no run.json in {' or '.join(map(str, places))}).{hint}")


def _folders(runs: Path) -> list[Path]:
    return [file.parent for file in runs.glob("*/run.json")]


def _written(folder: Path) -> int:
    """When the run last gained a cell, ns; run.json's time before the first."""
    journal = folder / "journal.jsonl"
    return (journal if journal.exists() else folder / "run.json").stat().st_mtime_ns

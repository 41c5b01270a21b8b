"""Which run a user means: its folder, its name below the folder of runs, or the newest."""

from __future__ import annotations

from pathlib import Path

from qwenbench.errors import UsageError, near_miss

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
    for folder in (Path(named), runs / named):
        if (folder / "run.json").exists():
            return folder
    hint = near_miss(Path(named).name, [folder.name for folder in _folders(runs)])
    raise UsageError(f"{what} {named}: no run there (no run.json in {named} or {runs / named}).{hint}")


def _folders(runs: Path) -> list[Path]:
    return [file.parent for file in runs.glob("*/run.json")]


def _written(folder: Path) -> int:
    """When the run last gained a cell, ns; run.json's time before the first."""
    journal = folder / "journal.jsonl"
    return (journal if journal.exists() else folder / "run.json").stat().st_mtime_ns

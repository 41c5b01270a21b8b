"""Which run a user means: its folder, its name below the folder of runs, or the newest."""

from __future__ import annotations

from pathlib import Path

from qwenbench.errors import UsageError

RUNS = Path("results")
"""Where runs lie unless another folder is named."""


def find_run(named: str | Path | None, what: str = "RUN", runs: Path = RUNS) -> Path:
    """The folder of a run: by path, by name below `runs`, or the one that was written last (None or empty).

    Raises UsageError, which begins with `what`, when there is none.
    """
    if named is None or str(named) == "":
        found = sorted(runs.glob("*/run.json"), key=lambda file: file.stat().st_mtime_ns)
        if not found:
            raise UsageError(f"{what}: no run in {runs} yet. Name a run's folder, or begin one with qwenbench sweep.")
        return found[-1].parent
    for folder in (Path(named), runs / named):
        if (folder / "run.json").exists():
            return folder
    raise UsageError(f"{what} {named}: no run there (no run.json in {named} or {runs / named}).")

"""Planted run folders (tests/support/report_runs.py) for these tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from report_runs import Recipe, plant

from qwenbench.analysis.run import Run, load_run


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., Run]:
    """`planted(captures=(16, 32), ...)`: a run read back from a freshly planted folder."""

    def make(**recipe: object) -> Run:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        return load_run(plant(folder, Recipe(**recipe)))  # type: ignore[arg-type] # a recipe's own fields

    return make

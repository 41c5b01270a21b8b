"""Which run is meant by a path, a name or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwenbench.errors import UsageError
from qwenbench.runfolder.names import find_run


def made(folder: Path, at_s: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    os.utime(folder / "run.json", (at_s, at_s))
    return folder


def test_a_run_is_found_by_path_by_name_and_as_the_newest(tmp_path: Path) -> None:
    runs = tmp_path / "results"
    older, newer = made(runs / "b", 100), made(runs / "a", 200)
    assert find_run(older, runs=runs) == older
    assert find_run("b", runs=runs) == older
    assert find_run(None, runs=runs) == find_run("", runs=runs) == newer


def test_no_run_is_one_line_that_says_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--resume: no run in .* yet"):
        find_run(None, "--resume", tmp_path)
    with pytest.raises(UsageError, match=r"RUN nowhere: no run there \(no run\.json in nowhere or "):
        find_run("nowhere", runs=tmp_path)


def test_a_run_that_is_not_there_is_told_with_the_near_miss(tmp_path: Path) -> None:
    (tmp_path / "20261126-142501").mkdir()
    (tmp_path / "20261126-142501" / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="Did you mean '20261126-142501'"):
        find_run("20261126-142502", runs=tmp_path)

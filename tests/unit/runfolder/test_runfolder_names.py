"""Names in a run's folder can be typed, sorted and never lead out of it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.errors import UsageError
from qwenbench.runfolder.names import RunPaths, check_name, new_run_id, slug


@pytest.mark.parametrize("name", ["20260131-142501", "a", "cap16-seq16", "x" * 80, "A_b.c-d"])
def test_good_names(name: str) -> None:
    assert check_name(name, "--run-id") == name


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 81, "ä", "a\n", "\\"])
def test_bad_names_are_refused_with_the_option(name: str) -> None:
    with pytest.raises(UsageError, match="--run-id"):
        check_name(name, "--run-id")


@given(st.text())
def test_a_slug_is_always_a_good_name(text: str) -> None:
    assert check_name(slug(text), "slug")


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,70}[A-Za-z0-9]", fullmatch=True))
def test_a_slug_leaves_a_good_name_alone(text: str) -> None:
    assert slug(text) == text


def test_run_ids_sort_by_time() -> None:
    assert new_run_id(datetime(2026, 1, 31, 14, 25, 1)) == "20260131-142501"


def test_the_folder_is_laid_out_as_promised() -> None:
    paths = RunPaths(Path("r"))
    assert paths.cell_requests("cell") == Path("r/requests/cell.parquet")
    assert paths.server("cfg") / "launch.json" == Path("r/servers/cfg/launch.json")
    assert paths.server("cfg", launch=2).parent == Path("r/servers/cfg")
    assert paths.metrics_samples("cfg", "cell") == Path("r/servers/cfg/samples/cell.metrics.parquet")
    assert paths.nvml_samples("cfg", "cell") == Path("r/servers/cfg/samples/cell.nvml.parquet")

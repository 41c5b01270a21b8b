"""A run is read back from what is there; what is missing is missing, and nonsense is one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from analysis_runs import row

from qwenbench.analysis.run import load_run, point_frame, points_csv, records
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.files import write_bytes, write_json
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.names import RunPaths


def test_a_shipped_run_needs_only_three_kinds_of_file(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "example")
    write_json(paths.run_json, {"run_id": "example", "simulated": True})
    write_bytes(paths.points, b"config_id,ttft_ms_p50,preemptions\ncap16,1.5,\n")
    write_json(paths.server("cap16") / "launch.json", {"argv": ["vllm"]})
    run = load_run(paths.root)
    assert run.run_id == "example"
    assert run.simulated
    assert run.launches == {"cap16": {"argv": ["vllm"]}}
    assert run.points["preemptions"].isna().all()  # unknown, not 0
    assert run.failures == run.ledgers == {}
    assert run.requests("cell") is None
    assert run.metrics("cap16", "cell") is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.json is missing"):
        load_run(tmp_path)


@pytest.mark.parametrize(("name", "content"), [("run.json", "{"), ("run.json", "[]"), ("points.csv", "")])
def test_a_broken_file_is_one_line(tmp_path: Path, name: str, content: str) -> None:
    write_json(tmp_path / "run.json", {"run_id": "x"})
    write_bytes(tmp_path / name, content.encode())
    with pytest.raises(UsageError, match="the run cannot be read"):
        load_run(tmp_path)


def test_a_broken_file_beside_the_points_costs_what_stood_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_json(tmp_path / "run.json", {"run_id": "x"})
    write_bytes(tmp_path / "points.csv", b"config_id,ttft_ms_p50\na,1.5\n")
    write_bytes(tmp_path / "servers/a/launch.json", b"nope")
    run = load_run(tmp_path)
    assert run.launches == {}
    assert len(run.points) == 1
    assert "launch.json is damaged" in caplog.text


@pytest.mark.parametrize("left", [1, 3, 40, 80, 0.5, -2, -1])
def test_a_row_of_points_csv_that_was_cut_is_rebuilt_from_the_journal(
    tmp_path: Path, left: float, caplog: pytest.LogCaptureFixture
) -> None:
    """`left`: the characters, or the share, that are left of the last row."""
    paths = RunPaths(tmp_path)
    figures = {"rate": None, "output_tokens_per_s": 1234.5, "ttft_ms_p50": 98.75}
    rows = [row("cap16", 1, number, **figures) for number in (1, 2, 3)]
    write_json(paths.run_json, {"run_id": "x"})
    for point in rows:
        Journal(paths.journal).append(Entry(Cell.of_row(point).cell_id, "cap16", point["launch"], point, 1))
    whole = points_csv(rows, ())
    head, last = whole[: whole[:-1].rindex(b"\n") + 1], whole[whole[:-1].rindex(b"\n") + 1 :]
    write_bytes(paths.points, whole)
    intact = load_run(tmp_path).points
    assert not caplog.text and len(intact) == 3

    write_bytes(paths.points, head + last[: int(len(last) * left) if isinstance(left, float) else left])
    pd.testing.assert_frame_equal(load_run(tmp_path).points, intact)
    assert "lacks 1 of 3 rows" in caplog.text


def test_the_rows_of_a_frame_are_pythons_own_values_and_none_for_the_unknown() -> None:
    rows: list[dict[str, object]] = [
        {"config_id": "a", "concurrency": 1, "rate": None, "valid": True, "simulated": None, "ttft_ms_p50": 1.5},
        {"config_id": "b", "concurrency": None, "rate": 2.0, "valid": False, "simulated": True, "ttft_ms_p50": None},
    ]
    again = records(point_frame(rows), list(rows[0]))
    assert again == rows
    assert [[type(value) for value in one.values()] for one in again] == [
        [type(value) for value in one.values()] for one in rows
    ]

"""A run is read back from what is there; what is missing is missing, and nonsense is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenbench.analysis.run import load_run
from qwenbench.errors import UsageError
from qwenbench.runfolder.files import write_bytes, write_json
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

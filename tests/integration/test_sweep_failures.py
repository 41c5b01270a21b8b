"""Servers that do not start or die: recorded with the reason from their own log, and the sweep goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from sweep_runs import Ended, journal, points, qwenbench, record, sweep

from qwenbench.load.run import LoadClient
from qwenbench.load.spec import LoadProgress, LoadResult, LoadSpec

LISTED = ("--order", "listed", "--requests", "8", "--output-tokens", "24")


def failure(folder: Path, config: str) -> dict[str, object]:
    return record(folder / "servers" / config / "failure.json")


def told(ended: Ended, config: str) -> str:
    return next(line for line in ended.err.splitlines() if line.startswith(f"{config}: FAILED, "))


def test_one_that_does_not_start_and_one_that_dies_under_load(tmp_path: Path) -> None:
    """die-under-load needs two requests at once, so its first load point is measured and kept."""
    folder = tmp_path / "r"
    names = {kind: f"cap16-seq16-sim-fail-{kind}" for kind in ("oom-at-start", "die-under-load", "exit-silently")}
    ended = sweep(folder, "--capture", "16", "--vary", f"sim-fail={','.join(names)}", "--concurrency", "1,4", *LISTED)
    assert ended.status == 1, ended.err
    assert "Traceback" not in ended.err

    start = failure(folder, names["oom-at-start"])
    assert str(start["class"]).startswith("oom"), start
    assert start["phase"] == "graph_capture"
    assert "CUDA out of memory" in str(start["evidence"])
    assert start["advice"]
    assert str(start["evidence"]) in told(ended, names["oom-at-start"])

    silent = failure(folder, names["exit-silently"])
    assert (silent["phase"], silent["exit_code"]) == ("profiling", 0)

    death = failure(folder, names["die-under-load"])
    assert death["phase"] == "load"
    assert "CUDA out of memory" in str(death["evidence"])
    log = (folder / "servers" / names["die-under-load"] / "server.log").read_text()
    assert str(death["evidence"])[:80] in log

    (kept,) = points(folder)
    assert (kept["config_id"], kept["concurrency"], kept["requests_failed"]) == (names["die-under-load"], "1", "0")
    assert kept["vary_sim_fail"] == "die-under-load"
    assert [line["cell"] for line in journal(folder)] == [path.stem for path in (folder / "requests").iterdir()]
    assert "To go on: qwenbench sweep --resume" in ended.err
    report = (folder / "report.html").read_text()
    assert all(name in report for name in names.values())


def test_one_that_cannot_be_parsed_does_not_end_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    ended = sweep(folder, "--capture", "16", "--vary", "kv-cache-memory-bytes=2g,nonsense", "--concurrency", "2")
    assert ended.status == 1, ended.err
    assert [row["config_id"] for row in points(folder)] == ["cap16-seq16-kv-cache-memory-bytes-2g"]
    found = failure(folder, "cap16-seq16-kv-cache-memory-bytes-nonsense")
    assert found["class"] == "unknown_flag", found
    assert "value: 'nonsense'" in str(found["evidence"])


def test_nothing_could_run(tmp_path: Path) -> None:
    """Hangs at the start, and dies at the very first request (a probe's): nothing is left, exit 2."""
    folder = tmp_path / "r"
    kinds = ("hang-at-start", "crash-first-request")
    ended = sweep(
        folder, "--capture", "16", "--vary", f"sim-fail={','.join(kinds)}", "--concurrency", "2",
        "--startup-timeout", "6",
    )  # fmt: skip
    assert ended.status == 2, ended.err
    assert "Traceback" not in ended.err
    hung, crashed = (failure(folder, f"cap16-seq16-sim-fail-{kind}") for kind in kinds)
    assert hung["class"] == "never_healthy"
    assert "not ready after 6 s" in str(hung["evidence"])
    assert crashed["phase"] == "load"
    assert "Triton Error [CUDA]: out of memory" in str(crashed["evidence"])
    assert journal(folder) == []
    assert record(folder / "run.json")["finished"]


def test_one_that_cannot_start_is_skipped_with_the_arithmetic_unless_forced(tmp_path: Path) -> None:
    few = ("--capture", "16", "--gpu-memory-utilization", "0.2,0.9", "--concurrency", "1")
    folder = tmp_path / "skipped"
    assert sweep(folder, *few).status == 1
    doomed = folder / "servers" / "cap16-seq16-util0.2"
    told = failure(folder, doomed.name)
    assert (told["class"], told["phase"]) == ("cannot_start", "plan")
    assert "10.57 weights" in str(told["evidence"])
    assert not (doomed / "server.log").exists(), "it was not launched"
    assert [point["config_id"] for point in points(folder)] == ["cap16-seq16-util0.9"]

    forced = tmp_path / "forced"
    assert sweep(forced, *few, "--force").status == 1
    assert (forced / "servers" / doomed.name / "server.log").exists(), "--force launches it"
    assert failure(forced, doomed.name)["phase"] == "graph_capture"


def test_a_point_whose_client_was_killed_is_not_kept_and_resume_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_load = LoadClient.run
    loads = 0

    async def run(self: LoadClient, spec: LoadSpec, **given: Any) -> LoadResult:
        nonlocal loads
        loads += 1
        told = given.get("on_progress")

        def kill_once(progress: LoadProgress) -> None:
            if loads == doomed and progress.in_flight:
                for process in self._processes:
                    os.kill(process.pid, signal.SIGKILL)
            if told is not None:
                told(progress)

        return await run_load(self, spec, **{**given, "on_progress": kill_once})

    monkeypatch.setattr(LoadClient, "run", run)
    folder = tmp_path / "r"
    arguments = ("--capture", "16", "--concurrency", "1,2", "--order", "listed", "--duration", "4")
    doomed = 4  # after the text checks: warm-up, load, warm-up, load
    ended = sweep(folder, *arguments, "--no-natural-stop-check")
    assert ended.status == 1, ended.err
    assert [point["concurrency"] for point in points(folder)] == ["1"]
    reason = failure(folder, "cap16-seq16")
    assert reason["class"] == "client_lost"
    assert "signal 9" in str(reason["evidence"])
    doomed = 0
    again = qwenbench("sweep", "--resume", str(folder))
    assert again.status in (0, 1), again.err  # 1: a busy machine made a point invalid
    assert [point["concurrency"] for point in points(folder)] == ["1", "2"]
    assert not (folder / "servers" / "cap16-seq16" / "failure.json").exists()

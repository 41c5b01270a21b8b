"""`qwenbench releases` and `qwenbench merge` as a user runs them, against simulators as engine versions."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from pathlib import Path

import pytest
from sweep_runs import QUICK, free_port, journal, points, qwenbench, relatives, started, sweep, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process supervision needs Linux")
SERVE = shlex.join([sys.executable, "-m", "qwenbench.simulator", "serve"])
STEADY = ("--scenario", "math", "--requests", "4", "--output-tokens", "8-16", "--no-report")
"""In the simulator's own time, so that a busy machine's client is not too late."""


def test_two_equal_releases_show_no_change_and_a_killed_campaign_goes_on(tmp_path: Path) -> None:
    port = free_port()
    line = (
        "releases", "--launcher", "sim", *STEADY, "--images", "0.26.0,v0.26.0", "--capture", "16", "--concurrency", "1",
        "--relaunch-repeats", "2", "--repeats", "2", "--out", str(tmp_path), "--run-id", "r", "--port", str(port),
    )  # fmt: skip
    first, second = tmp_path / "r-0.26.0", tmp_path / "r-v0.26.0"
    with started(*line) as process:
        wait_until(lambda: journal(second) or process.poll() is not None, "the second version was never measured")
        assert process.poll() is None
        assert {entry["launch"] for entry in journal(first)} == {1}, "launches take turns"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130 and "--run-id r" in err
        assert relatives(process) == []
    before = journal(first)
    done = qwenbench(*line, "--json", "--gate", "output_tokens_per_s:-5%")
    found = json.loads(done.out)
    assert found["first_changed"] is None and found["failed"] == {}
    assert {f["metric"] for f in found["figures"]} >= {"output_tokens_per_s", "ttft_p50", "tpot_p50"}
    assert done.status == 0, done.err
    assert journal(first)[: len(before)] == before, "nothing is measured twice"
    for run in (first, second):
        assert sorted((row["launch"], row["repeat"]) for row in points(run)) == [
            ("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"),
        ]  # fmt: skip


def test_a_release_that_does_not_start_is_told_and_the_gate_does_not_pass(tmp_path: Path) -> None:
    commands = (SERVE, f"{SERVE} --sim-fail=oom-at-start", SERVE)
    given = [word for command in commands for word in ("--vllm-command", command)]
    done = qwenbench(
        "releases", *given, *QUICK, "--vllm-arg=--sim-time-scale=1", "--capture", "16", "--concurrency", "1",
        "--out", str(tmp_path), "--run-id", "r", "--port", str(free_port()), "--gate", "output_tokens_per_s:-90%",
    )  # fmt: skip
    assert done.status == 1, done.err
    assert "Traceback" not in done.err
    assert "command-2: cap16-seq16 failed" in done.out.replace("\n", " ")
    page = (tmp_path / "r-releases.html").read_text()
    assert "command-2" in page and "command-3" in page


def test_shards_are_merged_and_every_command_reads_the_whole(tmp_path: Path) -> None:
    for name, capture in (("a", "16"), ("b", "32")):
        assert sweep(tmp_path / name, "--capture", capture, "--concurrency", "1", "--no-report").completed
    joined = tmp_path / "joined"
    done = qwenbench("merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(joined))
    assert done.status == 0, done.err
    assert (joined / "report.html").exists()
    assert [row["config_id"] for row in points(joined)] == ["cap16-seq16", "cap32-seq32"]
    meta = json.loads((joined / "run.json").read_text())
    assert {launch["config_id"] for launch in meta["launches"]} == {"cap16-seq16", "cap32-seq32"}
    assert all(launch["node"] and launch["started_ns"] for launch in meta["launches"])
    for command in (
        ("recommend", str(joined), "--json"), ("report", str(joined)), ("compare", str(joined), str(tmp_path / "a")),
        ("export", str(joined), "--format", "csv", "--out", str(tmp_path / "files")),
        ("ledger", str(joined / "servers" / "cap32-seq32" / "server.log"), "--json"),
    ):  # fmt: skip
        answer = qwenbench(*command)
        assert answer.status in (0, 1), (command, answer.err)
        assert "Traceback" not in answer.err
    resumed = qwenbench("sweep", "--resume", str(joined), "--capture", "64", "--no-report", "--port", str(free_port()))
    assert resumed.completed, resumed.err
    assert [row["config_id"] for row in points(joined)] == ["cap16-seq16", "cap32-seq32", "cap64-seq64"]

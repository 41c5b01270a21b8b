"""Sweeps over a real Ray cluster: the same points as on one machine, whatever is killed in between."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from sweep_runs import journal, record, requests_of, wait_until

from conftest import RayCluster

SWEEP = (
    "sweep", "--launcher", "sim", "--scenario", "math", "--requests", "4", "--capture", "16,32", "--order", "listed",
    "--concurrency", "4,2,1", "--output-tokens", "80", "--vllm-arg=--sim-time-scale=0.5", "--no-report",
    "--port", "23000",
)  # fmt: skip
"""Two launches with three load points each, of one to two seconds: time enough to interfere."""


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "qwenbench", *words]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(*words), capture_output=True, text=True, check=False, timeout=200)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def after(cells: int, folder: Path, process: subprocess.Popen[str]) -> None:
    """Waits until so many cells are finished; the next is under way then."""
    wait_until(lambda: len(journal(folder)) >= cells or process.poll() is not None, "no cell ended", 60)
    assert process.poll() is None


def completed(status: int | None, err: str) -> bool:
    """Done; or status 1 only because a busy machine made the client late (invalid points, as they must be)."""
    return status == 0 or (status == 1 and "the client came" in err and "FAILED" not in err)


def into(folder: Path) -> tuple[str, ...]:
    return ("--out", str(folder.parent), "--run-id", folder.name)


@contextlib.contextmanager
def driver(cluster: RayCluster, *words: str) -> Iterator[subprocess.Popen[str]]:
    line = command(*words, "--cluster", cluster.address, "--on", "rtx-5090")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=20)


@pytest.fixture(scope="session")
def single_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same plan on this machine alone."""
    folder = tmp_path_factory.mktemp("single") / "r"
    done = run(*SWEEP, *into(folder))
    assert completed(done.returncode, done.stderr), done.stderr
    return folder


def same_points(folder: Path, single_host: Path) -> None:
    """The run has the single host's cells, each once, and each sent what it sent there."""
    cells = [line["cell"] for line in journal(folder)]
    assert sorted(cells) == sorted(line["cell"] for line in journal(single_host))
    columns = ["request_id", "prompt_id", "requested_output_tokens", "input_tokens"]
    for cell in cells:
        assert requests_of(folder, cell).select(columns).equals(requests_of(single_host, cell).select(columns))


def test_two_kinds_of_card_are_two_runs_with_the_single_hosts_points(
    cluster: RayCluster, single_host: Path, tmp_path: Path
) -> None:
    done = run(*SWEEP, "--cluster", cluster.address, "--on", "rtx-5090,rtx-4090", *into(tmp_path / "r"))
    assert completed(done.returncode, done.stderr), done.stderr
    for kind in ("rtx-5090", "rtx-4090"):
        folder = tmp_path / f"r-{kind}"
        same_points(folder, single_host)
        run_json = record(folder / "run.json")
        assert run_json["hardware"]["card"] == kind
        launches = run_json["launches"]
        assert sorted(one["config_id"] for one in launches) == ["cap16-seq16", "cap32-seq32"]
        assert all(one["machine"].startswith(kind) and one["node"] and one["versions"]["vllm"] for one in launches)
        assert (folder / "servers" / "cap16-seq16" / "server.log").read_text()


@pytest.mark.parametrize("what", ["shard", "worker"])
def test_what_is_killed_in_mid_cell_costs_that_cell(
    cluster: RayCluster, single_host: Path, tmp_path: Path, what: str
) -> None:
    folder = tmp_path / "r"
    with driver(cluster, *SWEEP, *into(folder)) as process:
        last = 0.0
        for cells in (1, 3):
            after(cells, folder, process)
            wait_until(partial(newer_shard, cluster, last), "no launch was placed again", 60)
            shard = max(cluster.shards(), key=psutil.Process.create_time)
            last = shard.create_time()
            (shard if what == "shard" else parent(parent(shard))).kill()
        _, err = process.communicate(timeout=120)
    assert completed(process.returncode, err), err
    assert err.count("placed again") == 2
    assert "Traceback" not in err
    same_points(folder, single_host)


def test_a_killed_raylet_costs_the_cells_in_flight(cluster: RayCluster, single_host: Path, tmp_path: Path) -> None:
    """Its workers notice after some seconds, so the points are long; two nodes are lost, one after the other."""
    folder = tmp_path / "r"
    with driver(cluster, *SWEEP, "--output-tokens", "1600", *into(folder)) as process:
        for cells in (1, 3):
            after(cells, folder, process)
            wait_until(cluster.shards, "no launch is placed", 60)
            parent(parent(parent(cluster.shards()[0]))).kill()
            cluster.replace_killed()
        _, err = process.communicate(timeout=240)
    assert completed(process.returncode, err), err
    assert "placed again" in err
    assert "Traceback" not in err
    assert sorted(line["cell"] for line in journal(folder)) == sorted(line["cell"] for line in journal(single_host))


def test_a_killed_driver_leaves_nothing_and_goes_on(cluster: RayCluster, single_host: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    for kills, words in ((1, (*SWEEP, *into(folder))), (2, ("sweep", "--resume", str(folder)))):
        with driver(cluster, *words) as process:
            after(kills, folder, process)
            process.kill()
            process.wait()
            wait_until(lambda: not cluster.ours(), "a launch outlived its driver", 30)
        before = journal(folder)
    done = run("sweep", "--resume", str(folder), "--cluster", cluster.address, "--no-report")
    assert completed(done.returncode, done.stderr), done.stderr
    assert journal(folder)[: len(before)] == before
    same_points(folder, single_host)
    refused = run("sweep", "--resume", str(folder))
    assert refused.returncode == 2 and "--cluster" in refused.stderr


def test_stopped_by_the_user_then_resumed(cluster: RayCluster, single_host: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with driver(cluster, *SWEEP, *into(folder)) as process:
        wait_until(lambda: journal(folder), "no cell ended", 60)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"sweep --cluster {cluster.address} --resume" in err
    assert not cluster.ours()
    assert not list((folder / "servers").rglob("failure.json"))
    done = run("sweep", "--resume", str(folder), "--cluster", cluster.address, "--no-report")
    assert completed(done.returncode, done.stderr), done.stderr
    same_points(folder, single_host)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on", "h200"), "--on h200: no node of the cluster has such a card (there are: rtx-4090, rtx-5090)"),
        (("--on", "rtx-4090", "--vllm-arg=--tensor-parallel-size=2"), "needs 2 of them on one node"),
        (("--devices", "0"), "--devices with --cluster"),
        (("--launcher", "process", "--on", "rtx-4090", "--vllm-command", "no-such-vllm serve"), "no-such-vllm"),
        (("--launcher", "process", "--on", "rtx-4090", "--vllm-command", "env", "--model", "/no/model"), "/no/model"),
        (("--header-env", "X-Key=NO_SUCH_VARIABLE", "--on", "rtx-4090"), "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_what_cannot_go_well_is_one_line_before_anything_starts(
    cluster: RayCluster, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    done = run(*SWEEP, "--cluster", cluster.address, *words, *into(tmp_path / "r"))
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    done = run(*SWEEP, "--cluster", "127.0.0.1:1", *into(tmp_path / "r"))
    assert done.returncode == 2
    assert "--cluster 127.0.0.1:1: nothing answers there" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def newer_shard(cluster: RayCluster, than: float) -> bool:
    """Whether a shard process was started after this time."""
    return any(shard.create_time() > than for shard in cluster.shards())


def parent(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    assert parent is not None
    return parent

"""Sweeps over a real Ray cluster: the same points as on one machine, whatever is killed in between."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
from cluster_runs import SWEEP, after, completed, driver, into, parent, run, same_points
from sweep_runs import journal, record, wait_until

from conftest import RayCluster


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
    kept = record(folder / "run.json")["cluster"]
    assert kept == {"address": cluster.address, "on": "rtx-5090"}, "what the line that decides is made of"
    where = ("--cluster", kept["address"], "--on", kept["on"])
    done = run("sweep", "--resume", str(folder), *where, "--no-report")
    assert completed(done.returncode, done.stderr), done.stderr
    same_points(folder, single_host)


def newer_shard(cluster: RayCluster, than: float) -> bool:
    """Whether a shard process was started after this time."""
    return any(shard.create_time() > than for shard in cluster.shards())

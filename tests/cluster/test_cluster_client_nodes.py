"""Load from other nodes than the server's, over a real Ray cluster: a sweep's, and one server's from several nodes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_runs import SWEEP, after, command, completed, driver, into, raylet, run, same_points
from sweep_runs import free_port, journal, record, wait_until

from conftest import RayCluster


def test_a_sweeps_load_comes_from_another_node_and_a_lost_one_costs_the_cell(
    cluster: RayCluster, single_host: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    with driver(cluster, *SWEEP, "--client", "remote", *into(folder)) as process:
        after(1, folder, process)
        wait_until(lambda: cluster.ours("qwenbench.load.worker"), "no load runs", 60)
        worker, shard = cluster.ours("qwenbench.load.worker")[0], cluster.shards()[0]
        assert raylet(worker) != raylet(shard)
        assert len(cluster.actors()) >= 2, "a launch and its load; at the end of the test none is left"
        worker.parents()[0].kill()
        _, err = process.communicate(timeout=200)
    assert completed(process.returncode, err), err
    assert err.count("placed again") == 1 and "Traceback" not in err
    assert "the load comes from" in err
    same_points(folder, single_host)
    run_json = record(folder / "run.json")
    assert {one["config_id"] for one in run_json["clients"]} == {"cap16-seq16", "cap32-seq32"}
    assert all(one["clock_error_ms"] > 0 and one["connect_ms"] > 0 for one in run_json["clients"])
    argv = record(folder / "servers" / "cap16-seq16" / "launch.json")["argv"]
    assert argv[argv.index("--host") + 1] == cluster.address.rpartition(":")[0]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    port = free_port()
    words = ["serve", "ig1/Qwen3.5-9B-NVFP4", "--port", str(port), "--sim-time-scale", "0.5"]
    command = [sys.executable, "-m", "qwenbench.simulator", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "Application startup complete" in line)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.stdout.read()


BENCH = (
    "bench",
    "--scenario",
    "math",
    "--concurrency",
    "6,3",
    "--requests",
    "12",
    "--output-tokens",
    "40",
    "--no-report",
)


def test_several_nodes_load_one_server_together(cluster: RayCluster, server: str, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    words = ("--url", server, "--cluster", cluster.address, "--client-nodes", "3")
    done = run(*BENCH, *words, *into(folder))
    assert completed(done.returncode, done.stderr), done.stderr
    assert done.stderr.count(" ms ± ") == 3
    assert [line["point"]["requests_ok"] for line in journal(folder)] == [12, 12]
    assert len(record(folder / "run.json")["clients"]) == 3
    refused = run("bench", "--url", server, "--resume", str(folder), "--repeats", "2", "--no-report")
    assert refused.returncode == 2 and "--client-nodes" in refused.stderr
    grown = run("bench", *words[:4], "--resume", str(folder), "--repeats", "2", "--no-report")
    assert completed(grown.returncode, grown.stderr), grown.stderr
    assert len(journal(folder)) == 4


def test_a_client_node_that_dies_costs_the_point_and_another_goes_on(
    cluster: RayCluster, server: str, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    words = ("--url", server, "--cluster", cluster.address, "--client-nodes", "2", *into(folder))
    line = command(*BENCH, "--concurrency", "8,6,4,2", "--output-tokens", "100", "--order", "listed", *words)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        after(1, folder, process)
        next(one for one in cluster.actors() if one.cmdline()[0].startswith("ray::LoadNode")).kill()
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "its streams come from" in err
    assert len(journal(folder)) == 3, err
    assert len(record(folder / "run.json")["clients"]) == 3
    done = run("bench", *words[:6], "--resume", str(folder), "--no-report")
    assert completed(done.returncode, done.stderr), done.stderr
    assert len({one["cell"] for one in journal(folder)}) == len(journal(folder)) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--client-nodes", "9"), "--client-nodes 9: the cluster has 4"),
        (("--header-env", "X-Key=QWENBENCH_TEST_KEY"), "QWENBENCH_TEST_KEY is not set"),
    ],
)
def test_nodes_that_cannot_send_are_told_before_anything_is_sent(
    cluster: RayCluster, server: str, tmp_path: Path, words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWENBENCH_TEST_KEY", "here only")
    done = run(*BENCH, "--url", server, "--cluster", cluster.address, *words, *into(tmp_path / "r"))
    assert done.returncode == 2 and told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "r").exists()

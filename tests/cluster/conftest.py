"""A real Ray cluster on this machine: a head and three nodes whose cards are simulated, a custom resource each."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from cluster_runs import SWEEP, completed, into, run
from sweep_runs import STAMP

HEAD = {"num_cpus": 1, "include_dashboard": False}
KINDS = ("rtx-5090", "rtx-5090", "rtx-4090")


class RayCluster:
    """Started once; a test that kills a node puts another one in its place."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.stamp = os.environ[STAMP] = os.urandom(8).hex()  # every process of the nodes inherits it
        self._cluster = Cluster(initialize_head=True, head_node_args=HEAD)
        self.address = str(self._cluster.address)
        lonely = ("--cluster", self.address, "--client", "remote", "--run-id", "lonely")
        self.told_alone = run(*SWEEP, *lonely)
        """What a sweep says of a cluster of one node."""
        self._nodes: list[tuple[str, Any]] = [(kind, self._add(kind)) for kind in KINDS]
        self._cluster.wait_for_nodes()
        del os.environ[STAMP]

    def _add(self, kind: str) -> Any:
        return self._cluster.add_node(wait=False, num_cpus=2, resources={kind: 1})

    @contextlib.contextmanager
    def odd_nodes(self, nodes: Sequence[tuple[dict[str, str], Sequence[str]]]) -> Iterator[None]:
        """More nodes, started with other variables: what is on them is not what the others have."""
        before, odd = dict(os.environ), []
        for environment, kinds in nodes:
            os.environ.update(environment)
            try:
                odd.append(self._cluster.add_node(wait=False, num_cpus=1, resources=dict.fromkeys(kinds, 1)))
            finally:
                os.environ.clear()
                os.environ.update(before)
        self._cluster.wait_for_nodes()
        try:
            yield
        finally:
            for node in odd:
                self._cluster.remove_node(node, allow_graceful=False)
            self._cluster.wait_for_nodes()  # Ray lists them as alive for a while, and the next driver would ask them

    def replace_killed(self) -> None:
        """A new node for each whose raylet is gone."""
        os.environ[STAMP] = self.stamp
        for place, (kind, node) in enumerate(self._nodes):
            if node.all_processes["raylet"][0].process.poll() is not None:
                self._cluster.remove_node(node, allow_graceful=False)
                self._nodes[place] = (kind, self._add(kind))
        self._cluster.wait_for_nodes()
        del os.environ[STAMP]

    def shutdown(self) -> None:
        self._cluster.shutdown()

    def ours(self, module: str = "qwenbench.") -> list[psutil.Process]:
        """Processes that launches have started on the nodes, Ray's own left out."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if any(word.startswith(module) for word in line) and process.environ().get(STAMP) == self.stamp:
                    found.append(process)
        return found

    def actors(self) -> list[psutil.Process]:
        """Ray workers that are a launch's or a load's actor."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if not " ".join(process.cmdline()).startswith(("ray::Node", "ray::LoadNode")):
                    continue
                if process.parent().environ().get(STAMP) == self.stamp:  # its own are overwritten by its title
                    found.append(process)
        return found

    def shards(self) -> list[psutil.Process]:
        """The shard processes, each the child of a supervisor of a Ray worker of a raylet."""
        return [
            one for one in self.ours("qwenbench.cluster.shard") if "qwenbench.engine.supervisor" not in one.cmdline()
        ]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayCluster]:
    cluster = RayCluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()


@pytest.fixture
def cluster(ray_cluster: RayCluster) -> Iterator[RayCluster]:
    """The cluster, whole; at the end of a test nothing of a launch may run on it."""
    ray_cluster.replace_killed()
    yield ray_cluster
    deadline = time.monotonic() + 20
    while (left := [*ray_cluster.ours(), *ray_cluster.actors()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    told = [" ".join(one.cmdline())[:150] for one in left]
    for process in left:
        process.send_signal(signal.SIGKILL)
    assert not told


@pytest.fixture(scope="session")
def single_host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same plan on this machine alone."""
    folder = tmp_path_factory.mktemp("single") / "r"
    done = run(*SWEEP, *into(folder))
    assert completed(done.returncode, done.stderr), done.stderr
    return folder

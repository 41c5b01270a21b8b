"""What cannot go well on a cluster is one line before anything is started."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_runs import SWEEP, into, run

import qwenbench
from conftest import RayCluster


def refused(address: str, tmp_path: Path, *words: str) -> str:
    """The one line with which a sweep is refused; nothing was made."""
    done = run(*SWEEP, "--cluster", address, *words, *into(tmp_path / "r"))
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "r").exists()
    return done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--on", "h200"), "--on h200: no node of the cluster has such a card (there are: rtx-4090, rtx-5090)"),
        (("--on", "rtx-4090", "--vllm-arg=--tensor-parallel-size=2"), "needs 2 of them on one node"),
        (("--devices", "0"), "--devices with --cluster"),
        (("--launcher", "process", "--on", "rtx-4090", "--vllm-command", "no-such-vllm serve"), "no-such-vllm"),
        (("--header-env", "X-Key=NO_SUCH_VARIABLE", "--on", "rtx-4090"), "NO_SUCH_VARIABLE is not set"),
    ],
)
def test_what_cannot_go_well_is_one_line_before_anything_starts(
    cluster: RayCluster, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    assert told in refused(cluster.address, tmp_path, *words)


@pytest.fixture(scope="module")
def odd_nodes(ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A node without docker, one whose docker has no image and that alone has the model, one with another qwenbench."""
    folder = tmp_path_factory.mktemp("odd")
    bare, owner, other = folder / "bare", folder / "owner", folder / "other"
    bare.mkdir()
    (owner / "model").mkdir(parents=True)
    docker = owner / "docker"
    docker.write_text('#!/bin/sh\n[ "$1" = version ] && echo 28.0 && exit 0\necho "No such image" >&2; exit 1\n')
    docker.chmod(0o755)
    source = Path(qwenbench.__file__).parent
    shutil.copytree(source, other / "src" / "qwenbench", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "src" / "qwenbench" / "errors.py").open("a") as file:
        file.write("# of another commit\n")
    nodes = [
        ({"PATH": str(bare), "HOME": str(bare)}, ("no-docker", "both")),
        ({"PATH": str(owner), "HOME": str(owner)}, ("no-image", "both")),
        ({"PYTHONPATH": str(other / "src")}, ("unlike",)),
    ]
    with ray_cluster.odd_nodes(nodes):
        yield


@pytest.mark.usefixtures("odd_nodes")
def test_a_node_that_lacks_what_servers_need_is_named(ray_cluster: RayCluster, tmp_path: Path) -> None:
    docker = ("--launcher", "docker")
    for words, told in (
        ((*docker, "--on", "no-docker"), "docker: command not found"),
        ((*docker, "--on", "no-image", "--image", "some/image:v1"), "the image some/image:v1 is missing: docker pull"),
        (("--launcher", "process", "--vllm-command", sys.executable, "--model", "~/model", "--on", "both"), "~/model"),
        (("--on", "unlike"), "has qwenbench"),
    ):
        line = refused(ray_cluster.address, tmp_path, *words)
        assert "--cluster: node " in line and told in line, line


def test_a_load_from_another_node_needs_one(ray_cluster: RayCluster) -> None:
    done = ray_cluster.told_alone
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "--client remote: the cluster has one node only" in done.stderr


def test_an_address_that_does_not_answer(tmp_path: Path) -> None:
    assert "--cluster 127.0.0.1:1: nothing answers there" in refused("127.0.0.1:1", tmp_path)


def test_a_port_of_something_else_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code = (
            "from qwenbench.cluster import ray_fleet; ray_fleet._CONNECT_S = 2.0\n"
            f"ray_fleet.connect({address!r})"
        )  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "does not answer as Ray does. Is it the port of its head?" in done.stderr

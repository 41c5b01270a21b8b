"""Dockerfile.bench: the client as an image, beside a server container on one network."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import SERVER_IMAGE, docker, import_image

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client_image(folders: Path) -> str:
    """Built from Dockerfile.bench on a base image made here; its wheels come from a folder, not from an index."""
    if not (folders / "base").exists():
        pytest.skip("run by tests/docker/run.sh")
    import_image(folders / "base", "base:1", [], "ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels PATH=/usr/local/bin:/bin")
    words = ["docker", "build", "--quiet", "-f", "Dockerfile.bench", "-t", "qwenbench:test"]
    built = subprocess.run(
        [*words, "--build-arg", "BASE_IMAGE=base:1", "."],
        cwd=ROOT,
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return "qwenbench:test"


@pytest.fixture
def network() -> Iterator[str]:
    """A network of two containers."""
    docker("network", "create", "bench")
    yield "bench"
    docker("rm", "-f", "vllm", check=False)
    docker("network", "rm", "bench")


def test_the_image_runs_as_nobody_and_is_healthy_without_a_gpu(client_image: str) -> None:
    configuration = json.loads(docker("image", "inspect", client_image))[0]["Config"]
    assert configuration["User"] == "10001:10001"
    health = configuration["Healthcheck"]["Test"]
    assert health[0] == "CMD"
    said = docker("run", "--rm", "--entrypoint", health[1], client_image, *health[2:])
    assert said.startswith("qwenbench ")


def test_it_measures_a_server_container_by_name(client_image: str, network: str, tmp_path: Path) -> None:
    docker(
        "run",
        "-d",
        "--name",
        "vllm",
        "--network",
        network,
        SERVER_IMAGE,
        "ig1/Qwen3.5-9B-NVFP4",
        "--served-model-name",
        "m",
    )
    tmp_path.chmod(0o777)
    load = ["--scenario", "math", "--concurrency", "2", "--requests", "4", "--output-tokens", "8", "--run-id", "run"]
    client = ["docker", "run", "--rm", "--network", network, "-v", f"{tmp_path}:/data/results", client_image]
    done = subprocess.run(
        [*client, "bench", "--url", "http://vllm:8000", "--startup-timeout", "60", *load],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["requests_ok"] for row in rows] == ["4"]
    docker("rm", "-f", "vllm")

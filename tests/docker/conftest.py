"""Images and cleanliness for the tests on a real Docker engine. Run by tests/docker/run.sh."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qwenbench.engine.config import ServerConfig
from qwenbench.engine.deployments import find_deployment

SERVER_IMAGE = "vllm/vllm-openai:v0.18.0-cu130"
"""The name of vLLM's image; what is behind it here is the simulator (SIMULATED)."""
ENTRYPOINT = ["python3", "-m", "qwenbench.simulator", "serve", "--host", "0.0.0.0"]


def docker(*arguments: str, check: bool = True) -> str:
    """What a docker command says."""
    return subprocess.run(["docker", *arguments], check=check, capture_output=True, text=True).stdout


def import_image(folder: Path, name: str, entrypoint: list[str], *changes: str) -> None:
    """Makes an image out of a folder."""
    words = ["docker", "import", "--change", f"ENTRYPOINT {json.dumps(entrypoint)}"]
    for change in changes:
        words += ["--change", change]
    with subprocess.Popen(["tar", "-C", str(folder), "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run([*words, "-", name], check=True, stdin=tar.stdout, capture_output=True)


@pytest.fixture(scope="session")
def folders() -> Path:
    """Root file systems that run.sh has made."""
    given = os.environ.get("QWENBENCH_TEST_IMAGES")
    if not given:
        pytest.skip("run by tests/docker/run.sh")
    return Path(given)


@pytest.fixture(scope="session", autouse=True)
def server_image(folders: Path) -> str:
    """The stand-in for vLLM's image."""
    import_image(folders / "server", SERVER_IMAGE, ENTRYPOINT)
    return SERVER_IMAGE


@pytest.fixture(autouse=True)
def nothing_left(server_image: str) -> Iterator[None]:
    """After each test: no container, no network and no volume more than before."""
    before = _things()
    yield
    # a container that was told to go may take a moment longer than the test
    deadline = time.monotonic() + 5
    while _things() != before and time.monotonic() < deadline:
        time.sleep(0.1)
    left = _things() - before
    for name in docker("ps", "--all", "--quiet").split():
        docker("rm", "--force", "--volumes", name, check=False)
    assert not left


def _things() -> set[str]:
    containers = docker("ps", "--all", "--format", "container {{.Names}}")
    networks = docker("network", "ls", "--format", "network {{.Name}}")
    volumes = docker("volume", "ls", "--format", "volume {{.Name}}")
    return set((containers + networks + volumes).splitlines())


@pytest.fixture
def port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def deployment(port: int, tmp_path: Path) -> Callable[..., ServerConfig]:
    """A deployment on a free port with a cache of its own, and further arguments."""

    def make(name: str = "rtx5090-headless", *extra: str) -> ServerConfig:
        found = find_deployment(name)
        mount = found.docker.cache_mount if name.endswith("wsl") else f"{tmp_path}/cache:/root/.cache"
        return replace(found, port=port, extra_args=extra, docker=replace(found.docker, cache_mount=mount))

    return make

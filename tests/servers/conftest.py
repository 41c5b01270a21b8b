"""Real servers (bench/real_servers.py), and `qwenbench bench` against them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import habits as habit_bench
import real_servers
from real_servers import RealServer


@dataclass(frozen=True)
class Bench:
    """What `qwenbench bench` did."""

    status: int
    out: str
    points: list[dict[str, str]]


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """`qwenbench bench --url URL ...`, with its row(s) of points.csv."""

    def run(server: RealServer, *options: str, env: Mapping[str, str] = {}) -> Bench:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        words = [sys.executable, "-m", "qwenbench", "bench", "--url", server.url, "--model", server.model, *options]
        words += ["--no-report", "--out", str(folder.parent), "--run-id", folder.name]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **env})
        assert "Traceback" not in done.stderr, done.stderr
        table = folder / "points.csv"
        points = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
        return Bench(done.returncode, done.stdout + done.stderr, points)

    return run


@pytest.fixture(scope="session")
def llama() -> Iterator[RealServer]:
    with real_servers.llama_cpp() as server:
        yield server


@pytest.fixture(scope="session")
def simulator() -> Iterator[RealServer]:
    with real_servers.simulator() as server:
        yield server


@pytest.fixture(scope="session")
def litellm(simulator: RealServer) -> Iterator[RealServer]:
    with real_servers.litellm(simulator) as server:
        yield server


@pytest.fixture(scope="session")
def transformers() -> Iterator[RealServer]:
    try:
        with real_servers.transformers_serve() as server:
            yield server
    except FileNotFoundError as missing:  # PyTorch is installed by `make test-vllm` only
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def habits() -> Iterator[str]:
    """bench/habit_server.py."""
    with habit_bench.habit_server() as url:
        yield url

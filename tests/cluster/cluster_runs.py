"""Sweeps and benches over a real Ray cluster, as a user starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from sweep_runs import journal, requests_of, wait_until

if TYPE_CHECKING:
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
    assert process.poll() is None, process.communicate()[1]


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


def same_points(folder: Path, single_host: Path) -> None:
    """The run has the single host's cells, each once, and each sent what it sent there."""
    cells = [line["cell"] for line in journal(folder)]
    assert sorted(cells) == sorted(line["cell"] for line in journal(single_host))
    columns = ["request_id", "prompt_id", "requested_output_tokens", "input_tokens"]
    for cell in cells:
        assert requests_of(folder, cell).select(columns).equals(requests_of(single_host, cell).select(columns))


def parent(process: psutil.Process) -> psutil.Process:
    parent = process.parent()
    assert parent is not None
    return parent


def raylet(process: psutil.Process) -> int:
    """The pid of the raylet under which a process runs."""
    return next(one.pid for one in process.parents() if one.name() == "raylet")

"""Sweeps as a user starts them, against the simulator; shared by the tests of the sweep."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qwenbench.cli.main import dispatch
from qwenbench.engine.readiness import port_in_use
from qwenbench.processes import by_variable

STAMP = "QWENBENCH_TEST"
"""Every process of a test inherits this variable, so that whatever it leaves can be found."""
QUICK = ("--scenario", "math", "--requests", "4", "--output-tokens", "8-16", "--vllm-arg=--sim-time-scale=0.2")
"""Small load points on a simulated card that is five times as fast."""
_PORTS = itertools.count(20000 + os.getpid() * 40 % 12000)  # tests run in several processes at a time


def free_port(count: int = 1) -> int:
    """The first of `count` free ports in a row, for servers of these tests only."""
    for port in _PORTS:
        if not any(port_in_use("127.0.0.1", port + number) for number in range(count)):
            for _ in range(count - 1):
                next(_PORTS)
            return port
    raise AssertionError("no port")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def completed(self) -> bool:
        """Exit status 0; or 1 only because a busy machine made the client late (invalid points, as they must be)."""
        return self.status == 0 or (self.status == 1 and "the client came" in self.err and "FAILED" not in self.err)


def qwenbench(*arguments: str) -> Ended:
    """The command in this process (its imports are paid once)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = dispatch(list(arguments))
    return Ended(status, out.getvalue(), err.getvalue())


def sweep(folder: Path, *arguments: str, quick: bool = True) -> Ended:
    """A simulated sweep into `folder`, which does not exist yet."""
    target = ("--out", str(folder.parent), "--run-id", folder.name)
    port = () if "--port" in arguments else ("--port", str(free_port()))
    return qwenbench("sweep", "--launcher", "sim", *(QUICK if quick else ()), *port, *target, *arguments)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process with a group of its own; it and all it started are ended at the end."""
    stamp = os.urandom(8).hex()
    process = subprocess.Popen(
        [sys.executable, "-m", "qwenbench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, STAMP: stamp},
        start_new_session=True,
    )
    process.stamp = stamp  # type: ignore[attr-defined]  # travels with the process it belongs to
    try:
        yield process
    finally:
        for pid in by_variable(STAMP).get(stamp, []):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=20)


def relatives(process: subprocess.Popen[str]) -> list[int]:
    """What the command has started and what still runs, itself not included."""
    return [pid for pid in by_variable(STAMP).get(process.stamp, []) if pid != process.pid]  # type: ignore[attr-defined]


def wait_until(true: Callable[[], object], what: str, limit_s: float = 30.0) -> None:
    """Polls for something that happens outside of this process."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def points(folder: Path) -> list[dict[str, str]]:
    """points.csv's rows as text."""
    with (folder / "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def journal(folder: Path) -> list[dict[str, Any]]:
    """journal.jsonl's lines."""
    path = folder / "journal.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value


def requests_of(folder: Path, cell: str) -> pa.Table:
    """A cell's request records in the order of their ids."""
    return pq.read_table(folder / "requests" / f"{cell}.parquet").sort_by("request_id")


def metrics_of(folder: Path, config: str, cell: str) -> pa.Table:
    """A cell's /metrics samples."""
    return pq.read_table(folder / "servers" / config / "samples" / f"{cell}.metrics.parquet")

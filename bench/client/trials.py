"""What a trial of the client comparison is, and the truth server that trials run against."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("QWENBENCH_BENCH_CACHE", Path.home() / ".cache/qwenbench/bench-client"))


@dataclass(frozen=True)
class Shape:
    """What the truth server does with every request. Times in ms."""

    ttft: float = 50
    itl: float = 10
    tokens: int = 100
    per_chunk: int = 1
    reasoning: int = 0

    @property
    def chunks(self) -> int:
        return -(-self.tokens // self.per_chunk)

    @property
    def request_s(self) -> float:
        return (self.ttft + self.itl * (self.chunks - 1)) / 1000

    @property
    def name(self) -> str:
        text = f"{self.ttft:g}/{self.itl:g} ms, {self.tokens} tokens"
        if self.per_chunk > 1:
            text += f", {self.per_chunk} a chunk"
        if self.reasoning:
            text += f", first {self.reasoning} reasoning"
        return text


@dataclass(frozen=True)
class Seen:
    """What a client reported of one trial. Times in ms; `cpu_s` is the client's CPU time during the load."""

    ttft: Sequence[float]
    gaps: Sequence[float]
    ok: int
    failed: int
    tokens: int
    wall_s: float
    cpu_s: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


class TruthServer:
    """The built truth server, for one shape."""

    def __init__(self, shape: Shape, port: int) -> None:
        self.shape = shape
        self.port = port

    @contextlib.contextmanager
    def running(self) -> Iterator[TruthServer]:
        shape = self.shape
        numbers = (self.port, shape.ttft, shape.itl, shape.per_chunk, shape.reasoning)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                raise SystemExit(f"something listens on port {self.port} already; choose another with --port")
        process = subprocess.Popen([str(build_truth_server()), *map(str, numbers)])
        try:
            self._wait(process)
            yield self
        finally:
            process.terminate()
            process.wait()

    def stats(self) -> dict[str, Any]:
        """What the server itself did since the last call (microseconds)."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=20) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        for _ in range(200):
            if process.poll() is not None:
                raise SystemExit(f"the truth server ended at once; is port {self.port} taken?")
            with contextlib.suppress(OSError):
                self.stats()
                return
            time.sleep(0.05)
        raise SystemExit("the truth server does not answer")


def build_truth_server() -> Path:
    """Compile it once per source version."""
    source, built = HERE / "truth_server.rs", CACHE / "truth_server"
    if not built.exists() or built.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(parents=True, exist_ok=True)
        subprocess.run(["rustc", "-O", "-o", str(built), str(source)], check=True)
    return built


def trial_record(
    client: str, shape: Shape, concurrency: int, repeat: int, seen: Seen, server: dict[str, Any]
) -> dict[str, Any]:
    """One line of the data: what the client said next to what was true."""
    late = {key: value or {} for key, value in server.items()}
    ttft, gaps = np.asarray(seen.ttft, float), np.asarray(seen.gaps, float)
    first, gap = late["first"], late["gap"]
    true_mean = shape.ttft + first.get("mean", 0.0) / 1000
    true_p99 = shape.ttft + first.get("p99", 0.0) / 1000
    ideal = concurrency * shape.tokens / shape.request_s
    rate = seen.tokens / seen.wall_s if seen.wall_s else 0.0
    return {
        "client": client,
        "shape": shape.name,
        "concurrency": concurrency,
        "repeat": repeat,
        "ok": seen.ok,
        "failed": seen.failed,
        "ttft_mean": mean(ttft),
        "ttft_p99": p99(ttft),
        "ttft_true_mean": true_mean,
        "ttft_true_p99": true_p99,
        "ttft_error_mean": float(ttft.mean()) - true_mean if len(ttft) else None,
        "ttft_error_p99": float(np.percentile(ttft, 99)) - true_p99 if len(ttft) else None,
        "itl_mean": mean(gaps),
        "itl_p99": p99(gaps),
        "itl_std": float(gaps.std()) if len(gaps) else None,
        "itl_true_p99": gap.get("p99", 0.0) / 1000,
        "itl_true_std": gap.get("std", 0.0) / 1000,
        "gaps": len(gaps),
        "tokens_share": rate / ideal,
        "cpu_us_per_token": seen.cpu_s / seen.tokens * 1e6 if seen.cpu_s and seen.tokens else None,
        "server_late_mean": late["all"].get("mean", 0.0) / 1000,
        "server_late_p99": late["all"].get("p99", 0.0) / 1000,
        "load_average": os.getloadavg()[0],
        **seen.more,
    }


def mean(values: np.ndarray[Any, Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def p99(values: np.ndarray[Any, Any]) -> float | None:
    return float(np.percentile(values, 99)) if len(values) else None

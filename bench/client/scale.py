"""Many streams, with server and client on cores of their own: python bench/client/scale.py (3 minutes).

Needs an otherwise idle machine with two cores or more. The truth server has one half of them, the client the other.
Prints the table of docs/client-accuracy.md and rewrites that page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

import accuracy_page
import numpy as np
from clients import PROMPT
from trials import Shape, TruthServer

from qwenbench.load.run import LoadClient
from qwenbench.load.spec import ClosedLoop, LoadResult, LoadSpec, Target
from qwenbench.workload.sessions import SessionPlan, TurnPlan

RESULTS = accuracy_page.SCALE
LOADS = ((200, Shape(tokens=100)), (1000, Shape(200, 50, 40)), (4000, Shape(1000, 500, 12)))
ROUNDS = 2
"""Requests per stream."""


async def load(port: int, shape: Shape, streams: int, cpus: tuple[int, ...]) -> tuple[LoadResult, int]:
    """One load, and the largest memory of its client processes together in KiB."""
    sessions = [_session(number, shape) for number in range(ROUNDS * streams)]
    spec = LoadSpec(
        Target(f"http://127.0.0.1:{port}"), ClosedLoop(streams), sessions, timeout_s=120, processes=len(cpus), cpus=cpus
    )
    async with LoadClient() as client:
        result = await client.run(spec)
        return result, sum(_peak_kib(process.pid) for process in client._processes)


def _session(number: int, shape: Shape) -> SessionPlan:
    payload = {
        "model": "mock",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_completion_tokens": shape.tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return SessionPlan(f"s{number}", "bench", (TurnPlan(f"r{number}", 0, "p", "en", payload, shape.tokens),))


def _peak_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def trial(streams: int, shape: Shape, port: int, cores: list[int]) -> dict[str, Any]:
    """What the client said next to what was true; times in ms, memory in KiB a stream."""
    half = len(cores) // 2
    os.sched_setaffinity(0, set(cores[:half]))  # what the server inherits
    with TruthServer(shape, port).running() as server:
        os.sched_setaffinity(0, set(cores))
        result, memory = asyncio.run(load(port, shape, streams, tuple(cores[half:])))
        stats = server.stats()
    ok = result.requests.filter(result.requests["error"].is_null())
    ttft = ok["ttft_ms"].to_numpy()
    first = stats["first"]
    return {
        "streams": streams,
        "shape": shape.name,
        "ok": ok.num_rows,
        "failed": result.requests.num_rows - ok.num_rows,
        "ttft_error_mean": float(ttft.mean()) - shape.ttft - first["mean"] / 1000,
        "ttft_error_p99": float(np.percentile(ttft, 99)) - shape.ttft - first["p99"] / 1000,
        "server_late_mean": first["mean"] / 1000,
        "server_late_p99": first["p99"] / 1000,
        "cpu_us_per_token": result.health.cpu_us_per_token,
        "kib_per_stream": memory / streams,
    }


def main() -> None:
    """Run the loads and keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=21910)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cores = sorted(os.sched_getaffinity(0))
    about = {"when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cores": len(cores)}
    records = [{"about": "scale", **about, "machine": f"{platform.machine()}, Linux {platform.release()}"}]
    for repeat in range(options.repeats):
        for streams, shape in LOADS:
            record = {"repeat": repeat, **trial(streams, shape, options.port, cores)}
            print(json.dumps(record), flush=True)
            records.append(record)
    options.out.write_text("".join(json.dumps(one) + "\n" for one in records))
    print("\n".join(accuracy_page.scale_section(options.out)))
    if options.out == RESULTS:
        accuracy_page.write()


if __name__ == "__main__":
    main()

"""What the proxy adds: TTFT and ITL of 64 streams straight to a truth server and through the proxy, in turns.

    .venv/bin/python bench/proxy.py [--streams 64] [--itl-ms 10] [--seconds 5] [--rounds 3]

Truth server, proxy and client share this machine; each is a process of its own. Output lengths vary, so that
requests of different streams do not start in step, as they would not on a real server.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from qwenbench.load.run import LoadClient
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.load.truth.process import truth_server
from qwenbench.load.truth.timing import Timing
from qwenbench.workload.sessions import SessionPlan, TurnPlan

VIRTUAL_MODEL = "qwen3.5-instruct-general"
WORDS = "how do I plan a week of meals for four people with little time and a small kitchen".split()


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[tuple[str, int]]:
    """The proxy as a process of its own, on a free port; gives its base URL and process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "qwenbench", "proxy", "--target", target, "--served-model", "truth", "--port", "0",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        line = (await process.stderr.readline()).decode()
        found = re.search(r"http://[\d.]+:\d+", line)
        if found is None:
            raise SystemExit(f"the proxy did not start: {line}")
        yield found[0], process.pid
    finally:
        process.terminate()
        await process.wait()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far (/proc/PID/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sessions(model: str, count: int, name: str) -> list[SessionPlan]:
    """Single-turn sessions with a prompt of about 250 tokens and 40 to 160 tokens of output."""
    draw = random.Random(7)
    planned = []
    for number in range(count):
        tokens = draw.randint(40, 160)
        request_id = f"{name}-{number}"
        payload = {
            "model": model,
            "messages": [{"role": "user", "content": " ".join(draw.choices(WORDS, k=250))}],
            "max_completion_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "request_id": request_id,
        }
        turn = TurnPlan(request_id, 0, request_id, "en", payload, tokens)
        planned.append(SessionPlan(request_id, "proxy-bench", (turn,)))
    return planned


async def measure(
    client: LoadClient, url: str, model: str, streams: int, seconds: float, name: str
) -> dict[str, npt.NDArray[np.float64]]:
    """TTFT and ITL values in ms; the first request of every stream (they start together) is left out."""
    spec = LoadSpec(
        Target(url), ClosedLoop(streams), sessions(model, 200 * streams, name), timeout_s=60, duration_s=seconds
    )
    result = await client.run(spec)
    rows = result.requests.select(["error", "stream", "sent_ns", "ttft_ms", "itl_ms"]).to_pylist()
    failed = [row["error"] for row in rows if row["error"]]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(rows)} requests failed: {failed[0]}")
    first: dict[Any, Any] = {}
    for row in rows:
        first[row["stream"]] = min(first.get(row["stream"], row["sent_ns"]), row["sent_ns"])
    kept = [row for row in rows if row["sent_ns"] != first[row["stream"]]]
    return {
        "ttft": np.array([row["ttft_ms"] for row in kept]),
        "itl": np.concatenate([np.asarray(row["itl_ms"]) for row in kept]),
    }


async def main() -> None:
    """Measures in turns and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    values: dict[str, dict[str, list[npt.NDArray[np.float64]]]] = {}
    async with (
        truth_server(Timing(given.ttft_ms, given.itl_ms)) as truth,
        proxy(truth.base_url) as (proxied, pid),
        LoadClient() as client,
    ):
        for number in range(given.rounds):
            for way, url, model in (("direct", truth.base_url, "truth"), ("proxy", proxied, VIRTUAL_MODEL)):
                got = await measure(client, url, model, given.streams, given.seconds, f"{way}{number}")
                for metric, numbers in got.items():
                    values.setdefault(metric, {}).setdefault(way, []).append(numbers)
                await truth.take_served()
        used = cpu_seconds(pid)
    chunks = sum(map(len, values["itl"]["proxy"]))
    share = used / given.rounds / given.seconds
    print(f"proxy: {1e6 * used / chunks:.0f} us of CPU a chunk, {100 * share:.0f} % of a core (its start included)")
    print(f"{given.streams} streams, truth {given.ttft_ms:g} ms to the first token and {given.itl_ms:g} ms a token")
    print(f"{'ms':<8} {'':>8} {'requests':>9} {'mean':>8} {'p50':>8} {'p90':>8} {'p99':>8}")
    for metric, ways in values.items():
        for way, parts in ways.items():
            all_of = np.concatenate(parts)
            shares = np.percentile(all_of, [50, 90, 99])
            print(
                f"{metric:<8} {way:>8} {len(all_of):>9} {all_of.mean():>8.2f} " + " ".join(f"{s:>8.2f}" for s in shares)
            )
        added = [np.median(proxied) - np.median(direct) for direct, proxied in zip(*ways.values(), strict=True)]
        print(f"{metric:<8} {'added':>8} p50 per round: " + ", ".join(f"{one:.2f}" for one in added))


if __name__ == "__main__":
    uvloop.run(main())

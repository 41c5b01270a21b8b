"""The client comparison: `python bench/client/run.py` runs it and writes bench/client/results.jsonl.

Clients are interleaved (their order turns with each repeat) against one truth server, so that whatever else
the machine does meets all of them. `report.py` makes docs/client-accuracy.md from the data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from clients import CACHE, CLIENTS, HEAVY, prepare, versions
from trials import HERE, Shape, TruthServer, trial_record

RESULTS = HERE / "results.jsonl"


@dataclass(frozen=True)
class Block:
    """Trials of some clients on one shape of streams."""

    clients: tuple[str, ...]
    shape: Shape
    concurrency: tuple[int, ...]
    repeats: int


LIGHT = tuple(name for name in CLIENTS if name not in (*HEAVY, "qwenbench before"))
BEFORE = Block(("qwenbench", "qwenbench before"), Shape(), (50, 200, 400), 5)
"""Two checkouts, `--before`."""
BLOCKS = {
    "main": Block(LIGHT, Shape(), (1, 50, 200, 400), 5),
    "thousand": Block(LIGHT, Shape(), (1000,), 2),
    "heavy": Block(("qwenbench", *HEAVY), Shape(), (50, 200), 2),
    "slow": Block(("qwenbench", "vllm-rs", "vllm-rs warm"), Shape(ttft=200, itl=25, tokens=60), (50, 200), 2),
    "fast": Block(("qwenbench", "vllm-rs", "vllm-rs warm"), Shape(ttft=20, itl=5, tokens=150), (50, 100), 2),
    "chunks": Block(("qwenbench", "vllm-rs", "vllm-rs warm"), Shape(per_chunk=4), (50, 200), 2),
    "reasoning": Block(("qwenbench", "vllm-rs", "vllm-rs warm"), Shape(reasoning=40), (50, 200), 2),
}


def requests_for(concurrency: int) -> int:
    """Three requests per stream, two at 1,000 streams, at least eight."""
    return max(8, (3 if concurrency < 1000 else 2) * concurrency)


def run_block(name: str, block: Block, port: int, repeats: int | None, out: Path) -> None:
    """All trials of a block; a client that fails is recorded and the rest goes on."""
    for repeat in range(repeats or block.repeats):
        for concurrency in block.concurrency:
            turn = repeat % len(block.clients)
            for client in block.clients[turn:] + block.clients[:turn]:
                record = one_trial(client, block.shape, concurrency, repeat, port)
                record["block"] = name
                with out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(line(record), flush=True)


def one_trial(client: str, shape: Shape, concurrency: int, repeat: int, port: int) -> dict[str, object]:
    """One client, one load, a truth server of its own."""
    with TruthServer(shape, port).running() as server:
        try:
            seen = CLIENTS[client](port, shape, concurrency, requests_for(concurrency))
        except Exception as problem:  # whatever befalls a peer is a result
            reason = f"{type(problem).__name__}: {problem}"[:400]
            return {"client": client, "shape": shape.name, "concurrency": concurrency, "failure": reason}
        return trial_record(client, shape, concurrency, repeat, seen, server.stats())


def line(record: dict[str, object]) -> str:
    """A trial in one line."""
    head = f"{record['client']:13} {record['shape']} c={record['concurrency']:<5}"
    if "failure" in record:
        return f"{head} failed: {record['failure']}"
    numbers = (
        f"{key}={shown(record[key])}"
        for key in ("ttft_error_mean", "ttft_error_p99", "itl_p99", "itl_std", "tokens_share", "server_late_mean")
    )
    return f"{head} ok={record['ok']} {' '.join(numbers)}"


def shown(value: object) -> str:
    """A number to two places, `-` when the client does not tell."""
    return f"{value:.2f}" if isinstance(value, float) else "-"


def main() -> None:
    """Parse arguments, prepare the clients, run the blocks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", default=",".join(BLOCKS), help="comma-separated")
    parser.add_argument("--repeats", type=int, help="instead of each block's own number")
    parser.add_argument("--port", type=int, default=21900)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--before", help="compare with another checkout's client instead (its folder), in 4 minutes")
    parser.add_argument("--cpus", help="run clients and server on these cores only, e.g. 0,1")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the truth server is ended too
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    blocks = {name: BLOCKS[name] for name in options.blocks.split(",")}
    if options.before is not None:
        os.environ["QWENBENCH_BEFORE"] = options.before
        blocks, options.out = {"before": BEFORE}, CACHE / "before.jsonl"
    prepare(sorted({client for block in blocks.values() for client in block.clients}))
    options.out.unlink(missing_ok=True)
    about = {
        "about": "client comparison",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "command": " ".join(["python", "bench/client/run.py", *sys.argv[1:]]),
        "versions": versions(),
    }
    options.out.write_text(json.dumps(about) + "\n")
    for name, block in blocks.items():
        run_block(name, block, options.port, options.repeats, options.out)
    if options.before is not None:
        print(side_by_side(options.out))


def side_by_side(results: Path) -> str:
    """Medians over the repeats of each client and number of streams, as a table."""
    records = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    names = ("ttft_error_mean", "ttft_error_p99", "itl_p99", "itl_std", "tokens_share", "cpu_us_per_token", "failed")
    lines = [f"| streams | client | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for streams, client in sorted({(record["concurrency"], record["client"]) for record in records}):
        own = [one for one in records if (one["concurrency"], one["client"]) == (streams, client)]
        values = [[one[name] for one in own if one.get(name) is not None] for name in names]
        cells = [f"{median(found):.3f}" if found else "" for found in values]
        lines.append(f"| {streams} | {client} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

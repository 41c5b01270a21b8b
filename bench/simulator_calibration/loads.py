"""Recorded loads, from the recorder's own files or from run folders, as one plain form."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from qwenbench.simulator.replay import Planned, Replayed

PROMPT_OVERHEAD = 10
"""Tokens that the chat template adds (recorded: 522 for 512 words)."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The recorded server's configuration, as far as the scheduler is bound by it."""

    name: str
    capture: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Load:
    """One closed loop against one server; requests ordered by start, times in seconds from the first."""

    server: ServerFacts
    label: str
    concurrency: int
    requests: list[Replayed]
    streams: list[list[Planned]] | None = None
    """What each stream sent, where the record says; None: all drew from one queue."""
    preemptions: int | None = None

    @property
    def name(self) -> str:
        """Server and load, for tables."""
        return f"{self.server.name} {self.label}"


def read_recorded(folder: Path) -> list[Load]:
    """Loads of a recorder's folder: results.json, NAME.log and NAME.cC.requests.json[.gz]."""
    loads = []
    for run in json.loads((folder / "results.json").read_text(encoding="utf-8")):
        if not run.get("loads"):
            continue
        server = _server(folder, run["name"], run["args"])
        for load in run["loads"]:
            loads.append(_recorded_load(folder, server, load))
    return loads


def _recorded_load(folder: Path, server: ServerFacts, load: dict[str, int]) -> Load:
    concurrency, prompt, output = load["c"], load["prompt_tokens"], load["n_out"]
    path = folder / f"{server.name}.c{concurrency}.requests.json"
    if path.exists():
        rows = json.loads(path.read_text(encoding="utf-8"))
    else:
        rows = json.loads(gzip.decompress(path.with_suffix(".json.gz").read_bytes()))
    requests = []
    for row in sorted(rows, key=lambda row: row["start"]):
        times = [row["start"] + at for at, token in row["chunks"] if token]
        requests.append(Replayed(row["start"], Planned(prompt, output), times))
    return Load(server, f"c={concurrency} {prompt}+{output}", concurrency, requests)


def _server(folder: Path, name: str, args: list[str]) -> ServerFacts:
    flags = dict(zip(args[::2], args[1::2], strict=False))
    metrics = (folder / f"{name}.metrics1.txt").read_text(encoding="utf-8")
    blocks = re.search(r'num_gpu_blocks="(\d+)"', metrics)
    if blocks is None:
        raise SystemExit(f"{folder}/{name}.metrics1.txt: no num_gpu_blocks, so its KV cache is not known")
    return ServerFacts(
        name,
        int(flags["--max-cudagraph-capture-size"]),
        int(flags["--max-num-seqs"]),
        int(flags["--max-num-batched-tokens"]),
        int(blocks[1]),
    )


def read_run_folder(run: Path) -> list[Load]:
    """Closed-loop loads of a measured run folder that still has its request records; [] for a simulated one."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    points = run / "points.csv"
    if facts.get("simulated") or not points.exists():
        return []
    with points.open(encoding="utf-8", newline="") as lines:
        servers = {row["config_id"]: _server_of(run, row) for row in csv.DictReader(lines) if row["kv_cache_blocks"]}
    loads = []
    for path in sorted((run / "requests").glob("*.parquet")):
        config = next((name for name in servers if path.stem.startswith(f"{name}.")), None)
        if config is not None:
            loads += _run_load(path, servers[config], path.stem.removeprefix(f"{config}."))
    return loads


def _server_of(run: Path, row: dict[str, str]) -> ServerFacts:
    return ServerFacts(
        f"{run.name}/{row['config_id']}",
        int(row["capture"]),
        int(row["max_num_seqs"]),
        int(row.get("vary_max_num_batched_tokens") or 2048),
        int(float(row["kv_cache_blocks"])),
    )


_COLUMNS = [
    *("sent_ns", "process", "stream", "input_tokens", "output_tokens", "ttft_ms", "decode_ms", "e2e_ms"),
    *("itl_ms", "gaps_merged", "error"),
]


def _run_load(path: Path, server: ServerFacts, label: str) -> list[Load]:
    """The load of one cell's request records; [] when none of its requests succeeded."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=_COLUMNS).to_pylist()
    good = [row for row in rows if row["error"] is None and row["decode_ms"] is not None]
    good.sort(key=lambda row: row["sent_ns"])
    requests: list[Replayed] = []
    streams: dict[tuple[int, int], list[Planned]] = defaultdict(list)
    last_end: dict[tuple[int, int], float] = {}
    for row in good:
        start = (row["sent_ns"] - good[0]["sent_ns"]) / 1e9
        key = (row["process"] or 0, row["stream"])
        think = max(start - last_end.get(key, start), 0.0)
        planned = Planned(row["input_tokens"], row["output_tokens"], think)
        last_end[key] = start + row["e2e_ms"] / 1e3
        requests.append(Replayed(start, planned, _token_times(start + row["ttft_ms"] / 1e3, row)))
        streams[key].append(planned)
    return [Load(server, label, len(streams), requests, list(streams.values()))] if requests else []


def _token_times(first: float, row: dict[str, Any]) -> list[float]:
    """When each chunk came. Gaps that a merged read hid are taken as equal and put at the end."""
    gaps = [float(gap) for gap in row["itl_ms"]]
    if row["gaps_merged"]:
        hidden = max(row["decode_ms"] - sum(gaps), 0.0) / row["gaps_merged"]
        gaps += [hidden] * row["gaps_merged"]
    times = [first]
    for gap in gaps:
        times.append(times[-1] + gap / 1e3)
    return times

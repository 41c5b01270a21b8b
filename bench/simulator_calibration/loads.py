"""Recorded loads, from the recorder's own files or from run folders, as one plain form."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenbench.simulator.memory import BLOCK_BYTES, GIB
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
    log = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    found = re.search(r"Available KV cache memory: ([\d.]+) GiB", log)
    metrics = (folder / f"{name}.metrics1.txt").read_text(encoding="utf-8")
    blocks = re.search(r'num_gpu_blocks="(\d+)"', metrics)
    if blocks is None:
        assert found is not None, f"{name}: neither blocks nor KV size recorded"
    number = int(blocks[1]) if blocks else int(float(found[1]) * GIB // BLOCK_BYTES)
    return ServerFacts(
        name,
        int(flags["--max-cudagraph-capture-size"]),
        int(flags["--max-num-seqs"]),
        int(flags["--max-num-batched-tokens"]),
        number,
    )


def read_run_folder(run: Path) -> list[Load]:
    """Closed-loop loads of a measured run folder that still has its request records; [] for a simulated one."""
    import pandas as pd

    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    points = run / "points.csv"
    if facts.get("simulated") or not points.exists():
        return []
    table = pd.read_csv(points)
    loads = []
    for path in sorted((run / "requests").glob("*.parquet")):
        load = _run_load(run, path, table, pd.read_parquet(path))
        if load is not None:
            loads.append(load)
    return loads


def _token_times(first: float, item: Any) -> list[float]:
    """When each chunk came. Gaps that a merged read hid are taken as equal and put at the end."""
    gaps = [float(gap) for gap in item.itl_ms]
    if item.gaps_merged:
        hidden = max(item.decode_ms - sum(gaps), 0.0) / item.gaps_merged
        gaps += [hidden] * int(item.gaps_merged)
    times = [first]
    for gap in gaps:
        times.append(times[-1] + gap / 1e3)
    return times


def _run_load(run: Path, path: Path, points: object, rows: object) -> Load | None:
    import pandas as pd

    assert isinstance(points, pd.DataFrame) and isinstance(rows, pd.DataFrame)
    config = next((name for name in points["config_id"].unique() if path.stem.startswith(str(name))), None)
    if config is None:
        return None
    row = points[points["config_id"] == config].iloc[0]
    good = rows[rows["error"].isna() & rows["decode_ms"].notna()].sort_values("sent_ns")
    if good.empty or pd.isna(row["kv_cache_blocks"]):
        return None
    origin = int(good["sent_ns"].min())
    requests, streams = [], defaultdict(list)
    last_end: dict[tuple[int, int], float] = {}
    for item in good.itertuples():
        start = (item.sent_ns - origin) / 1e9
        key = (int(item.process or 0), int(item.stream))
        think = max(start - last_end.get(key, start), 0.0)
        planned = Planned(int(item.input_tokens), int(item.output_tokens), think)
        times = _token_times(start + item.ttft_ms / 1e3, item)
        last_end[key] = start + item.e2e_ms / 1e3
        requests.append(Replayed(start, planned, times))
        streams[key].append(planned)
    batched = row.get("vary_max_num_batched_tokens")
    server = ServerFacts(
        f"{run.name}/{config}",
        int(row["capture"]),
        int(row["max_num_seqs"]),
        2048 if batched is None or pd.isna(batched) else int(batched),
        int(row["kv_cache_blocks"]),
    )
    return Load(
        server, path.stem.removeprefix(str(config)).strip("-_."), len(streams), requests, list(streams.values())
    )

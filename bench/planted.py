"""Made-up request records and run folders for benchmarks. Nothing of it was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qwenbench.analysis.point import PointContext, summarise_point
from qwenbench.analysis.run import points_csv
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.runfolder.cells import Cell, LoadPoint

BASE_NS = 1_790_000_000_000_000_000


def request_table(count: int, streams: int, seed: int, *, gaps: int = 64, slower: float = 1.0) -> pa.Table:
    """Requests of a closed loop at so many streams, with `gaps` + 1 output tokens each."""
    rng = np.random.default_rng(seed)
    itl = (slower * rng.gamma(20, 0.5, (count, gaps))).astype(np.float32)
    ttft = slower * rng.gamma(10, 5, count)
    decode = itl.sum(axis=1, dtype=np.float64)
    e2e = ttft + decode
    turns = -(-count // streams)
    padded = np.zeros(turns * streams)
    padded[:count] = e2e + 0.2
    start = (np.cumsum(padded.reshape(turns, streams), axis=0) - padded.reshape(turns, streams)).ravel()[:count]
    sent = BASE_NS + (start * 1e6).astype(np.int64)
    columns = {
        "request_id": pa.array([f"r{number}" for number in range(count)]),
        "session_id": pa.array([f"s{number}" for number in range(count)]),
        "scenario": pa.array(["math"] * count),
        "sent_ns": pa.array(sent),
        "ended_ns": pa.array(sent + (e2e * 1e6).astype(np.int64)),
        "ttft_ms": pa.array(ttft),
        "ttfo_ms": pa.array(ttft),
        "e2e_ms": pa.array(e2e),
        "decode_ms": pa.array(decode),
        "input_tokens": pa.array(rng.integers(50, 500, count), pa.int32()),
        "output_tokens": pa.array(np.full(count, gaps + 1), pa.int32()),
        "gaps_merged": pa.array(np.zeros(count), pa.int32()),
        "itl_ms": pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * gaps, pa.int32()), pa.array(itl.ravel())),
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in REQUEST_SCHEMA]
    return pa.table(arrays, schema=REQUEST_SCHEMA)


def context_of(config_id: str, streams: int, repeat: int = 1, **fields: Any) -> PointContext:
    """What a made-up point is of."""
    point = LoadPoint("math", "instruct-general", streams, None, repeat)
    return PointContext(Cell(config_id, 1, point), Configuration(config_id, ServerConfig(), {}, None), **fields)


def plant_run(folder: Path, *, load_points: int, repeats: int, requests: int, seed: int, slower: float = 1.0) -> None:
    """A run's folder with `load_points` x `repeats` cells of so many requests each."""
    (folder / "requests").mkdir(parents=True)
    rows = []
    for number in range(load_points):
        config, level = f"cap{number // 10}", number % 10 + 1
        for repeat in range(1, repeats + 1):
            context = context_of(config, 8 * level, repeat)
            table = request_table(requests, 8 * level, hash((seed, number, repeat)) % 2**32, slower=slower)
            row = summarise_point(table, None, None, context)
            rows.append(row)
            pq.write_table(table, folder / "requests" / f"{Cell.of_row(row).cell_id}.parquet", compression="zstd")
    (folder / "points.csv").write_bytes(points_csv(rows, []))
    meta = {"schema_version": 1, "run_id": folder.name, "simulated": True, "scenarios": {}, "options": {}}
    (folder / "run.json").write_text(json.dumps(meta))

"""How often compare calls "worse" what is not, and how often it finds a planted slowdown.

    .venv/bin/python bench/verdicts.py [--comparisons 200] [--slower 1.05]

Runs are made up, request by request: output lengths, TTFT and step times are drawn from skewed distributions,
launches drift by half a per cent, and every run has a seed of its own. Three repeats of four load points each.
Prints one JSON object. docs/statistics.md quotes it.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import pyarrow as pa

from planted import BASE_NS, context_of
from qwenbench.analysis.changes import relative_changes, shown_by
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.point import summarise_point
from qwenbench.analysis.run import point_frame
from qwenbench.analysis.statistics import KEYS, RepeatTable, repeat_table
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.runfolder.cells import Cell

REPEATS = 3
LOADS = ((8, 64), (32, 192))
"""(streams, requests) of the load points, for two configurations each."""


def main() -> None:
    """Compares pairs of runs: both alike, then the second one slower."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--slower", type=float, default=1.05)
    options = parser.parse_args()
    alike = with_a_worse_row = 0
    found: list[float] = []
    rates: list[float] = []
    for number in range(options.comparisons):
        before = planted_run(3 * number)
        with_a_worse_row += bool(worse(before, planted_run(3 * number + 1)).any())
        alike += 1
        if number % 10 == 0:
            slower = worse(before, planted_run(3 * number + 2, options.slower))
            found.append(float(slower[:, KEYS.index("tpot_mean")].mean()))
            rates.append(float(slower[:, KEYS.index("output_tokens_per_s")].mean()))
    print(
        json.dumps(
            {
                "comparisons_of_runs_that_differ_in_seed_only": alike,
                "with_any_worse_row": with_a_worse_row,
                "comparisons_with_a_slowdown": len(found),
                "slowdown": options.slower,
                "load_points_whose_tpot_mean_is_called_worse": round(float(np.mean(found)), 3),
                "load_points_whose_output_tokens_per_s_is_called_worse": round(float(np.mean(rates)), 3),
            }
        )
    )


def worse(before: RepeatTable, after: RepeatTable) -> np.ndarray:
    """Which rows (load points x KEYS) compare would call worse."""
    changes = relative_changes(before.n, before.value, before.se, after.n, after.value, after.se)
    higher_is_better = np.array([METRICS[key].better == "higher" for key in KEYS])
    return np.asarray(shown_by(changes.p) & ((changes.change < 0) == higher_is_better) & (changes.change != 0))


def planted_run(seed: int, slower: float = 1.0) -> RepeatTable:
    """The figures of one run."""
    rng = np.random.default_rng(seed)
    rows, tables = [], {}
    for config in ("cap16", "cap64"):
        for streams, count in LOADS:
            for repeat in range(1, REPEATS + 1):
                records = requests(rng, count, streams, slower * rng.normal(1, 0.005))
                context = context_of(config, streams, repeat, slo={"ttft": 80.0})
                row = summarise_point(records, None, None, context)
                rows.append(row)
                tables[Cell.of_row(row).cell_id] = records
    return repeat_table(point_frame(rows), tables.get)


def requests(rng: np.random.Generator, count: int, streams: int, slower: float) -> pa.Table:
    """A closed loop in which each stream takes the next request when it is free."""
    tokens = rng.integers(24, 256, count)
    ttft = slower * rng.gamma(6, 10, count)
    step = slower * rng.gamma(400, 0.025, count)
    decode = step * (tokens - 1)
    free, start = np.zeros(streams), np.zeros(count)
    for number in range(count):
        stream = int(np.argmin(free))
        start[number] = free[stream]
        free[stream] += ttft[number] + decode[number] + 0.2
    sent = BASE_NS + (start * 1e6).astype(np.int64)
    gaps = np.concatenate([rng.gamma(20, value / 20, n - 1) for value, n in zip(step, tokens, strict=True)])
    columns = {
        "session_id": pa.array([f"s{number}" for number in range(count)]),
        "sent_ns": pa.array(sent),
        "ended_ns": pa.array(sent + ((ttft + decode) * 1e6).astype(np.int64)),
        "ttft_ms": pa.array(ttft),
        "ttfo_ms": pa.array(ttft),
        "e2e_ms": pa.array(ttft + decode),
        "decode_ms": pa.array(decode),
        "input_tokens": pa.array(rng.integers(50, 500, count), pa.int32()),
        "output_tokens": pa.array(tokens, pa.int32()),
        "gaps_merged": pa.array(np.zeros(count), pa.int32()),
        "itl_ms": pa.ListArray.from_arrays(
            pa.array(np.r_[0, np.cumsum(tokens - 1)], pa.int32()), pa.array(gaps.astype(np.float32))
        ),
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in REQUEST_SCHEMA]
    return pa.table(arrays, schema=REQUEST_SCHEMA)


if __name__ == "__main__":
    main()

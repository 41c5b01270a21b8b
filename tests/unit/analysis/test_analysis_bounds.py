"""What bounds a point, on recorded servers.

The H200 recordings hold /metrics only before and after the loads, so running, waiting and KV usage are derived here
from the recorded request times: requests are admitted in the order of their start while a place (max-num-seqs) and
blocks (by capacity.kv) are free, and hold their place until their recorded end. The CPU recording holds real gauges.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.analysis.bounds import BOUNDS, NOT_KNOWN, TimeShares, bounds, settle_load
from qwenbench.capacity.kv import kv_layout
from qwenbench.capacity.model_shape import SEED_SHAPE
from qwenbench.observe.metrics import METRICS_SCHEMA

DATA = Path(__file__).parents[2] / "data" / "memory"
LAYOUT = kv_layout(SEED_SHAPE)


def table(rows: list[dict[str, float]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"t_ns": index * 500_000_000, **row} for index, row in enumerate(rows)], METRICS_SCHEMA
    )


def derived(name: str, max_num_seqs: int, blocks: int) -> list[dict[str, float]]:
    """Gauges every 0.5 s while all streams were busy (the drain left out)."""
    rows = json.loads(gzip.decompress((DATA / f"h200-vllm-0.20.2/{name}.timings.json.gz").read_bytes()))
    streams = int(name.rpartition(".c")[2])
    ends = sorted(start + end for start, _, _, end, _, _ in rows)
    samples = []
    time_s = 0.5
    while time_s < ends[-streams]:
        held = [row for row in rows if row[0] <= time_s < row[0] + row[3]]
        samples.append(_state(sorted(held), time_s, max_num_seqs, blocks - 1))
        time_s += 0.5
    return samples


def _state(held: list[list[float]], now: float, places: int, usable: int) -> dict[str, float]:
    # Those that had their first token run for certain; of the others the oldest fill what is free.
    decoding = [row for row in held if row[0] + row[1] <= now]
    used = sum(_blocks(row, now) for row in decoding)
    running = len(decoding)
    for row in held:
        if row in decoding:
            continue
        need = LAYOUT.blocks_per_request(int(row[4]))
        if running >= places or used + need > usable:
            break
        running, used = running + 1, used + need
    return {"running": float(running), "waiting": float(len(held) - running), "kv_cache_usage": used / usable}


def _blocks(row: list[float], now: float) -> int:
    start, first, last, _, prompt, output = row
    made = 1 + (output - 1) * min(1.0, (now - start - first) / max(1e-9, last - first))
    return LAYOUT.blocks_per_request(int(prompt + made))


def test_capture_64_at_128_streams_is_graph_miss() -> None:
    samples = derived("cap64-seq256.c128", 256, 1072)
    bound = bounds(
        table(samples), max_num_seqs=256, capture_effective_full=64, max_num_batched_tokens=2048,
        client_saturated=False,
    )  # fmt: skip
    assert bound.first == "graph-miss"
    assert bound.all == ("graph-miss",)
    assert "more than 64 running in 100%" in bound.evidence["graph-miss"]
    captured = bounds(
        table(samples), max_num_seqs=256, capture_effective_full=128, max_num_batched_tokens=2048,
        client_saturated=False,
    )  # fmt: skip
    assert captured.first is None and "128 of 256 places" in captured.evidence["load"]


def test_16_seqs_at_64_streams_is_scheduler() -> None:
    samples = derived("cap16-seq16.c64", 16, 1074)
    assert max(sample["running"] for sample in samples) == 16
    bound = bounds(
        table(samples), max_num_seqs=16, capture_effective_full=16, max_num_batched_tokens=2048,
        client_saturated=False,
    )  # fmt: skip
    assert bound.first == "scheduler"
    assert bound.all == ("scheduler",)


def test_256_streams_are_kv_first_and_graph_miss_too() -> None:
    samples = derived("cap64-seq256.c256", 256, 1072)
    # The log's own figures of that load are 208 and 209 running; this derivation fills every last block.
    steady = sorted(sample["running"] for sample in samples[len(samples) // 2 :])
    assert abs(steady[len(steady) // 2] / 208 - 1) < 0.07
    assert any(sample["waiting"] >= 35 for sample in samples)
    bound = bounds(
        table(samples), max_num_seqs=256, capture_effective_full=64, max_num_batched_tokens=2048,
        client_saturated=False,
    )  # fmt: skip
    assert bound.first == "kv"
    assert bound.all == ("kv", "graph-miss")
    # The engine's own log lines during that load.
    logged = [
        {"running": 208.0, "waiting": 48.0, "kv_cache_usage": 0.947},
        {"running": 209.0, "waiting": 47.0, "kv_cache_usage": 0.951},
    ]
    real = bounds(
        table(logged), max_num_seqs=256, capture_effective_full=64, max_num_batched_tokens=2048,
        client_saturated=False,
    )  # fmt: skip
    assert real.all == ("kv", "graph-miss")
    # The counters before and after the loads: 10 preemptions, which by themselves say kv.
    counted = bounds(
        table([{"preemptions_total": 0.0}, {"preemptions_total": 10.0}]), max_num_seqs=256,
        capture_effective_full=64, max_num_batched_tokens=2048, client_saturated=False,
    )  # fmt: skip
    assert (counted.first, counted.evidence["kv"]) == ("kv", "10 preemptions")


def test_64_streams_in_64_captured_graphs_leave_room() -> None:
    samples = derived("cap64-seq256.c64", 256, 1072)
    bound = bounds(
        table(samples), max_num_seqs=256, capture_effective_full=64, max_num_batched_tokens=2048,
        client_saturated=False,
    )  # fmt: skip
    assert bound.first is None and "64 of 256 places" in bound.evidence["load"]


@pytest.mark.parametrize("version", ["0.28.0", "0.32.0"])
def test_real_gauges_of_the_preempting_cpu_server(version: str) -> None:
    text = gzip.decompress((DATA / f"cpu-vllm-{version}/qwen3-preempting.poll.txt.gz").read_bytes()).decode()
    names = {
        "num_requests_running": "running",
        "num_requests_waiting": "waiting",
        "kv_cache_usage_perc": "kv_cache_usage",
        "num_preemptions_total": "preemptions_total",
    }
    rows = []
    for line in text.splitlines():
        values = dict(re.findall(r"vllm:(\w+) ([\d.]+)", line))
        rows.append({column: float(values[name]) for name, column in names.items()})
    busy = [row for row in rows if row["running"]]
    bound = bounds(
        table(busy), max_num_seqs=6, capture_effective_full=None, max_num_batched_tokens=2048, client_saturated=False
    )
    assert bound.first == "kv"
    assert "preemptions" in bound.evidence["kv"]
    # A CPU has no graphs: not checked, rather than missed.
    assert "graph-miss" not in bound.evidence


def test_thresholds() -> None:
    def first(rows: Any, **limits: Any) -> Any:
        known = {"max_num_seqs": 8, "capture_effective_full": 8, "max_num_batched_tokens": 1000}
        return bounds(table(rows), client_saturated=False, **{**known, **limits})

    full = {"running": 8.0, "waiting": 1.0, "kv_cache_usage": 0.5}
    free = {"running": 7.0, "waiting": 0.0, "kv_cache_usage": 0.5}
    assert first([full, free]).first == "scheduler"
    assert first([full, free, free]).first == "decode"
    # whether more clients would gain cannot be seen in one point
    for rows in ([free, free], [{**free, "kv_cache_usage": 0.96}]):  # nobody waits
        found = first(rows)
        assert (found.first, found.all) == (None, ()) and "nothing is full" in found.evidence["load"]
    assert first([{**full, "kv_cache_usage": 0.95}]).all == ("kv", "scheduler")
    assert first([free], capture_effective_full=6).first == "graph-miss"
    assert first([free], capture_effective_full=0).first == "graph-miss"
    steps = [
        {**free, "iteration_tokens_count": 0.0, "prompt_tokens_total": 0.0, "prefix_hits_total": 0.0},
        {**free, "iteration_tokens_count": 10.0, "prompt_tokens_total": 5000.0, "prefix_hits_total": 0.0},
    ]
    assert first(steps).all == ("prefill",)
    assert first([steps[0], {**steps[1], "prefix_hits_total": 1.0}]).first is None
    saturated = bounds(
        table([full]), max_num_seqs=8, capture_effective_full=8, max_num_batched_tokens=None, client_saturated=True
    )
    assert saturated.all == ("client", "scheduler")


def test_without_gauges_nothing_is_claimed() -> None:
    bound = bounds(
        table([]), max_num_seqs=8, capture_effective_full=8, max_num_batched_tokens=8, client_saturated=False
    )
    assert (bound.first, bound.all, bound.evidence) == (None, (), {})
    unknown = bounds(
        table([{"running": 9.0, "waiting": 3.0}]), max_num_seqs=None, capture_effective_full=None,
        max_num_batched_tokens=None, client_saturated=False,
    )  # fmt: skip
    # a server that was already there: as many places as ran all the time
    assert unknown.all == ("scheduler",) and "the 9 places" in unknown.evidence["scheduler"]


def test_a_queue_is_seen_whatever_the_gauges_of_one_sample_say() -> None:
    """4 sequences, 16 streams, waiting 12 at the peak was told as decode; on a slower machine gauges lag."""
    lagging = [{"running": 2.0, "waiting": 0.0}, {"running": 1.0, "waiting": 2.0}, {"running": 2.0, "waiting": 0.0},
               {"running": 1.0, "waiting": 2.0}]  # fmt: skip
    known: dict[str, Any] = {"capture_effective_full": None, "max_num_batched_tokens": None, "client_saturated": False}
    assert bounds(table(lagging), max_num_seqs=2, **known).first == "scheduler"
    # as recorded on an H200 at 128 streams: one or two places are always changing hands
    recorded = [{"running": float(n), "waiting": 64.0} for n in (62, 63, 63, 64, 62, 63, 63, 62)]
    assert bounds(table(recorded), max_num_seqs=64, **known).all == ("scheduler",)
    # the server's own clock: no sample saw anyone wait
    quick = [{"running": 2.0, "waiting": 0.0}] * 3
    waited = TimeShares(decode=0.6, stalls=0.0, first_token=0.1, queue=0.3)
    assert bounds(table(quick), max_num_seqs=2, **known, shares=waited).first == "scheduler"
    assert bounds(table(quick), max_num_seqs=2, **known, shares=replace(waited, queue=0.01)).first == "decode"
    # places and blocks are free: the step's budget is what they wait for
    free = [{"running": 2.0, "waiting": 1.0, "kv_cache_usage": 0.2}] * 4
    assert bounds(table(free), max_num_seqs=8, **known).first == "prefill"


def test_stalls_that_hold_the_largest_share_are_prefill() -> None:
    rows = table([{"running": 4.0, "waiting": 0.0}] * 4)
    known: dict[str, Any] = {
        "max_num_seqs": 8,
        "capture_effective_full": 8,
        "max_num_batched_tokens": None,
        "client_saturated": False,
    }
    stalled = bounds(rows, **known, shares=TimeShares(0.3, 0.6, 0.1, None))
    assert stalled.first == "prefill" and "60% of the requests' time went into stalls" in stalled.evidence["prefill"]
    told = stalled.told(TimeShares(0.3, 0.6, 0.1, 0.0))
    assert told.endswith("time: decode 30%, prefill of others 60%, own prefill 10%, queue 0%")
    assert bounds(rows, **known, shares=TimeShares(0.5, 0.4, 0.1, None)).first is None


def test_a_drafters_rows_count_against_the_graphs() -> None:
    rows = table([{"running": 20.0, "waiting": 0.0}] * 4)
    known: dict[str, Any] = {"max_num_seqs": 64, "capture_effective_full": 64, "max_num_batched_tokens": None,
             "client_saturated": False}  # fmt: skip
    assert bounds(rows, **known).first is None
    assert bounds(rows, **known, drafted=3).first == "graph-miss"  # 80 rows


def test_only_a_higher_measured_load_tells_whether_more_would_gain() -> None:
    told = f"{NOT_KNOWN}: at most 8 of 64 places were running, and nothing is full"

    def point(concurrency: int, rate: float, bound: str | None = None, **other: object) -> dict[str, object]:
        return {"config_id": "a", "scenario": "math", "profile": "p", "load_shape": "closed", "launch": 1, "rate": None,
                "concurrency": concurrency, "output_tokens_per_s": rate, "bound": bound, "valid": True,
                "bound_all": None if bound else told} | other  # fmt: skip

    rows = [point(8, 800.0), point(16, 1500.0), point(32, 1520.0), point(1, 100.0, "client")]
    rows.append(point(64, 9.0, valid=False))
    settled = settle_load(rows)
    assert [row["bound"] for row in settled] == ["load", "decode", None, "client", None]
    assert settled[0]["bound_all"].startswith("load (+88% tokens/s at 16): at most 8")
    assert settled[2] is rows[2]  # nothing higher that is valid
    # another launch's load is another server's
    assert settle_load([point(8, 800.0), point(16, 1500.0, launch=2)])[0]["bound"] is None


numbers = st.none() | st.floats(0, 1000)


SAMPLED = set(METRICS_SCHEMA.names) - {"t_ns", "iteration_tokens_buckets"}


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(sorted(SAMPLED), numbers)), max_size=8),
       st.none() | st.integers(1, 64), st.none() | st.integers(0, 64), st.booleans())  # fmt: skip
def test_any_samples_give_known_bounds_in_order(rows: Any, seqs: Any, capture: Any, saturated: Any) -> None:
    bound = bounds(
        table(rows), max_num_seqs=seqs, capture_effective_full=capture, max_num_batched_tokens=64,
        client_saturated=saturated,
    )  # fmt: skip
    order = list(BOUNDS)
    assert [order.index(name) for name in bound.all] == sorted(order.index(name) for name in bound.all)
    assert bound.first == (bound.all[0] if bound.all else None)
    assert set(bound.all) <= set(bound.evidence)
    assert ("client" in bound.all) == saturated

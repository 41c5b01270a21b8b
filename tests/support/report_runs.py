"""Plants run folders from synthetic values: what report, export and recommend can be tried on without a server.

The figures follow simple formulas (decode gets slower with the batch, much slower above the captured size), so that
curves bend where real ones do. They are made up, and nothing outside the tests may show them.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.observe.metrics import METRICS_SCHEMA
from qwenbench.observe.nvml import NVML_SCHEMA
from qwenbench.runfolder.names import slug

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1> \"'&`${1} </script> 数学 مرحبا 🚀"
"""Text that would run, break out of an attribute or break the layout if anything forgot to escape it."""

_START_NS = 1_700_000_000_000_000_000


@dataclass(frozen=True)
class Recipe:
    """What to plant."""

    captures: Sequence[int] = (16, 32, 64)
    scenarios: Sequence[str] = ("conversation", "math", "code", "multilingual")
    concurrencies: Sequence[int] = (1, 8, 32, 64)
    repeats: int = 1
    simulated: bool = True
    failed: Sequence[int] = ()
    """Captures whose configuration never got ready."""
    failure_text: str = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.96 GiB."
    invalid_concurrency: int | None = None
    requests_per_cell: int = 0
    """Rows of each cell's request table; 0 writes none."""
    sampled_cells: int = 10_000
    """How many cells get /metrics and NVML samples."""
    profile: str = "instruct-general"
    utilizations: Sequence[float] = (0.95,)
    run_id: str = "planted"
    seed: int = 7
    meta: Mapping[str, Any] = field(default_factory=dict)


def plant(folder: Path, recipe: Recipe | None = None) -> Path:
    """Writes a run folder there and returns it."""
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(recipe.seed)
    rows: list[dict[str, Any]] = []
    sampled = 0
    for utilization in recipe.utilizations:
        for capture in recipe.captures:
            config = config_id(recipe, capture, utilization)
            server = folder / "servers" / config
            server.mkdir(parents=True)
            _write(server / "launch.json", _launch(capture, utilization, recipe))
            if capture in recipe.failed:
                _write(server / "failure.json", _failure(recipe))
                (server / "server.log").write_text(recipe.failure_text + "\n", encoding="utf-8")
                continue
            _write(server / "memory.json", _ledger(capture, utilization))
            _write(server / "prediction.json", _prediction(capture, utilization))
            for scenario in recipe.scenarios:
                for concurrency in recipe.concurrencies:
                    for repeat in range(1, recipe.repeats + 1):
                        row = _point(recipe, capture, utilization, scenario, concurrency, repeat, rng)
                        rows.append(row)
                        cell = cell_id(recipe, capture, utilization, scenario, concurrency, repeat)
                        if sampled < recipe.sampled_cells:
                            _write_samples(server / "samples", cell, row)
                            sampled += 1
                        if recipe.requests_per_cell:
                            (folder / "requests").mkdir(exist_ok=True)
                            table = request_table(recipe.requests_per_cell, row)
                            pq.write_table(table, folder / "requests" / f"{cell}.parquet", compression="zstd")
    _write_points(folder / "points.csv", rows)
    _write(folder / "run.json", _meta(recipe))
    return folder


def config_id(recipe: Recipe, capture: int, utilization: float) -> str:
    """The configuration's name, as the sweep builds it."""
    name = f"cap{capture}-seq{capture}"
    return f"{name}-util{utilization:g}" if len(recipe.utilizations) > 1 else name


def cell_id(recipe: Recipe, capture: int, utilization: float, scenario: str, concurrency: int, repeat: int) -> str:
    """The cell's name, as the sweep builds it."""
    point = slug(f"{scenario}.{recipe.profile}.c{concurrency}.{repeat}")
    return f"{config_id(recipe, capture, utilization)}.l1.{point}"


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_bytes(orjson.dumps(dict(value), option=orjson.OPT_INDENT_2))


def _kv_gib(capture: int, utilization: float) -> float:
    return round(17.35 - 31.36 * (0.95 - utilization) - 0.0009 * capture, 2)


def _blocks(capture: int, utilization: float) -> int:
    return int(_kv_gib(capture, utilization) * 2**30 / 17_301_504)


def _launch(capture: int, utilization: float, recipe: Recipe) -> dict[str, Any]:
    vllm = ["--model", "ig1/Qwen3.5-9B-NVFP4", "--served-model-name", "Qwen3.5-9B", "--max-model-len", "auto"]
    vllm += ["--max-cudagraph-capture-size", str(capture), "--max-num-seqs", str(capture)]
    vllm += ["--gpu-memory-utilization", f"{utilization:g}"]
    docker = ["docker", "run", "--rm", "--runtime", "nvidia", "--gpus", "all", "--ipc", "host", "-p", "8000:8000"]
    docker += ["-v", "/srv/cache:/root/.cache", "--env", "HF_TOKEN", "vllm/vllm-openai:v0.18.0-cu130"]
    flags = {
        "max-model-len": "auto",
        "max-cudagraph-capture-size": str(capture),
        "max-num-seqs": str(capture),
        "gpu-memory-utilization": f"{utilization:g}",
    }
    launcher = "sim" if recipe.simulated else "docker"
    return {
        "launcher": launcher,
        "argv": docker + vllm,
        "shown_argv": docker + vllm,
        "env_names": ["HF_TOKEN"],
        "env": {},
        "image_digest": None,
        "requested": flags,
        "server": {"model": "ig1/Qwen3.5-9B-NVFP4", "served_model_name": "Qwen3.5-9B", "flags": flags, "port": 8000},
        "pid": 4242,
        "run_id": recipe.run_id,
    }


def _failure(recipe: Recipe) -> dict[str, Any]:
    return {
        "class": "oom_graph_capture",
        "evidence": recipe.failure_text,
        "advice": "Lower --gpu-memory-utilization or --max-cudagraph-capture-size.",
        "exit_code": 1,
        "phase": "start",
    }


def _ledger(capture: int, utilization: float) -> dict[str, Any]:
    kv, blocks = _kv_gib(capture, utilization), _blocks(capture, utilization)
    budget = round(31.36 * utilization, 2)
    actual = round(0.06 + 0.0012 * capture, 2)
    return {
        "vllm_version": "0.20.2",
        "budget_gib": budget,
        "weights_gib": 8.2,
        "activations_gib": 3.1,
        "graphs_estimated_gib": round(0.06 + 0.0008 * capture, 2),
        "graphs_actual_gib": actual,
        "kv_cache_gib": kv,
        "rest_gib": round(budget - 8.2 - 3.1 - actual - kv, 2),
        "kv_cache_blocks": blocks,
        "attention_block_tokens": 528,
        "kv_cache_tokens": 528 * (blocks - 4),
        "kv_cache_tokens_logged": 562_036,
        "kv_cache_tokens_formula": "concurrency x max_model_len",
        "max_concurrency_logged": 2.14,
        "capture_effective": capture,
        "capture_effective_full": capture,
        "max_model_len_effective": 262_144,
        "attention_backend": "FLASHINFER",
        "quantization_backend": "FlashInferCutlassNvFp4LinearKernel",
        "compile_s": 14.2,
        "profile_s": 3.1,
        "capture_s": round(1.0 + capture / 20, 1),
        "init_s": round(25 + capture / 16, 1),
        "vram_before_mib": 512.0,
        "vram_ready_mib": 30_100.0 + 6 * capture,
        "vram_peak_mib": 30_700.0 + 18 * capture,
        "vram_after_mib": 512.0,
        "warnings": ["Your GPU does not have native support for FP4 computation"],
    }


def _prediction(capture: int, utilization: float) -> dict[str, Any]:
    kv, blocks = _kv_gib(capture, utilization), _blocks(capture, utilization)
    return {
        "weights_gib": 8.2,
        "graphs_gib": 0.1,
        "kv_cache_gib": round(kv + 0.06, 2),
        "kv_cache_gib_low": round(kv - 0.3, 2),
        "kv_cache_gib_high": round(kv + 0.4, 2),
        "kv_cache_blocks": blocks + 3,
        "kv_cache_tokens": 528 * (blocks - 1),
        "kv_cache_tokens_printed": 562_036,
        "requests_that_fit": blocks // 5,
        "risk": "none",
        "basis": "built-in model of rtx-5090",
    }


def _point(
    recipe: Recipe, capture: int, utilization: float, scenario: str, concurrency: int, repeat: int, rng: random.Random
) -> dict[str, Any]:
    heavy = 1.0 + 0.15 * (sum(map(ord, scenario)) % 5)
    running = min(concurrency, capture)
    tpot = (5.1 + 0.045 * running) * (1 + 0.02 * heavy) * rng.uniform(0.99, 1.01)
    throughput = running * 1000 / tpot * rng.uniform(0.98, 1.02)
    ttft = (18 + 3.2 * running) * heavy * rng.uniform(0.97, 1.03)
    waiting = max(0, concurrency - capture)
    if waiting:
        ttft += waiting / max(running, 1) * 128 * tpot
    power = 180 + 3.1 * running
    requests = max(16, 4 * concurrency)
    ledger = _ledger(capture, utilization)
    row: dict[str, Any] = dict.fromkeys(COLUMN_NAMES)
    row.update(
        config_id=config_id(recipe, capture, utilization),
        capture=capture,
        max_num_seqs=capture,
        gpu_memory_utilization=utilization,
        gpu_memory_utilization_effective=utilization,
        scenario=scenario,
        profile=recipe.profile,
        load_shape="closed",
        concurrency=concurrency,
        repeat=repeat,
        launch=1,
        seed=recipe.seed,
        simulated=recipe.simulated,
        requests_ok=requests,
        requests_failed=0,
        window="steady",
        duration_s=20.0,
        requests_per_s=throughput / 128,
        input_tokens_per_s=throughput * 4,
        output_tokens_per_s=throughput,
        total_tokens_per_s=throughput * 5,
        output_tokens_per_s_per_user=throughput / concurrency,
        goodput_rps=throughput / 128 * (0.5 if waiting else 1.0),
        length_controlled=True,
        prefix_hit_rate=0.0,
        merged_share=0.001,
        kv_cache_gib=ledger["kv_cache_gib"],
        kv_cache_blocks=ledger["kv_cache_blocks"],
        kv_cache_tokens=ledger["kv_cache_tokens"],
        requests_that_fit=int((ledger["kv_cache_blocks"] - 1) // (4 + heavy)),
        kv_cache_usage_peak=min(1.0, running * 5 / ledger["kv_cache_blocks"]),
        preemptions=0,
        running_peak=running,
        waiting_peak=waiting,
        vram_before_mib=ledger["vram_before_mib"],
        vram_ready_mib=ledger["vram_ready_mib"],
        vram_peak_mib=ledger["vram_peak_mib"] - 64 + concurrency,
        vram_over_budget_mib=ledger["vram_peak_mib"] - 64 + concurrency - ledger["budget_gib"] * 1024,
        power_w_mean=power,
        energy_j_per_output_token=power / throughput,
        startup_s=40 + capture / 16,
        client_error_ms=0.4,
        client_error_p99_ms=1.9,
        bound="scheduler" if waiting else "prefill" if heavy > 1.4 and concurrency > 16 else "load",
        bound_all="scheduler prefill" if waiting else "load",
        valid=concurrency != recipe.invalid_concurrency,
        invalid_reason="the client's own error is above 5 % of TTFT"
        if concurrency == recipe.invalid_concurrency
        else None,
    )
    for name, middle in {
        "ttft": ttft,
        "ttfo": ttft * 1.05,
        "tpot": tpot,
        "itl": tpot,
        "e2e": ttft + 127 * tpot,
    }.items():
        for statistic, factor in {"mean": 1.04, "p50": 1.0, "p90": 1.35, "p99": 1.9}.items():
            row[f"{name}_ms_{statistic}"] = None if statistic == "p99" and requests < 100 else middle * factor
    return row


def _write_points(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=COLUMN_NAMES)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value is None else value for key, value in row.items()})


def _write_samples(folder: Path, cell: str, row: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    seconds = float(row["duration_s"])
    pq.write_table(_metrics_table(seconds, row), folder / f"{cell}.metrics.parquet")
    pq.write_table(_nvml_table(seconds, row), folder / f"{cell}.nvml.parquet")


def _metrics_table(seconds: float, row: Mapping[str, Any]) -> pa.Table:
    t = np.arange(0.0, seconds, 0.5)
    ramp = np.minimum(1.0, t / 2.0)
    values: dict[str, Any] = {name: [None] * len(t) for name in METRICS_SCHEMA.names}
    values.update(
        t_ns=(_START_NS + t * 1e9).astype(np.int64),
        running=np.round(row["running_peak"] * ramp),
        waiting=np.round(row["waiting_peak"] * ramp),
        kv_cache_usage=row["kv_cache_usage_peak"] * ramp,
        preemptions_total=np.zeros(len(t)),
        generation_tokens_total=np.cumsum(row["output_tokens_per_s"] * 0.5 * ramp),
    )
    return pa.table(values, schema=METRICS_SCHEMA)


def _nvml_table(seconds: float, row: Mapping[str, Any]) -> pa.Table:
    t = np.arange(0.0, seconds, 0.1)
    used = row["vram_ready_mib"] + (row["vram_peak_mib"] - row["vram_ready_mib"]) * np.minimum(1.0, t / 5.0)
    values: dict[str, Any] = {name: [None] * len(t) for name in NVML_SCHEMA.names}
    values.update(
        t_ns=(_START_NS + t * 1e9).astype(np.int64),
        gpu=["GPU-planted"] * len(t),
        used_mib=used,
        power_w=[row["power_w_mean"]] * len(t),
    )
    return pa.table(values, schema=NVML_SCHEMA)


def request_table(count: int, row: Mapping[str, Any]) -> pa.Table:
    """Request records that agree with a point's figures, with 127 gaps each."""
    rng = np.random.default_rng(count)
    ttft = row["ttft_ms_p50"] * rng.lognormal(0.0, 0.3, count)
    decode = row["tpot_ms_p50"] * 127 * rng.lognormal(0.0, 0.02, count)
    e2e = ttft + decode
    concurrency = int(row["concurrency"])
    turn = np.arange(count) // concurrency
    sent = _START_NS + (turn * float(np.mean(e2e)) * 1e6).astype(np.int64)
    gaps = np.full(count * 127, row["tpot_ms_p50"], dtype=np.float32)
    columns: dict[str, Any] = {name: pa.nulls(count, REQUEST_SCHEMA.field(name).type) for name in REQUEST_SCHEMA.names}
    columns.update(
        request_id=[f"r{index}" for index in range(count)],
        session_id=[f"s{index}" for index in range(count)],
        scenario=[str(row["scenario"])] * count,
        prompt_id=[f"p{index % 96}" for index in range(count)],
        stream=(np.arange(count) % concurrency).astype(np.int32),
        sent_ns=sent,
        ended_ns=sent + (e2e * 1e6).astype(np.int64),
        ttft_ms=ttft,
        ttfo_ms=ttft,
        e2e_ms=e2e,
        decode_ms=decode,
        itl_ms=pa.ListArray.from_arrays(pa.array(np.arange(0, count * 127 + 1, 127, dtype=np.int32)), pa.array(gaps)),
        output_tokens=np.full(count, 128, dtype=np.int32),
        input_tokens=np.full(count, 512, dtype=np.int32),
        status=np.full(count, 200, dtype=np.int16),
    )
    return pa.table(columns, schema=REQUEST_SCHEMA)


def _meta(recipe: Recipe) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "run_id": recipe.run_id,
        "started_at": "2026-01-31T14:25:01Z",
        "command_line": ["qwenbench", "sweep", "--launcher", "sim", "--capture", ",".join(map(str, recipe.captures))],
        "versions": {"qwenbench": "0.1.0", "vllm": "0.20.2", "python": "3.11.9", "driver": "580.65.06"},
        "hardware": {"card": "rtx-5090", "platform": "linux", "gpus": [], "cpu": "2 cores"},
        "scenarios": {name: {"sha256": f"{math.prod(map(ord, name)) % 2**64:016x}"} for name in recipe.scenarios},
        "options": {"card": "rtx-5090", "concurrency": list(recipe.concurrencies), "repeats": recipe.repeats},
        "seed": recipe.seed,
        "order": "shuffled",
        "simulated": recipe.simulated,
        **recipe.meta,
    }

"""Run folders planted by hand: run.json, points.csv and servers/*/launch.json, which is all that decisions need."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.analysis.run import Run, load_run


def row(config: str, concurrency: int | None, repeat: int = 1, **figures: Any) -> dict[str, Any]:
    """A valid point; everything that is not given is empty."""
    capture = int("".join(c for c in config if c.isdigit()) or 0)
    return {
        "config_id": config, "capture": capture, "max_num_seqs": capture, "scenario": "math",
        "profile": "instruct-general", "load_shape": "closed", "concurrency": concurrency, "repeat": repeat,
        "launch": repeat, "seed": 0, "simulated": False, "requests_ok": 100, "requests_failed": 0, "window": "steady",
        "length_controlled": True, "valid": True, "kv_cache_tokens": 262144, "kv_cache_gib": 17.0,
        "requests_that_fit": 200, "requests_in_window": 100,
    } | figures  # fmt: skip


def repeats(config: str, concurrency: int, **figures: Sequence[float]) -> list[dict[str, Any]]:
    """One row per repeat, from one value per repeat."""
    count = len(next(iter(figures.values())))
    return [
        row(config, concurrency, number + 1, **{name: values[number] for name, values in figures.items()})
        for number in range(count)
    ]


def plant(
    folder: Path, rows: Sequence[dict[str, Any]], failures: dict[str, dict[str, Any]] | None = None, **meta: Any
) -> Run:
    """Writes a run's folder and reads it back."""
    folder.mkdir(parents=True, exist_ok=True)
    scenarios = {str(r["scenario"]): {"sha256": "1" * 64, "prompts_sha256": "2" * 64} for r in rows}
    given = {"schema_version": 1, "run_id": folder.name, "simulated": False, "scenarios": scenarios, "options": {}}
    (folder / "run.json").write_text(json.dumps(given | meta))
    with (folder / "points.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMN_NAMES)
        writer.writeheader()
        writer.writerows(rows)
    for config in dict.fromkeys([*(r["config_id"] for r in rows), *(failures or {})]):
        server = folder / "servers" / config
        server.mkdir(parents=True, exist_ok=True)
        (server / "launch.json").write_text(json.dumps(launch_of(config)))
        if failures and config in failures:
            (server / "failure.json").write_text(json.dumps(failures[config]))
    return load_run(folder)


def launch_of(config: str) -> dict[str, Any]:
    """A launch.json as the sweep writes it."""
    capture = "".join(c for c in config if c.isdigit())
    flags = {"max-model-len": "auto", "max-cudagraph-capture-size": capture, "max-num-seqs": capture}
    return {
        "launcher": "docker",
        "argv": ["docker", "run"],
        "server": {
            "model": "ig1/Qwen3.5-9B-NVFP4",
            "served_model_name": "Qwen3.5-9B",
            "flags": flags | {"gpu-memory-utilization": "0.2"},
            "extra_args": [],
            "env": {},
            "env_names": ["HF_TOKEN"],
            "docker": {"image": "vllm/vllm-openai:v0.18.0-cu130", "gpus": "all"},
            "port": 8000,
        },
        "requested": flags | {"gpu-memory-utilization": "0.95"},
    }

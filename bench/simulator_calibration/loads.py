"""Recorded loads, from the recorders' own files or from run folders, as one plain form."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

from qwenbench.capacity.cards import find_card
from qwenbench.simulator.recorded import Load, ServerFacts, flashinfer_of, read_run_folder, sampling, settings_of
from qwenbench.simulator.replay import Planned, Replayed


def read_folder(folder: Path) -> list[Load]:
    """Every load under a folder: recorders' results.json, run folders, and folders of these."""
    if (folder / "results.json").exists():
        return _read_recorder(folder)
    if (folder / "run.json").exists():
        return read_run_folder(folder)
    return [load for inner in sorted(folder.iterdir()) if inner.is_dir() for load in read_folder(inner)]


def _read_recorder(folder: Path) -> list[Load]:
    loads = []
    for run in json.loads((folder / "results.json").read_text(encoding="utf-8")):
        if not run.get("loads"):
            continue
        server = _server(folder, run)
        for load in run["loads"]:
            loads.append(_recorded_load(folder, server, load))
    return loads


def _recorded_load(folder: Path, server: ServerFacts, load: dict[str, Any]) -> Load:
    if "file" in load:
        rows = json.loads(gzip.decompress((folder / load["file"]).read_bytes()))
        filtered, penalised = sampling(load["profile"])
        requests = [
            Replayed(
                row["start"],
                Planned(row["prompt_tokens"], row["completion_tokens"], 0.0, filtered, penalised),
                [row["start"] + at for at, tokens in row["reads"] if tokens],
            )
            for row in sorted(rows, key=lambda row: row["start"])
        ]
        least, _, most = load["prompt_tokens"]
        label = f"c={load['streams']} {least}-{most}+{load['output_tokens']} {load['profile']}"
        return Load(server, label, load["streams"], requests)
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


def _server(folder: Path, run: dict[str, Any]) -> ServerFacts:
    args = run.get("argv") or run["args"]
    name = run["name"]
    metrics = (folder / f"{name}.metrics1.txt").read_text(encoding="utf-8")
    log = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    blocks = re.search(r'num_gpu_blocks="(\d+)"', metrics)
    version = re.search(r"version (\d+\.\d+\.\d+)", log)
    if blocks is None or version is None:
        raise SystemExit(f"{folder}/{name}: no num_gpu_blocks or no version, so its KV cache is not known")
    environment = run.get("env") or {}
    card = re.match(r"[a-z]+\d+", folder.name)
    # servers that ran side by side shared one machine, those alone another
    machine = f"{folder.name}-{name.split('-')[0]}" if name.startswith(("pair-", "alone-")) else folder.name
    flags = _flags(args)
    return ServerFacts(
        name,
        machine,
        find_card(card[0] if card else "h200").name,
        version[1],
        int(flags["max-num-seqs"]),
        int(flags["max-num-batched-tokens"]),
        int(blocks[1]),
        settings_of(flags, flashinfer=flashinfer_of(log, environment.get("VLLM_USE_FLASHINFER_SAMPLER", "0"))),
    )


def _flags(args: list[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for at, word in enumerate(args):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = args[at + 1] if at + 1 < len(args) else ""
            flags[name] = value if equals or following.startswith("--") else following
    return flags

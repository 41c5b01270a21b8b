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
    lanes = [load for facts in sorted(folder.glob("*.json")) for load in _read_lane(facts)]
    return lanes + [load for inner in sorted(folder.iterdir()) if inner.is_dir() for load in read_folder(inner)]


def _read_recorder(folder: Path) -> list[Load]:
    loads = []
    for run in json.loads((folder / "results.json").read_text(encoding="utf-8")):
        if not run.get("loads"):
            continue
        server = _server(folder, run)
        for load in run["loads"]:
            loads.append(_recorded_load(folder, server, load))
    return loads


def _read_lane(path: Path) -> list[Load]:
    """Loads of a server whose recorder wrote NAME.json with a row [streams, requests, words, words, ...] per load.

    The records stand beside it as NAME.NN.cSTREAMS.LEAST-MOST.PROFILE.json. [] for any other file and another model.
    """
    run = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(run, dict) or "argv" not in run or "--limit-mm-per-prompt.video" not in run["argv"]:
        return []
    card = re.search(r"[AHB]\d00", run["card"])
    server = _server(
        path.parent, run | {"name": path.stem, "machine": path.parent.parent.name, "card": card and card[0]}
    )
    loads = []
    for number, (streams, _, least, most, output, profile, *_) in enumerate(
        row for row in run["loads"] if isinstance(row, list)
    ):
        name = f"{path.stem}.{number:02d}.c{streams}.{least}-{most}.{profile}.json"
        loads.append(
            _recorded_load(path.parent, server, {
                "file": name, "streams": streams, "profile": profile, "output_tokens": output})
        )  # fmt: skip
    return loads


def _recorded_load(folder: Path, server: ServerFacts, load: dict[str, Any]) -> Load:
    if "file" in load:
        raw = (folder / load["file"]).read_bytes()
        rows = json.loads(gzip.decompress(raw) if load["file"].endswith(".gz") else raw)
        filtered, penalised = sampling(load["profile"])
        requests = [
            Replayed(
                row["start"],
                Planned(row["prompt_tokens"], row["completion_tokens"], 0.0, filtered, penalised),
                [row["start"] + at for at, tokens in row["reads"] if tokens],
            )
            for row in sorted(rows, key=lambda row: row["start"])
        ]
        lengths = [request.planned.prompt_tokens for request in requests]
        label = f"c={load['streams']} {min(lengths)}-{max(lengths)}+{load['output_tokens']} {load['profile']}"
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
    # recorders of the older folders switched it off wherever they do not say
    sampler = (run.get("env") or {}).get("VLLM_USE_FLASHINFER_SAMPLER", None if "machine" in run else "0")
    card = re.match(r"(?i)[a-z]+\d+", run.get("card") or folder.name)
    # servers that ran side by side shared one machine, those alone another
    beside = f"-{name.split('-')[0]}" if name.startswith(("pair-", "alone-")) else ""
    machine = run.get("machine") or f"{folder.name}{beside}"
    flags = _flags(args)
    return ServerFacts(
        name,
        machine,
        find_card(card[0].lower() if card else "h200").name,
        version[1],
        int(flags["max-num-seqs"]),
        int(flags["max-num-batched-tokens"]),
        int(blocks[1]),
        settings_of(
            capture=int(flags["max-cudagraph-capture-size"]),
            seqs=int(flags["max-num-seqs"]),
            flashinfer=flashinfer_of(log, version[1], sampler),
            async_scheduling="no-async-scheduling" not in flags,
            drafted=int(json.loads(flags.get("speculative-config", "{}")).get("num_speculative_tokens", 0)),
        ),
    )


def _flags(args: list[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for at, word in enumerate(args):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = args[at + 1] if at + 1 < len(args) else ""
            flags[name] = value if equals or following.startswith("--") else following
    return flags

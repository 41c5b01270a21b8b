"""Recorded loads, from the recorders' own files or from run folders, as one plain form."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from qwenbench.capacity.cards import find_card
from qwenbench.simulator.replay import Planned, Replayed
from qwenbench.simulator.steptime import StepSettings
from qwenbench.workload.profiles import PROFILES


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """The recorded server's configuration, as far as scheduler and step times are bound by it."""

    name: str
    machine: str
    """Servers of one machine share the host's times."""
    card: str
    version: str
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    settings: StepSettings


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


def sampling(profile: str) -> tuple[bool, bool]:
    """(filtered, penalised) of a profile's sampling fields; a name that is no profile sends none."""
    known = PROFILES.get(profile)
    if known is None:
        return False, False
    fields = known.sampling()
    return True, bool(fields.get("presence_penalty") or fields.get("repetition_penalty", 1.0) != 1.0)


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
        _settings(flags, flashinfer=_flashinfer(log, environment.get("VLLM_USE_FLASHINFER_SAMPLER", "0"))),
    )


def _flashinfer(log: str, setting: str | None) -> bool:
    if "Using FlashInfer for top-p" in log:
        return True
    if "FlashInfer top-p/top-k sampling disabled" in log:
        return False
    return setting is None


def _flags(args: list[str]) -> dict[str, str]:
    flags: dict[str, str] = {}
    for at, word in enumerate(args):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = args[at + 1] if at + 1 < len(args) else ""
            flags[name] = value if equals or following.startswith("--") else following
    return flags


def _settings(flags: dict[str, str], *, flashinfer: bool, drafted: int = 0) -> StepSettings:
    capture, seqs = int(flags["max-cudagraph-capture-size"]), int(flags["max-num-seqs"])
    return StepSettings(
        captured_full=min(capture, seqs * (1 + drafted)),
        captured_piecewise=capture,
        flashinfer_sampler=flashinfer,
        async_scheduling="no-async-scheduling" not in flags,
        drafted=drafted,
    )


def read_run_folder(run: Path) -> list[Load]:
    """Closed-loop loads of a measured run folder that still has its request records; [] for a simulated one."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    points = run / "points.csv"
    if facts.get("simulated") or not points.exists():
        return []
    with points.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["kv_cache_blocks"]]
    servers = {row["config_id"]: _server_of(run, facts, row) for row in rows}
    profiles = {row.get("profile") or "" for row in rows}
    loads = []
    for path in sorted((run / "requests").glob("*.parquet")):
        config = next((name for name in servers if path.stem.startswith(f"{name}.")), None)
        if config is not None:
            label = path.stem.removeprefix(f"{config}.")
            profile = next((name for name in label.split(".") if name in profiles), "")
            loads += _run_load(path, servers[config], label, profile)
    return loads


def _server_of(run: Path, facts: dict[str, Any], row: dict[str, str]) -> ServerFacts:
    log, drafted = _log_of(run, row["config_id"])
    hardware = facts.get("hardware") or {}
    names = [gpu["name"] for gpu in hardware.get("gpus") or []]
    version = re.search(r"version (\d+\.\d+\.\d+)", log)
    seqs = int(row["max_num_seqs"] or 64)
    flags = {
        "max-cudagraph-capture-size": row["capture"] or "64",
        "max-num-seqs": str(seqs),
        **({"no-async-scheduling": ""} if "Asynchronous scheduling is disabled" in log else {}),
    }
    return ServerFacts(
        f"{run.name}/{row['config_id']}",
        run.parent.name if run.parent.name.startswith(("h100", "h200")) else run.name,
        find_card(names[0]).name if names else str(hardware.get("card") or "h200"),
        (facts.get("versions") or {}).get("vllm") or (version[1] if version else "0.20.2"),
        seqs,
        int(row.get("vary_max_num_batched_tokens") or 2048),
        int(float(row["kv_cache_blocks"])),
        _settings(flags, flashinfer=_flashinfer(log, "0"), drafted=drafted),
    )


def _log_of(run: Path, config: str) -> tuple[str, int]:
    """A server's log (its own, or one that was kept beside a bench run) and its drafted tokens."""
    own = run / "servers" / config / "server.log"
    beside = run.parent / f"{run.name.removesuffix('-bench')}.log"
    path = own if own.exists() else beside
    log = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    drafted = re.search(r"num_spec_tokens=(\d+)", log)
    return log, int(drafted[1]) if drafted else 0


_COLUMNS = [
    *("sent_ns", "process", "stream", "input_tokens", "output_tokens", "ttft_ms", "decode_ms", "e2e_ms"),
    *("itl_ms", "gaps_merged", "error"),
]


def _run_load(path: Path, server: ServerFacts, label: str, profile: str) -> list[Load]:
    """The load of one cell's request records; [] when none of its requests succeeded."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=_COLUMNS).to_pylist()
    good = [row for row in rows if row["error"] is None and row["decode_ms"] is not None]
    good.sort(key=lambda row: row["sent_ns"])
    filtered, penalised = sampling(profile)
    requests: list[Replayed] = []
    streams: dict[tuple[int, int], list[Planned]] = defaultdict(list)
    last_end: dict[tuple[int, int], float] = {}
    for row in good:
        start = (row["sent_ns"] - good[0]["sent_ns"]) / 1e9
        key = (row["process"] or 0, row["stream"])
        think = max(start - last_end.get(key, start), 0.0)
        planned = Planned(row["input_tokens"], row["output_tokens"], think, filtered, penalised)
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


def renamed(load: Load, machine: str) -> Load:
    """The same load as one of another machine."""
    return replace(load, server=replace(load.server, machine=machine))

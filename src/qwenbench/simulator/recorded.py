"""Measured loads beside the same loads simulated: what calibration fits to, and what a host is measured from.

TTFT, ITL and tokens/s are those of the whole load, from the first request's start to the last token. A load in which
an engine step took over ONE_OFF_S holds a compilation or tuning that happens once in a server's life: if it lies in
the first wave (the first `concurrency` requests), the figures are taken from after it (TTFT of later requests, tokens
from the first completion on, on both sides); if it lies later, or there is only one stream, the load is left out.
"""

from __future__ import annotations

import csv
import glob
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from qwenbench.capacity.cards import find_card
from qwenbench.engine.startup_log_reader import parse_startup_log
from qwenbench.simulator.blocks import BLOCK_TOKENS, STATE_BLOCKS, BlockPool
from qwenbench.simulator.options import flashinfer_by_default
from qwenbench.simulator.replay import Figures, Planned, Replayed, closed_loop, figures
from qwenbench.simulator.scheduler import Scheduler, SchedulerLimits
from qwenbench.simulator.steptime import StepModel, StepSettings
from qwenbench.workload.profiles import PROFILES

ONE_OFF_S = 0.5
LIMITS = {"itl_p50_ms": 0.15, "tokens_per_s": 0.20, "ttft_p50_ms": 0.35}
"""How far a simulated figure may lie from the recorded one, on loads that were not fitted to."""


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


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load: recorded, simulated."""

    load: Load
    recorded: Figures
    simulated: Figures
    preemptions: int

    def residual(self, key: str) -> float | None:
        """Simulated / recorded - 1; None where the rule leaves no figure."""
        recorded, simulated = getattr(self.recorded, key), getattr(self.simulated, key)
        if recorded is None or simulated is None:
            return None
        return float(simulated / recorded - 1)

    @property
    def beyond(self) -> list[str]:
        """Keys whose residual is over its limit."""
        return [key for key, limit in LIMITS.items() if abs(self.residual(key) or 0.0) > limit]


def judged(load: Load) -> bool | None:
    """How a load is judged: True from after its first wave, False as a whole, None not at all (one-off stalls)."""
    stalls = one_off_stalls(load.requests)
    if not stalls:
        return False
    if load.concurrency == 1 or max(at for at, _ in stalls) > max(
        first.token_times[0] for first in load.requests[: load.concurrency]
    ):
        return None
    return True if len(load.requests) > load.concurrency else None


def simulate(load: Load, model: StepModel) -> tuple[list[Replayed], int]:
    """The load against the simulator's scheduler in virtual time; also the number of preemptions."""
    server = load.server
    limits = SchedulerLimits(server.max_num_seqs, server.max_num_batched_tokens, server.settings)
    states = STATE_BLOCKS * (1 + server.settings.drafted)
    pool = BlockPool(server.num_blocks, block_tokens=BLOCK_TOKENS, state_blocks=states)
    scheduler = Scheduler(limits, pool, model)
    if load.streams is None:
        queue = iter([request.planned for request in load.requests])
        return closed_loop(scheduler, load.concurrency, lambda _: next(queue, None)), scheduler.preemptions
    streams: list[Iterator[Planned]] = [iter(stream) for stream in load.streams]
    return closed_loop(scheduler, load.concurrency, lambda at: next(streams[at], None)), scheduler.preemptions


def compare(load: Load, model: StepModel) -> Comparison:
    """Both figures of one load that is `judged`."""
    simulated, preemptions = simulate(load, model)
    after, recorded = _recorded_side(load)
    return Comparison(load, recorded, figures(simulated, load.concurrency, after_first_wave=after), preemptions)


@cache  # a fit compares a load hundreds of times
def _recorded_side(load: Load) -> tuple[bool, Figures]:
    after = bool(judged(load))
    return after, figures(load.requests, load.concurrency, after_first_wave=after)


def distance(comparison: Comparison) -> float:
    """How far a load is off, in squares of its limits, growing only linearly beyond them; single streams count a third,
    since there are many alike."""
    total = 0.0
    for key, limit in LIMITS.items():
        residual = comparison.residual(key)
        if residual is not None and math.isfinite(residual):
            off = abs(math.log1p(residual)) / limit
            total += off * off if off < 1 else 2 * off - 1
    return total if comparison.load.concurrency > 1 else total / 3


MACHINE_DIFFERS = 0.5
LAUNCHES_DIFFER = 0.15
OTHERS_DIFFER = 0.4
"""By so much (of the logarithm) a machine is taken to differ from the usual one as a whole, and beside that its
launches kernel by kernel and in pieces, and its other numbers. On the measured machines the launches lie within 12 %
of their mean, the rest within some 50 %, while two launches of a server on one machine differ by 18 %."""


def strangeness(host: Mapping[str, float], usual: Mapping[str, float]) -> float:
    """What a fit pays for a machine's numbers that are not the usual ones, on the scale of `distance`.

    The loads of one launch share that launch's pace, so without this a fit takes a slow launch for a slow kind of
    step. A machine that is slower in everything pays little.
    """
    off = {name: math.log(host[name] / value) for name, value in usual.items() if name.endswith("_ms")}
    together = sum(off.values()) / len(off)
    total = (together / MACHINE_DIFFERS) ** 2
    for name, value in off.items():
        differs = LAUNCHES_DIFFER if name in ("launch_ms", "piecewise_ms") else OTHERS_DIFFER
        total += ((value - together) / differs) ** 2
    return total


def one_off_stalls(requests: list[Replayed]) -> list[tuple[float, float]]:
    """(when, seconds) of the pauses over ONE_OFF_S in which no stream got a token, the wait for the first included."""
    times = sorted(at for request in requests for at in request.token_times)
    starts = min(request.start for request in requests)
    pauses = zip([starts, *times], times, strict=False)
    return [(at, at - before) for before, at in pauses if at - before > ONE_OFF_S]


def read_run_folder(run: Path) -> list[Load]:
    """Closed-loop loads of a measured run folder that still has its request records; [] for a simulated one."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    points = run / "points.csv"
    if facts.get("simulated") or not points.exists():
        return []
    with points.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["kv_cache_blocks"]]
    found = {row["config_id"]: _server_of(run, facts, row) for row in rows}
    servers = {name: server for name, server in found.items() if server is not None}
    profiles = {row.get("profile") or "" for row in rows}
    loads = []
    for path in sorted((run / "requests").glob("*.parquet")):
        config = next((name for name in servers if path.stem.startswith(f"{name}.")), None)
        if config is not None:
            label = path.stem.removeprefix(f"{config}.")
            profile = next((name for name in label.split(".") if name in profiles), "")
            loads += _run_load(path, servers[config], label, profile)
    return loads


def _server_of(run: Path, facts: dict[str, Any], row: dict[str, str]) -> ServerFacts | None:
    """None for a server over several cards, which is not simulated."""
    text = _log_of(run, row["config_id"])
    log = parse_startup_log(text)
    asked = log.requested
    if int(asked.get("tensor_parallel_size") or 1) > 1:
        return None
    hardware = facts.get("hardware") or {}
    names = [gpu["name"] for gpu in hardware.get("gpus") or []]
    seqs = int(asked.get("max_num_seqs") or row["max_num_seqs"] or 64)
    batched = asked.get("max_num_batched_tokens") or row.get("vary_max_num_batched_tokens")
    drafter = asked.get("speculative_config") or {}
    version = (facts.get("versions") or {}).get("vllm") or log.vllm_version or "0.20.2"
    return ServerFacts(
        f"{run.name}/{row['config_id']}",
        run.parent.name if run.parent.name.startswith(("h100", "h200")) else run.name,
        find_card(names[0]).name if names else str(hardware.get("card") or "h200"),
        version,
        seqs,
        int(batched or 2048),
        int(float(row["kv_cache_blocks"])),
        settings_of(
            capture=int(asked.get("max_cudagraph_capture_size") or row["capture"] or 64),
            seqs=seqs,
            flashinfer=flashinfer_of(text, version),
            async_scheduling="Asynchronous scheduling is disabled" not in text,
            drafted=int(drafter.get("num_speculative_tokens") or 0),
        ),
    )


def _log_of(run: Path, config: str) -> str:
    """A server's log: its own, or one that was kept beside a bench run; empty where there is none."""
    own = run / "servers" / config / "server.log"
    beside = sorted(run.parent.glob(f"{glob.escape(run.name.removesuffix('-bench'))}*.log"))
    path = own if own.exists() else next(iter(beside), None)
    return path.read_text(encoding="utf-8", errors="replace") if path is not None else ""


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


def sampling(profile: str) -> tuple[bool, bool]:
    """(filtered, penalised) of a profile's sampling fields; a name that is no profile sends none."""
    known = PROFILES.get(profile)
    if known is None:
        return False, False
    fields = known.sampling()
    return True, bool(fields.get("presence_penalty") or fields.get("repetition_penalty", 1.0) != 1.0)


def flashinfer_of(log: str, version: str, setting: str | None = None) -> bool:
    """Whether FlashInfer's sampler ran: by the log, else by VLLM_USE_FLASHINFER_SAMPLER (None: unset)."""
    if "Using FlashInfer for top-p" in log:
        return True
    if "FlashInfer top-p/top-k sampling disabled" in log:
        return False
    return flashinfer_by_default(version) if setting is None else setting != "0"


def settings_of(*, capture: int, seqs: int, flashinfer: bool, async_scheduling: bool, drafted: int = 0) -> StepSettings:
    """What a step's time depends on, of a server's flags."""
    return StepSettings(min(capture, seqs * (1 + drafted)), capture, flashinfer, async_scheduling, drafted)

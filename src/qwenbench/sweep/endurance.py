"""Beyond the load points: what a prompt costs by its length (a few seconds a launch), whether long prompts kill a
server that looked fine (--ladder), and whether its memory grows while it serves (--soak)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa

from qwenbench.analysis.endurance import Growth, PrefillCost, growth_of, prefill_cost
from qwenbench.engine.failures import Failure, no_answer
from qwenbench.engine.server import Server
from qwenbench.load.clients import Client
from qwenbench.runfolder.files import write_json
from qwenbench.sweep.context import SweepContext
from qwenbench.sweep.load_point import Watch, state_after_load
from qwenbench.sweep.ready_server import ReadyServer

COST_LENGTHS = (64, 128, 256, 512, 1024, 2048)
COST_REQUESTS = 4
"""Of each length; the first one warms the kernels of its length up and does not count."""
COST_LIMIT_S = 20.0
"""No further length after so long: a slow server's prompts are plain to see without."""
LADDER_FIRST = 1024
LADDER_STEP = 4
LADDER_SHARE = 0.9
"""The last rung has this share of max_model_len: how many tokens a prompt will have is an estimate."""
_ANSWER_TOKENS = 4
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder: prompts of a length, one or two at a time."""

    prompt_tokens: int
    """As planned; `counted_tokens` is the server's count."""
    together: int
    ok: bool
    counted_tokens: int | None
    ttft_ms: float | None
    vram_peak_mib: float | None
    error: str | None


class Endurance:
    def __init__(self, sweep: SweepContext, server: Server, ready: ReadyServer, client: Client) -> None:
        self._sweep = sweep
        self._server = server
        self._ready = ready
        self._client = client
        self._config_id = ready.configuration.config_id
        self._folder = sweep.paths.server(self._config_id)

    async def before_points(self) -> None:
        """Measures what a prompt costs, where that is wanted; prefill.json and a note."""
        if not self._wanted():
            return
        cost = await self._prefill_cost()
        if cost is not None:
            write_json(self._folder / "prefill.json", cost.to_json())
            self._sweep.note(cost.sentence(), self._config_id)

    async def after_points(self) -> Failure | None:
        """The ladder, then the soak; why the server died under them, None when it lived."""
        options = self._sweep.plan.options
        failure = await self._ladder() if options.ladder and not self._sweep.stop.is_set() else None
        if failure is None and options.soak_min is not None and not self._sweep.stop.is_set():
            failure = await self._soak(60.0 * options.soak_min)
        return failure

    def _wanted(self) -> bool:
        """Unless it was asked for, a simulator's answer would only be its own formula."""
        options = self._sweep.plan.options
        return options.prefill_cost and ("prefill_cost" in options.model_fields_set or not self._sweep.site.simulated)

    async def _prefill_cost(self) -> PrefillCost | None:
        budget = self._ready.ledger.startup.max_num_batched_tokens
        longest = min(filter(None, (self._longest(), budget, COST_LENGTHS[-1])))
        began, measured = time.monotonic(), []
        for length in COST_LENGTHS:
            if length > longest or time.monotonic() - began > COST_LIMIT_S or self._sweep.stop.is_set():
                break
            if self._ready.questions.limit.over:
                break
            requests = await self._send(length, 1, COST_REQUESTS)
            rows = [row for row in requests.to_pylist() if row["error"] is None and row["ttft_ms"] is not None]
            if not rows:
                break
            measured += [(row["input_tokens"], row["ttft_ms"]) for row in rows[1:] if row["input_tokens"] is not None]
        return prefill_cost(measured)

    async def _send(self, length: int, together: int, count: int) -> pa.Table:
        """Requests with prompts of about so many tokens, `together` at a time; their records."""
        spec = self._ready.loads.of_length(length, _ANSWER_TOKENS, together, count, f"{self._sweep.nonce}p")
        return (await self._client.run(spec, stop=self._sweep.stop, limit=self._ready.questions.limit)).requests

    def _longest(self) -> int | None:
        known = self._ready.ledger.startup.max_model_len_effective or self._ready.server_config.max_model_len
        return None if known is None else int(known) - 2 * _ANSWER_TOKENS

    async def _ladder(self) -> Failure | None:
        longest = self._longest()
        if longest is None:
            self._sweep.note("--ladder: the longest request of this server is not known: no ladder", self._config_id)
            return None
        rungs: list[Rung] = []
        failure = None
        for together in (1, 2):
            for length in ladder_lengths(longest):
                if self._sweep.stop.is_set() or failure is not None:
                    break
                rung, said = await self._rung(length, together)
                rungs.append(rung)
                failure = await self._failure(said)
        write_json(self._folder / "ladder.json", {"rungs": [asdict(rung) for rung in rungs]})
        self._sweep.note(ladder_verdict(rungs, died=failure is not None), self._config_id)
        return failure

    async def _rung(self, length: int, together: int) -> tuple[Rung, list[str]]:
        async with Watch(self._ready) as watch:
            requests = await self._send(length, together, together)
        samples, rows = watch.samples, requests.to_pylist()
        good = [row for row in rows if row["error"] is None]
        said = [row["error_detail"] for row in rows if row["error_detail"]]
        times = [row["ttft_ms"] for row in good if row["ttft_ms"] is not None]
        counted = [row["input_tokens"] for row in good if row["input_tokens"]]
        used = [value for value in samples.nvml["used_mib"].to_pylist() if value is not None]
        if not used:
            used = [value for value in samples.metrics["vram_used_mib"].to_pylist() if value is not None]
        rung = Rung(
            length,
            together,
            bool(rows) and len(good) == len(rows),
            max(counted, default=None),
            max(times, default=None),
            max(used, default=None),
            next(iter(said), None) or next((row["error"] for row in rows if row["error"]), None),
        )
        return rung, said

    async def _soak(self, seconds: float) -> Failure | None:
        """Holds the heaviest load point for so long and tells how memory went: soak.json and a note."""
        sweep, ready = self._sweep, self._ready
        point = max(sweep.plan.points, key=lambda one: (one.concurrency or 0, one.rate or 0.0))
        load = ready.loads.held(point, f"{sweep.nonce}s", seconds)
        sweep.note(f"soak: holding {point.label} for {seconds / 60:g} minutes", self._config_id)
        async with Watch(ready) as watch:
            result = await self._client.run(load, stop=sweep.stop, limit=ready.questions.limit)
        total_mib = min((gpu.total_mib for gpu in ready.hardware.gpus), default=None)
        found = soak_growth(watch.samples.nvml, watch.samples.metrics, total_mib)
        failed = sum(error is not None for error in result.requests["error"].to_pylist())
        write_json(
            self._folder / "soak.json",
            {
                "minutes": (result.ended_ns - result.started_ns) / 60e9,
                "load": point.label,
                "scenario": point.scenario,
                "requests": result.requests.num_rows,
                "requests_failed": failed,
                "growth": [growth.to_json() for growth in found],
            },
        )
        for growth in found:
            sweep.note(f"soak, {growth.verdict()}", self._config_id)
        return await self._failure([detail for detail in result.requests["error_detail"].to_pylist() if detail])

    async def _failure(self, said: Sequence[str]) -> Failure | None:
        """Why the server is of no more use after a load; None: it is."""
        dead, silent_s = await state_after_load(self._sweep, self._ready)
        if dead or not self._server.alive():
            return await self._server.failure("load", said)
        return None if silent_s is None else no_answer(silent_s, "nor to one for a single token afterwards")


def ladder_lengths(longest: int) -> list[int]:
    """1k, 4k, 16k, ... tokens, and the longest prompt that surely fits."""
    last = int(LADDER_SHARE * longest)
    lengths = []
    length = LADDER_FIRST
    while length < 0.8 * last:
        lengths.append(length)
        length *= LADDER_STEP
    return [*lengths, last]


def ladder_verdict(rungs: Sequence[Rung], *, died: bool) -> str:
    passed = [rung for rung in rungs if rung.ok]
    far = max(passed, key=lambda rung: (rung.prompt_tokens, rung.together), default=None)
    how = {1: "alone", 2: "two at a time"}
    reach = (
        f"prompts up to {far.prompt_tokens:,} tokens ({how[far.together]}) were answered" if far else "no prompt passed"
    )
    broken = next((rung for rung in rungs if not rung.ok), None)
    if broken is None:
        return f"ladder: {reach}"
    what = "the server died" if died else f"failed ({broken.error})"
    return f"ladder: {reach}; at {broken.prompt_tokens:,} tokens, {how[broken.together]}, {what}"


def soak_growth(nvml: pa.Table, metrics: pa.Table, total_mib: float | None) -> list[Growth]:
    """Growth of the card's memory (the server's own where NVML tells it; the simulator's by its own word) and of the
    API server's main memory, as far as they were seen."""
    found: list[Growth | None] = []
    for gpu in sorted(set(nvml["gpu"].to_pylist())):
        rows = [row for row in nvml.to_pylist() if row["gpu"] == gpu]
        own = any(row["own_mib"] is not None for row in rows)
        column, name = ("own_mib", "VRAM of the server") if own else ("used_mib", "VRAM of the card")
        used = rows[-1]["used_mib"]
        free = None if total_mib is None or used is None else total_mib - used
        values = [float("nan") if row[column] is None else row[column] for row in rows]
        found.append(growth_of(name, [row["t_ns"] / 1e9 for row in rows], values, free))
    for column, name, unit in (
        ("vram_used_mib", "VRAM by the simulator's model", 1.0),
        ("rss_bytes", "the API server's memory", _MIB),
    ):
        rows = [row for row in metrics.to_pylist() if row[column] is not None]
        found.append(growth_of(name, [row["t_ns"] / 1e9 for row in rows], [row[column] / unit for row in rows]))
    return [growth for growth in found if growth is not None]

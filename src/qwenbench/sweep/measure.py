"""One cell: warm up, load while watching, and the point that comes of it."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import pyarrow as pa

from qwenbench.analysis.point import PointContext, summarise_point
from qwenbench.capacity.configuration import default_batched_tokens
from qwenbench.capacity.kv import KvLayout
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.startup_log import StartupLog
from qwenbench.load.client_error import CPU_SATURATED, ClientError, client_verdict
from qwenbench.load.run import LoadClient
from qwenbench.load.spec import LoadProgress, LoadResult, LoadSpec, Target
from qwenbench.observe.ledger import MemoryLedger
from qwenbench.runfolder.cells import Cell
from qwenbench.sweep.environment import Environment
from qwenbench.sweep.progress import Live
from qwenbench.sweep.requests import ServerTraits, load_shape_name, measured_load, seed_of, warm_up_load
from qwenbench.sweep.text_checks import TextChecks
from qwenbench.sweep.watching import Samples, Watch
from qwenbench.workload.planning import PlannedSessions
from qwenbench.workload.quality import cut_in_reasoning


@dataclass(frozen=True)
class ServerState:
    """A server that is ready, and what was read and asked of it."""

    base_url: str
    startup_s: float | None
    startup: StartupLog
    ledger: MemoryLedger
    layout: KvLayout | None
    traits: ServerTraits
    own_pids: tuple[int, ...]
    vram_before_mib: Mapping[str, float]
    """UUID -> used memory of the server's cards before the launch, MiB."""
    server_config: ServerConfig
    texts: TextChecks


@dataclass(frozen=True)
class CellResult:
    """What a cell leaves."""

    point: Mapping[str, Any]
    requests: pa.Table
    samples: Samples
    texts: Mapping[str, str]
    engine_dead: bool
    """The server stopped being healthy under this load: the point is not kept."""


async def measure(
    env: Environment,
    configuration: Configuration,
    state: ServerState,
    cell: Cell,
    target: Target,
    client: LoadClient,
    halt: asyncio.Event,
) -> CellResult:
    """Measures one load point. When `halt` was set meanwhile, what comes back is not to be kept."""
    plan, point = env.plan, cell.point
    salt = f"{env.nonce}{zlib.crc32(cell.cell_id.encode()):08x}"
    warm_up = warm_up_load(plan, configuration, point, state.traits, target, salt + "w")
    with env.timings.phase("warm_up"):
        await client.run(warm_up, on_progress=_listener(env, cell, "warm-up", warm_up, None), stop=halt)
    load = measured_load(plan, configuration, point, state.traits, target, salt)
    with env.timings.phase("self_check"):
        client_error = None if point.concurrency is None else await env.client_error(point.concurrency)
    watch = await Watch(env, state.base_url, state.own_pids).start()
    try:
        with env.timings.phase("load"):
            result = await client.run(load, on_progress=_listener(env, cell, "load", load, watch), stop=halt)
    finally:
        samples = await watch.stop()
    if samples.problem:
        env.note(samples.problem)
    _name_others(env, samples, state)
    context = _context(env, configuration, state, cell, result, client_error)
    _count_unanswered(env, cell, result)
    row = summarise_point(result.requests, samples.metrics, samples.nvml, context)
    return CellResult(row, result.requests, samples, result.texts, not await healthy(env, state.base_url))


def _count_unanswered(env: Environment, cell: Cell, result: LoadResult) -> None:
    """Says how many thinking answers reached their output limit before they answered: their TTFO is empty."""
    columns = [result.requests[name].to_pylist() for name in ("reasoning_chars", "answer_chars", "finish_reason")]
    # a request that failed has no answer to count
    rows = zip(*columns, strict=True)
    cut = sum(cut_in_reasoning(thought or 0, answered or 0, reason) for thought, answered, reason in rows)
    if cut:
        env.note(
            f"{cell.cell_id}: {cut} of {result.requests.num_rows} answers reached their output limit while still "
            "thinking; raise --output-tokens, or choose an instruct profile, to measure whole answers"
        )


def _name_others(env: Environment, samples: Samples, state: ServerState) -> None:
    """Says once per run which other processes were on the card; a server that is not ours has unknown pids."""
    if not state.own_pids:
        return
    seen = {name for row in samples.nvml["other_pids"].unique().to_pylist() if row for name in row.split(",")}
    for name in sorted(seen - env.others_named):
        env.others_named.add(name)
        env.note(f"another process is on the card: {name} (pid:name); its memory and work are in the figures")


async def healthy(env: Environment, base_url: str) -> bool:
    """Whether /health answers 200. After an engine's death it says 503 while /metrics and /v1/models still
    answer; a server that does not answer within 15 s counts as dead."""
    try:
        async with env.http.get(
            f"{base_url}/health", headers=dict(env.headers), timeout=aiohttp.ClientTimeout(total=15)
        ) as answer:
            # a gateway in front of the server may have no /health
            return answer.status in (200, 404, 405)
    except (aiohttp.ClientError, TimeoutError):
        return False


def _listener(
    env: Environment, cell: Cell, phase: str, load: LoadSpec, watch: Watch | None
) -> Callable[[LoadProgress], None]:
    """Turns the load generator's progress into the live view's values."""
    sessions = load.sessions
    total = sessions.request_count if isinstance(sessions, PlannedSessions) and load.duration_s is None else None
    last = (time.monotonic(), 0)

    def listen(progress: LoadProgress) -> None:
        nonlocal last
        now = time.monotonic()
        seconds, tokens = now - last[0], progress.output_tokens - last[1]
        last = (now, progress.output_tokens)
        seen = watch.scraper.latest if watch is not None else {}
        env.progress.live(
            cell,
            Live(
                phase=phase,
                done=progress.done,
                total=total,
                failed=progress.failed,
                in_flight=progress.in_flight,
                output_tokens_per_s=tokens / seconds if seconds > 0 else None,
                ttft_ms=progress.ttft_ms,
                running=seen.get("running"),
                waiting=seen.get("waiting"),
                kv_cache_usage=seen.get("kv_cache_usage"),
                vram_mib=watch.vram_mib() if watch is not None else None,
            ),
        )

    return listen


def _step_budget(env: Environment, state: ServerState) -> int | None:
    """Tokens of one step: as the server's log says, as asked for, else vLLM's default for this card; None: unknown."""
    known = state.startup.max_num_batched_tokens or state.server_config.int_flag("max-num-batched-tokens")
    total = env.hardware.cuda_total_gib()
    return known or (default_batched_tokens(total) if total is not None else None)


def _context(
    env: Environment,
    configuration: Configuration,
    state: ServerState,
    cell: Cell,
    result: LoadResult,
    client_error: ClientError | None,
) -> PointContext:
    options, point = env.plan.options, cell.point
    return PointContext(
        cell=cell,
        configuration=configuration,
        load_shape=load_shape_name(options),
        seed=seed_of(env.plan, point),
        simulated=env.launcher.simulated,
        length_controlled=options.ignore_eos,
        ramp_s=options.ramp_s,
        schedule_start_ns=None if point.concurrency is not None else result.started_ns,
        slo=options.slo,
        launched=state.server_config,
        ledger=state.ledger,
        layout=state.layout,
        max_num_batched_tokens=_step_budget(env, state),
        vram_before_mib=state.vram_before_mib,
        startup_s=state.startup_s,
        client_error=client_error,
        client_invalid_reason=client_verdict(result, client_error),
        client_saturated=result.health.cpu_share_max >= CPU_SATURATED,
        canary_accuracy=state.texts.canary.accuracy if state.texts.canary else None,
        natural_broken_share=state.texts.broken_share.get((point.scenario, point.profile)),
        natural_broken_kinds=state.texts.broken_kinds.get((point.scenario, point.profile), ""),
    )

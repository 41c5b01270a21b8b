"""One load point on a server that is ready: warm up, load while watching, and the point that comes of it."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from qwenbench.analysis.point import PointContext, summarise_point
from qwenbench.analysis.request_arrays import disagreements, failure_reasons
from qwenbench.analysis.server_samples import interference, throttle_note
from qwenbench.bounded_http import LOOK_S, NoReplyError, Questions, WaitLimit
from qwenbench.capacity.settings import default_batched_tokens
from qwenbench.engine.failures import Failure, no_answer
from qwenbench.engine.flags import flags_of
from qwenbench.engine.log_lines import LogReader
from qwenbench.engine.speed_settings import graph_steps
from qwenbench.load.client_error import CPU_SATURATED, ClientError, client_verdict
from qwenbench.load.clients import Client
from qwenbench.load.run import LoadClient
from qwenbench.load.spec import LoadProgress, LoadResult, LoadSpec, Target
from qwenbench.observe.metrics import METRICS_SCHEMA, MetricsScraper
from qwenbench.observe.nvml import NVML_SCHEMA, NvmlSampler
from qwenbench.runfolder.cells import Cell
from qwenbench.sweep.context import SweepContext
from qwenbench.sweep.probing import gives_a_token
from qwenbench.sweep.progress import Live
from qwenbench.sweep.ready_server import ReadyServer
from qwenbench.sweep.record import CellResult, Samples
from qwenbench.sweep.requests import Until, load_shape_name, seed_of
from qwenbench.workload.planning import PlannedSessions
from qwenbench.workload.profiles import find_profile
from qwenbench.workload.quality import cut_in_reasoning

_CLIENT_LOST = (
    "The point is not kept, and --resume measures it. If the kernel ended the process for want of memory (dmesg), use "
    "fewer streams or more --client-processes."
)
_SIGN_OF_LIFE_S = 1.5
"""After a load without a whole answer the server has so long to show that it lives."""
UNCONTROLLED_SHARE = 0.02
"""Share of answers of another length than asked for up to which lengths count as controlled."""


class PointMeter:
    def __init__(self, sweep: SweepContext, server: ReadyServer, client: Client) -> None:
        self._sweep = sweep
        self._server = server
        self._client = client

    async def measure(self, cell: Cell, halt: asyncio.Event, until: Until | None = None) -> CellResult:
        """Measures one load point; `until` ends it by another rule than the options'.

        When `halt` was set meanwhile, what comes back is not to be kept.
        """
        sweep, server, point = self._sweep, self._server, cell.point
        salt = f"{sweep.nonce}{zlib.crc32(cell.cell_id.encode()):08x}"
        limit = server.questions.limit
        warm_up = server.loads.warm_up(point, salt + "w")
        with sweep.timings.phase("warm_up"):
            listener = _Listener(sweep, cell, "warm-up", warm_up)
            result = await self._client.run(warm_up, on_progress=listener, stop=halt, limit=limit)
        if result.client_lost is not None or limit.over:
            # another wait as long would end the same way: the warm-up is the point, and every request of it failed
            sweep.note(f"{cell.cell_id}: its warm-up got no whole answer, so it was not loaded")
            return await self._result(cell, result, Samples(METRICS_SCHEMA.empty_table(), NVML_SCHEMA.empty_table()))
        load = server.loads.measured(point, salt, until)
        with sweep.timings.phase("self_check"):
            client_error = None if point.concurrency is None else await sweep.client_error(point.concurrency)
        async with Watch(server) as watch:
            with sweep.timings.phase("load"):
                listener = _Listener(sweep, cell, "load", load, watch)
                decided = until.decided if until is not None else None
                async with _running_beside(server.loads.interfering(point, salt + "i")) as long_prompts:
                    result = await self._client.run(load, on_progress=listener, stop=halt, decided=decided, limit=limit)
        return await self._result(cell, result, watch.samples, client_error, long_prompts, told=not halt.is_set())

    async def _result(
        self,
        cell: Cell,
        result: LoadResult,
        samples: Samples,
        client_error: ClientError | None = None,
        long_prompts: Sequence[pa.Table] = (),
        *,
        told: bool = True,
    ) -> CellResult:
        sweep, server, limit = self._sweep, self._server, self._server.questions.limit
        if samples.problem:
            sweep.note(samples.problem)
        self._name_others(samples)
        self._count_unanswered(cell, result)
        for reason in (failure_reasons(result.requests), disagreements(result.requests)):
            if reason and told:
                sweep.note(f"{cell.cell_id}: {reason}")
        context = replace(self._context(cell, result, client_error), graph_steps=samples.graph_steps)
        row = summarise_point(result.requests, samples.metrics, samples.nvml, context)
        row["interference"] = next((interference(result.requests, table) for table in long_prompts), None)
        if row["interference"] is not None:
            sweep.note(f"{cell.cell_id}: {row['interference']}")
        if (throttled := throttle_note(row)) is not None:
            sweep.note(f"{cell.cell_id}: {throttled}")
        lost = None
        if result.client_lost is not None:
            lost = Failure("client_lost", f"{cell.cell_id}: {result.client_lost}", _CLIENT_LOST, phase="load")
        elif limit.over and row["requests_ok"]:
            lost = no_answer(limit.limit_s, f"in the middle of {cell.cell_id}")
        dead, silent_s = await state_after_load(sweep, server)
        return CellResult(row, result.requests, samples, result.texts, dead, lost, silent_s)

    def _count_unanswered(self, cell: Cell, result: LoadResult) -> None:
        """Counts the answers that reached their output limit before they answered: their TTFO is empty.

        Not those of random weights, of which none ends a thought: no other setting would change that.
        """
        if not self._server.loads.traits.judge_text:
            return
        columns = [result.requests[name].to_pylist() for name in ("reasoning_chars", "answer_chars", "finish_reason")]
        # a request that failed has no answer to count
        rows = zip(*columns, strict=True)
        cut = sum(cut_in_reasoning(thought or 0, answered or 0, reason) for thought, answered, reason in rows)
        before, all_before = self._sweep.cut_answers.get(cell.point.profile, (0, 0))
        answers = result.requests["error"].null_count
        self._sweep.cut_answers[cell.point.profile] = (before + cut, all_before + answers)
        thinking = find_profile(cell.point.profile).enable_thinking
        attached = self._sweep.plan.options.attached  # of its own servers the sweep knows the flags
        if attached and thinking and answers and not any(columns[0]) and any(columns[1]):
            self._sweep.note(
                f"profile {cell.point.profile} asks for thinking, and no answer carried reasoning apart: the server "
                "has no --reasoning-parser (TTFO then equals TTFT), or the model does not think"
            )

    def _name_others(self, samples: Samples) -> None:
        """Says once per run which other processes were on the card; a server that is not ours has unknown pids."""
        if not self._server.own_pids:
            return
        seen = {name for row in samples.nvml["other_pids"].unique().to_pylist() if row for name in row.split(",")}
        for name in sorted(seen - self._sweep.others_named):
            self._sweep.others_named.add(name)
            self._sweep.note(
                f"another process is on the card: {name} (pid:name); its memory and work are in the figures"
            )

    def _length_controlled(self, cell: Cell, result: LoadResult) -> bool | None:
        """Whether answers had the lengths asked for: forced by fields that the server took, and so it came out. None:
        nobody has counted them."""
        left_out = self._server.loads.traits.left_out
        if not self._sweep.plan.options.ignore_eos or {"ignore_eos", "min_tokens"} <= left_out:
            return False
        ok = result.requests.filter(pc.is_null(result.requests["error"]))
        if ok["tokens_from"].null_count == len(ok):
            return None
        # a count of the text is not exact enough to speak against the length that was forced
        ok = ok.filter(pc.fill_null(pc.equal(ok["tokens_from"], "usage"), False))
        alike = pc.equal(ok["requested_output_tokens"], ok["output_tokens"]).drop_null()
        other = len(alike) - (pc.sum(alike).as_py() or 0)
        if other <= UNCONTROLLED_SHARE * len(alike):
            return True
        self._sweep.note(
            f"{cell.cell_id}: {other} of {len(alike)} answers had another length than was asked for: the server does "
            "not hold ignore_eos (or its context is too short), so lengths are not controlled"
        )
        return False

    def _step_budget(self) -> int | None:
        """Tokens of one step: as the log says, as asked for, else vLLM's default for this card; None: unknown."""
        server = self._server
        known = server.ledger.startup.max_num_batched_tokens or server.server_config.int_flag("max-num-batched-tokens")
        total = self._server.hardware.cuda_total_gib()
        return known or (default_batched_tokens(total) if total is not None else None)

    def _context(self, cell: Cell, result: LoadResult, client_error: ClientError | None) -> PointContext:
        plan, server, point = self._sweep.plan, self._server, cell.point
        texts, kind = server.texts, (point.scenario, point.profile)
        return PointContext(
            cell=cell,
            configuration=server.configuration,
            load_shape=load_shape_name(plan.options),
            seed=seed_of(plan, point),
            simulated=self._sweep.site.simulated,
            on_cards=self._sweep.site.launcher.name in ("process", "docker") and bool(server.hardware.gpus),
            node=server.node,
            machine=server.machine,
            length_controlled=self._length_controlled(cell, result),
            ramp_s=plan.options.ramp_s,
            schedule_start_ns=None if point.concurrency is not None else result.started_ns,
            schedule_s=plan.options.duration_s if point.rate is not None else None,
            slo=plan.options.slo,
            launched=server.server_config,
            ledger=server.ledger,
            layout=server.layout,
            max_num_batched_tokens=self._step_budget(),
            vram_before_mib=server.vram_before_mib,
            startup_s=server.startup_s,
            request_tokens=server.request_tokens.get(kind),
            client_error=client_error,
            client_invalid_reason=client_verdict(result, client_error),
            client_saturated=result.health.cpu_share_max >= CPU_SATURATED,
            canary_accuracy=texts.canary.accuracy if texts.canary else None,
            natural_broken_share=texts.broken_share.get(kind),
            natural_broken_kinds=texts.broken_kinds.get(kind, ""),
        )


async def state_after_load(sweep: SweepContext, server: ReadyServer) -> tuple[bool, float | None]:
    """Whether the server died under a load, and for how long (s) it was silent where it hangs; None: it does not."""
    target, limit = server.target, server.questions.limit
    if not limit.over:
        return not await _is_healthy(sweep, target), None
    silent_s = limit.limit_s
    limit.restart()
    # too much load for the time-out, or does it not even answer a request for one token without it?
    questions = Questions(sweep.http, target.base_url, sweep.headers, WaitLimit(_SIGN_OF_LIFE_S))
    try:
        return not await gives_a_token(questions, server.loads.traits.model, target.endpoint), None
    except NoReplyError as problem:
        return problem.kind == "refused", silent_s


async def _is_healthy(sweep: SweepContext, target: Target) -> bool:
    """Whether nothing speaks against a server's health. After an engine's death /health says 503 while /metrics and
    /v1/models still answer; a server that does not answer in time counts as dead."""
    limit = WaitLimit(min(2 * LOOK_S, sweep.plan.options.timeout_s))
    try:
        reply = await Questions(sweep.http, target.base_url, sweep.headers, limit).ask("/health")
    except NoReplyError as problem:
        return problem.kind == "redirect"  # not followed, and no sign of trouble either
    return reply.status < 500  # a gateway may have no /health, or none for us


@asynccontextmanager
async def _running_beside(spec: LoadSpec | None) -> AsyncIterator[list[pa.Table]]:
    """Another load while the block runs, in client processes of its own; its records are in the list afterwards."""
    records: list[pa.Table] = []
    if spec is None:
        yield records
        return
    stop = asyncio.Event()
    async with LoadClient() as client:
        running = asyncio.create_task(client.run(spec, stop=stop))
        try:
            yield records
        finally:
            stop.set()
            records.append((await running).requests)


class Watch:
    """NVML and /metrics together, while the block runs; counters have their start values when it begins."""

    samples: Samples
    """Once the block has ended."""

    def __init__(self, server: ReadyServer) -> None:
        nvml = server.hardware.nvml
        self.scraper = MetricsScraper(server.questions)
        self.sampler = None if nvml is None else NvmlSampler(nvml, lambda: server.own_pids)
        counts = server.log_path is not None and "cudagraph-metrics" in flags_of(server.server_config)
        self._log = LogReader(server.log_path) if counts and server.log_path is not None else None

    async def __aenter__(self) -> Watch:
        if self.sampler is not None:
            self.sampler.start()
        if self._log is not None:
            self._log.new_lines()  # what was counted before is no part of the point
        await self.scraper.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        metrics = await self.scraper.stop()
        steps = () if self._log is None else tuple(graph_steps(self._log.new_lines()))
        nvml = NVML_SCHEMA.empty_table() if self.sampler is None else self.sampler.stop()
        self.samples = Samples(metrics, nvml, steps, self.sampler.error if self.sampler else None)

    def vram_mib(self) -> float | None:
        """Used memory of the fullest card now; the simulator's own figure under the simulator."""
        if self.sampler is not None:
            return self.sampler.latest_used_mib()
        value = self.scraper.latest.get("vram_used_mib")
        return None if value is None else float(value)


def _expected_requests(load: LoadSpec) -> int | None:
    """About how many requests a load will have; None where the clock ends it."""
    if load.enough is not None:
        return load.enough.completions
    if load.duration_s is None and isinstance(load.sessions, PlannedSessions):
        return load.sessions.request_count
    return None


class _Listener:
    """Turns the load generator's progress into the live view's values."""

    def __init__(self, sweep: SweepContext, cell: Cell, phase: str, load: LoadSpec, watch: Watch | None = None) -> None:
        self._sweep = sweep
        self._cell = cell
        self._phase = phase
        self._total = _expected_requests(load)
        self._watch = watch
        self._last = (time.monotonic(), 0)

    def __call__(self, progress: LoadProgress) -> None:
        now = time.monotonic()
        seconds, tokens = now - self._last[0], progress.output_tokens - self._last[1]
        self._last = (now, progress.output_tokens)
        seen = self._watch.scraper.latest if self._watch is not None else {}
        self._sweep.progress.live(
            self._cell,
            Live(
                phase=self._phase,
                done=progress.done,
                total=self._total,
                failed=progress.failed,
                in_flight=progress.in_flight,
                # a warm-up's rate says nothing about the point
                output_tokens_per_s=tokens / seconds if seconds > 0 and self._watch is not None else None,
                ttft_ms=progress.ttft_ms,
                running=seen.get("running"),
                waiting=seen.get("waiting"),
                kv_cache_usage=seen.get("kv_cache_usage"),
                vram_mib=self._watch.vram_mib() if self._watch is not None else None,
            ),
        )

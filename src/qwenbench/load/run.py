"""The load generator as the sweep calls it: `LoadClient` keeps client processes, `run_load` runs one point."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from qwenbench.bounded_http import WaitLimit
from qwenbench.errors import RunError, UsageError
from qwenbench.load.client_process import (
    ClientProcess,
    Failed,
    Finished,
    Go,
    Prepare,
    ProcessLost,
    Stop,
    WindDown,
    read_sent_log,
)
from qwenbench.load.clock import NS_PER_MS, NS_PER_S, ClockWatch, ProcessHealth, now_ns
from qwenbench.load.records import REQUEST_SCHEMA, Sending, lost_row, to_table
from qwenbench.load.source import Share, shares
from qwenbench.load.spec import (
    ClientHealth,
    Decided,
    LoadProgress,
    LoadResult,
    LoadSpec,
    RequestTimes,
    check_spec,
    default_processes,
    streams_to_open,
)
from qwenbench.processes import own_folder, remove_abandoned

_FOLDER = "qwenbench-client-"
_LOG_ROOM_BYTES = 4 * 1024 * 1024
_START_DELAY_NS = 30 * NS_PER_MS
_PROGRESS_S = 1.0
_LOOK_S = 0.25
_SIGN_OF_LIFE_S = 1.2
"""Time for the next requests to bring something: longer than a process's news are apart."""
_LONGEST_SILENCE_S = 60.0
_GRACE_S = 4.0
"""A client process says something every second; what it may be late by, besides the requests' own time."""

_NO_ANSWER = frozenset({"refused", "reset", "timeout", "malformed", "tls", "cancelled", "client"})
"""Classes of records.ERRORS without a whole answer of the server's."""
OnProgress = Callable[[LoadProgress], None]
StartAt = Callable[[], Awaitable[int]]
"""Asked when all connections are open: the CLOCK_REALTIME ns at which the streams are let go."""


async def run_load(
    spec: LoadSpec,
    *,
    on_progress: OnProgress | None = None,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Run one load point in client processes of its own.

    `on_progress` is called about once a second; when `stop` is set, what is in flight is recorded as
    `cancelled` and the result returned. Raises UsageError for a target or shape that cannot be used, RunError
    when no client process could be started.
    """
    async with LoadClient() as client:
        return await client.run(spec, on_progress=on_progress, stop=stop)


class LoadClient:
    """Client processes that are kept from point to point, so that a point does not pay their start."""

    def __init__(self) -> None:
        self._processes: list[ClientProcess] = []
        # in memory where there is such a place: a write to a busy disk can hold a client process up for a second
        memory, disk = Path("/dev/shm"), Path(tempfile.gettempdir())
        for where in (memory, disk):
            remove_abandoned(_FOLDER, where)
        self._folder = own_folder(_FOLDER, memory if _has_room(memory) else disk)
        self._points = 0
        self._starting = asyncio.Lock()
        self._first: asyncio.Future[None] | None = None
        """The first process's start, which nobody waits for before there is a load."""

    async def __aenter__(self) -> LoadClient:
        self._first = asyncio.ensure_future(self.start(1))  # while a server starts
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._first is not None:
            await asyncio.gather(self._first, return_exceptions=True)  # what it raised a load has told
        processes, self._processes = self._processes, []
        await asyncio.gather(*(process.close() for process in processes))
        self._folder.cleanup()

    async def start(self, processes: int) -> None:
        """Start client processes beforehand, while something else is waited for."""
        async with self._starting:
            dead = [process for process in self._processes if not process.alive]
            self._processes = [process for process in self._processes if process.alive]
            await asyncio.gather(*(process.close() for process in dead))
            missing = processes - len(self._processes)
            if missing > 0:
                folder = Path(self._folder.name)
                started = await asyncio.gather(*(ClientProcess.start(folder) for _ in range(missing)))
                self._processes.extend(started)

    async def run(
        self,
        spec: LoadSpec,
        *,
        on_progress: OnProgress | None = None,
        stop: asyncio.Event | None = None,
        decided: Decided | None = None,
        start_at: StartAt | None = None,
        limit: WaitLimit | None = None,
    ) -> LoadResult:
        """Run one load point; see `run_load`. `decided` is asked about once a second; then the streams drain.

        `start_at`: when to begin, where it is not at once. Of a load that several machines send (`spec.part`) only that
        share is sent, and its end is left to `decided`: whether all have enough is seen in their progress.

        A server that gives no whole answer for as long as `limit` leaves (the time-out of a request, when left out)
        ends the point, unless its streams' next requests bring something at once: what is under way is `cancelled`.
        Afterwards the limit holds what was waited in vain.
        """
        check_spec(spec)
        machine, machines = spec.part
        streams = streams_to_open(spec)
        count = min((spec.processes or default_processes(-(-streams // machines))) * machines, max(1, streams))
        parts = shares(spec.sessions, streams, count, by_start=spec.open_loop)[machine::machines]
        await self.start(len(parts))
        self._points += 1
        runs = [
            _ProcessRun(process, self._prepare(spec, part, decided is not None), spec)
            for process, part in zip(self._processes[: len(parts)], parts, strict=True)
        ]
        try:
            limit = limit or WaitLimit(spec.timeout_s)
            look = partial(_look, runs, decided, machines == 1)
            result = await self._run(runs, on_progress, stop, look, start_at, limit)
            count_waits(result, limit)
            return result
        except BaseException:
            # processes in an unknown state are of no use to the next point
            for run in runs:
                run.process.kill()
            raise
        finally:
            for run in runs:
                Path(run.task.sent_log).unlink(missing_ok=True)

    def _prepare(self, spec: LoadSpec, share: Share, tell_times: bool) -> Prepare:
        enough = spec.enough
        if enough is not None:
            enough = replace(enough, completions=math.ceil(enough.completions * share.own_streams / share.streams))
        cpu = spec.cpus[share.process % len(spec.cpus)] if spec.cpus else None
        log = Path(self._folder.name) / f"sent-{self._points}-{share.process}"
        return Prepare(replace(spec, sessions=(), enough=enough), share, tell_times, cpu, str(log))

    async def _run(
        self,
        runs: list[_ProcessRun],
        on_progress: OnProgress | None,
        stop: asyncio.Event | None,
        look: Callable[[], None],
        start_at: StartAt | None,
        limit: WaitLimit,
    ) -> LoadResult:
        await asyncio.gather(*(run.prepare() for run in runs))
        started_ns = now_ns() + _START_DELAY_NS if start_at is None else await start_at()
        clock = ClockWatch()
        side_tasks = [asyncio.ensure_future(_stop_when_silent(runs, limit))]
        if stop is not None:
            side_tasks.append(asyncio.ensure_future(_stop_when(stop, runs)))
        if on_progress is not None:
            side_tasks.append(asyncio.ensure_future(_tell(runs, on_progress)))
        try:
            await asyncio.gather(*(run.go(started_ns, look) for run in runs))
        finally:
            for task in side_tasks:
                task.cancel()
        clock.look()
        if on_progress is not None:
            on_progress(total_progress([run.progress for run in runs]))
        ends = [run.end for run in runs]
        table = pa.concat_tables([end.table for end in ends]).sort_by("sent_ns")
        texts = {key: text for end in ends for key, text in end.texts.items()}
        health = _health([end.health for end in ends], clock.step_ms, table)
        ended_ns = max(end.ended_ns for end in ends)
        lost = next((run.lost for run in runs if run.lost is not None), None)
        waiting_ns = max(end.waiting_since_ns or end.ended_ns for end in ends)
        waited_s = max(0.0, (ended_ns - waiting_ns) / NS_PER_S) if lost is None else 0.0
        return LoadResult(table, started_ns, ended_ns, health, texts, lost, waited_s)


def _has_room(folder: Path) -> bool:
    """Whether a folder can take the logs of what was sent, of some 100,000 requests."""
    try:
        room = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return os.access(folder, os.W_OK | os.X_OK) and room.f_bavail * room.f_frsize >= _LOG_ROOM_BYTES


class _ProcessRun:
    """One process's part in one point. After `go` its result is there, whatever became of the process."""

    def __init__(self, process: ClientProcess, task: Prepare, spec: LoadSpec) -> None:
        self.process = process
        self.task = task
        self.end = Finished(REQUEST_SCHEMA.empty_table(), 0, None, 0)
        self.progress = LoadProgress(0, 0, 0, 0, 0)
        self.lost: str | None = None
        self.going = False
        self._spec = spec
        self._silence_s = min(spec.timeout_s, _LONGEST_SILENCE_S) + _GRACE_S
        self.has_enough = False
        self.finished: list[RequestTimes] = []
        self._winding_down = False
        self._stop_wanted = False
        self._stopped_at = float("inf")

    async def prepare(self) -> None:
        """Have the process open its connections."""
        try:
            self.process.send(self.task)
            answer = await self.process.receive(self._silence_s + _GRACE_S)
        except ProcessLost as problem:
            self._give_up(str(problem))
            return
        if isinstance(answer, Failed):
            raise UsageError(answer.reason) if answer.usage else RunError(answer.reason)

    async def go(self, start_ns: int, on_news: Callable[[], None]) -> None:
        """Run to the end. A process that dies or fails leaves rows with error `client` for all that it had sent.

        `on_news` is called when the process has told how far it is, or is lost.
        """
        if self.lost is not None:
            return
        self.going = True
        try:
            self.process.send(Go(start_ns))
            if self._stop_wanted:
                self.process.send(Stop())
            while not isinstance(message := await self.process.receive(self._silence_s), Finished):
                if isinstance(message, Failed):
                    raise ProcessLost(message.reason)
                if time.monotonic() - self._stopped_at > self._silence_s:
                    raise ProcessLost("it was told to stop and did not")
                if isinstance(message, LoadProgress):
                    self.progress = message
                    self.finished.extend(message.finished)
                    self.has_enough = self.has_enough or message.enough
                    on_news()
        except ProcessLost as problem:
            self._give_up(str(problem))
            on_news()
        else:
            self.end = message
        table = self.end.table
        rows, failed = table.num_rows, table.num_rows - table["error"].null_count
        ttft = table["ttft_ms"].drop_null().to_numpy()
        self.progress = LoadProgress(
            rows, rows, failed, 0, _tokens(table), float(ttft.sum()), len(ttft), enough=self.has_enough
        )
        self.going = False

    def _give_up(self, reason: str) -> None:
        """The process is of no more use: what it had sent is told as lost."""
        self.process.kill()
        self.has_enough = True
        self.lost = reason
        self.end = Finished(self._lost(reason), now_ns(), None, 0)

    def wind_down(self) -> None:
        if self.going and not self._winding_down:
            self._winding_down = True
            with contextlib.suppress(ProcessLost):
                self.process.send(WindDown())

    def stop(self, message: Stop | None = None) -> None:
        """Ask the process to end early, or as soon as it has begun."""
        if self._stop_wanted:
            return
        self._stop_wanted = True
        self._stopped_at = time.monotonic()
        if self.going:
            with contextlib.suppress(ProcessLost):
                self.process.send(message or Stop())

    def _lost(self, reason: str) -> pa.Table:
        rows = []
        for entry in read_sent_log(Path(self.task.sent_log)):
            session, due_ns = self._spec.sessions[entry.session], entry.due_ns
            scheduled_ns = due_ns if self._spec.open_loop else None
            process, turn = self.task.share.process, session.turns[entry.turn]
            sending = Sending(session, turn, process, entry.stream, scheduled_ns, due_ns)
            rows.append(lost_row(sending, entry.sent_ns, f"the client process was lost: {reason}"))
        return to_table(rows)


def _look(runs: list[_ProcessRun], decided: Decided | None, alone: bool) -> None:
    """Winds the point down when all have enough (and no other machine sends), or when what they finished decides what
    is asked.

    All together: a process that ended alone would leave the point less than full.
    """
    enough = alone and all(run.has_enough for run in runs)
    if enough or (decided is not None and decided([times for run in runs for times in run.finished])):
        for run in runs:
            run.wind_down()


def count_waits(result: LoadResult, limit: WaitLimit) -> None:
    """A load's answers let the limit begin anew; what was waited in vain after the last one counts."""
    if any(error not in _NO_ANSWER for error in result.requests["error"].unique().to_pylist()):
        limit.restart()
    limit.spend(result.waited_s)


async def _stop_when_silent(runs: list[_ProcessRun], limit: WaitLimit) -> None:
    """Ends the point when the server answers none of the processes any more."""
    while not _silent([run.progress for run in runs if run.going], limit):  # noqa: ASYNC110 - silence is no event
        await asyncio.sleep(_LOOK_S)
    for run in runs:
        run.stop(Stop(f"no whole answer for {limit.limit_s:g} s"))


def _silent(news: list[LoadProgress], limit: WaitLimit) -> bool:
    """Whether there was no whole answer for the whole limit.

    Streams that timed out have sent their next requests: if these bring anything at once, one of the answers hung and
    not the server, which then has as long again.
    """
    since_ns = [one.waiting_since_ns for one in news]
    if not all(since_ns) or not since_ns:
        return False
    allowed_s = limit.limit_s if any(one.done > one.failed for one in news) else limit.left_s
    over_ns = max(since_ns) + allowed_s * NS_PER_S
    lives = any(one.read_ns > over_ns for one in news)
    return now_ns() > over_ns + (allowed_s if lives else _SIGN_OF_LIFE_S) * NS_PER_S


async def _stop_when(stop: asyncio.Event, runs: list[_ProcessRun]) -> None:
    await stop.wait()
    for run in runs:
        run.stop()


async def _tell(runs: list[_ProcessRun], on_progress: OnProgress) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        on_progress(total_progress([run.progress for run in runs]))


def total_progress(parts: Sequence[LoadProgress]) -> LoadProgress:
    """How far a load is that these parts make up."""
    counts = ("sent", "done", "failed", "in_flight", "output_tokens", "ttft_sum_ms", "ttft_count")
    totals = {name: sum(getattr(part, name) for part in parts) for name in counts}
    return LoadProgress(**totals, enough=all(part.enough for part in parts))


def _tokens(table: pa.Table) -> int:
    """Output tokens of all requests whose count is known."""
    return pc.sum(table["output_tokens"]).as_py() or 0


def _health(parts: list[ProcessHealth | None], own_step_ms: float, table: pa.Table) -> ClientHealth:
    known = [part for part in parts if part is not None]
    lags = np.concatenate([np.zeros(0), *(np.asarray(part.lag_ms) for part in known)])
    tokens = _tokens(table)
    cpu_s = sum(part.cpu_s for part in known)
    return ClientHealth(
        processes=len(parts),
        stamp_source=known[0].stamp_source if known else "unknown",
        cpu_share_max=max((part.cpu_s / part.wall_s for part in known if part.wall_s > 0), default=0.0),
        loop_lag_p99_ms=float(np.percentile(lags, 99)) if len(lags) else None,
        loop_lag_max_ms=float(lags.max()) if len(lags) else None,
        clock_step_ms=max([own_step_ms, *(part.clock_step_ms for part in known)]),
        cpu_us_per_token=cpu_s / tokens * 1e6 if tokens > 0 and len(known) == len(parts) else None,
    )

"""Runs a plan: launch after launch, cell after cell, into a run folder that survives anything."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from qwenbench.capacity.model_shape import ModelShape
from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure
from qwenbench.engine.leftovers import find_leftovers, remove_leftover
from qwenbench.engine.server import Launcher
from qwenbench.errors import RunError, UsageError
from qwenbench.load.client_error import ClientError, measure_client_error
from qwenbench.load.run import LoadClient
from qwenbench.masking import Masker, masked
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.files import read_json
from qwenbench.runfolder.lock import RunLock
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.card_lock import card_locks
from qwenbench.sweep.environment import Environment
from qwenbench.sweep.hardware import Hardware, budget_note, budgeted
from qwenbench.sweep.launch_run import LaunchRun
from qwenbench.sweep.model_files import find_shape
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.preflight import Preflight
from qwenbench.sweep.progress import Progress
from qwenbench.sweep.recorder import Recorder
from qwenbench.sweep.repeating import next_repeats
from qwenbench.sweep.run_json import begin, finish
from qwenbench.sweep.slots import Slot, cards_of, slots_for
from qwenbench.sweep.timings import Timings

_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended."""

    cells: int
    cells_done: int
    failures: dict[str, Failure]
    interrupted: bool
    cells_without_answer: int = 0
    """Load points of which every request failed."""

    @property
    def exit_status(self) -> int:
        """0 done; 1 some cells failed; 2 nothing could run; 130 interrupted."""
        if self.interrupted:
            return 130
        if self.cells_done == 0:
            return 2
        whole = self.cells_done >= self.cells and not self.failures and not self.cells_without_answer
        return 0 if whole else 1


@dataclass(frozen=True)
class _Job:
    configuration: Configuration
    launch: int
    cells: tuple[Cell, ...]


async def run_sweep(
    plan: Plan,
    paths: RunPaths,
    description: dict[str, Any],
    launcher: Launcher,
    hardware: Hardware,
    progress: Progress,
    headers: Mapping[str, str],
    takeover: bool = False,
) -> SweepOutcome:
    """Runs what is not finished yet.

    Raises UsageError when nothing could be started, or the folder belongs to someone else or to another plan;
    RunError when the folder can no longer be written.
    """
    slots = slots_for(plan, hardware)
    resumed = paths.run_json.exists()
    if not resumed:
        await _check(plan, launcher, slots)  # before the run has a folder
    with card_locks(cards_of(slots, hardware)), RunLock(paths.lock, takeover=takeover):
        meta = begin(paths, description)
        await _end_leftovers(paths, progress)
        if resumed:
            await _check(plan, launcher, slots)  # not earlier: our own leftover may have held the port
        if hardware.note and not launcher.simulated:
            progress.note(f"{hardware.note}: VRAM, power and energy columns stay empty.")
        recorder = Recorder(paths, tuple(plan.options.vary))
        async with _environment(
            plan, paths, str(meta["run_id"]), launcher, hardware, recorder, progress, headers
        ) as env:
            jobs = _pending(plan, recorder)
            cells = plan.cells()
            progress.plan(len(cells), sum(recorder.is_done(cell) for cell in cells))
            failures = await _run_all(env, jobs, slots)
            done = sum(recorder.is_done(cell) for cell in cells)
            recorder.write_points()
            recorder.write_summary()
            _finish(paths, meta, env, interrupted=env.stop.is_set())
            unanswered = sum(not point["requests_ok"] for point in recorder.points)
            return SweepOutcome(len(cells), done, failures, env.stop.is_set(), unanswered)


@asynccontextmanager
async def _environment(
    plan: Plan,
    paths: RunPaths,
    run_id: str,
    launcher: Launcher,
    hardware: Hardware,
    recorder: Recorder,
    progress: Progress,
    headers: Mapping[str, str],
) -> AsyncIterator[Environment]:
    stop = asyncio.Event()
    shape = _shape_of(plan)
    async with AsyncExitStack() as stack:
        stack.enter_context(_stopping_signals(stop))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Environment(
            plan=plan,
            run_id=run_id,
            paths=paths,
            launcher=launcher,
            hardware=hardware,
            recorder=recorder,
            progress=progress,
            http=http,
            stop=stop,
            client_error=_remembered(measure_client_error),
            timings=Timings(),
            preflight=Preflight(plan, launcher.name, hardware, shape),
            shape=shape,
            headers=headers,
            nonce=uuid.uuid4().hex[:8],
        )


def resolve_headers(options: SweepOptions) -> dict[str, str]:
    """Header name -> value from the environment. Raises UsageError for a variable that is not set."""
    headers = {name: _from_environment(variable, "--header-env") for name, variable in options.header_env.items()}
    if options.bearer_env is not None:
        headers["Authorization"] = "Bearer " + _from_environment(options.bearer_env, "--api-key-env")
    return headers


def _from_environment(variable: str, option: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise UsageError(f"{option}: the environment variable {variable} is not set.")
    return value


@contextmanager
def _stopping_signals(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the sweep in good order; a second one ends it at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            os._exit(130)  # the servers' supervisors see that we are gone and end them
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _remembered(
    measure: Callable[[int], Awaitable[ClientError | None]],
) -> Callable[[int], Awaitable[ClientError | None]]:
    """Asks once per concurrency and run."""
    known: dict[int, ClientError | None] = {}

    async def ask(concurrency: int) -> ClientError | None:
        if concurrency not in known:
            known[concurrency] = await measure(concurrency)
        return known[concurrency]

    return ask


def _shape_of(plan: Plan) -> ModelShape | None:
    server = plan.configurations[0].server
    return find_shape(server.model, server.docker.cache_mount)


async def _end_leftovers(paths: RunPaths, progress: Progress) -> None:
    """A qwenbench that was killed may have left its server: it is this run's, so it is ended before going on."""
    for leftover in find_leftovers(paths.root):
        progress.note(f"ending what an interrupted qwenbench left: {leftover}")
        await remove_leftover(leftover)


async def _check(plan: Plan, launcher: Launcher, slots: Sequence[Slot]) -> None:
    """Raises UsageError for what can be known to be impossible on any of the places for servers."""
    for slot in slots[: len(plan.configurations) * plan.options.relaunch_repeats]:
        await launcher.check(slot.place(plan.configurations[0].server))


def _pending(plan: Plan, recorder: Recorder) -> list[_Job]:
    jobs = []
    for configuration, launch in plan.launches():
        cells = [Cell(configuration.config_id, launch, point) for point in plan.points]
        pending = tuple(cell for cell in cells if not recorder.is_done(cell))
        if not pending:  # --until-ci may have been stopped between two repeats
            more = next_repeats(plan, recorder.points, configuration.config_id, launch)
            pending = tuple(Cell(configuration.config_id, launch, point) for point in more)
        if pending:
            jobs.append(_Job(configuration, launch, pending))
    return jobs


async def _run_all(env: Environment, jobs: list[_Job], slots: Sequence[Slot]) -> dict[str, Failure]:
    """Runs the jobs, one per slot of cards at a time; the cells of a launch never split."""
    failures: dict[str, Failure] = {}
    waiting = iter(jobs)

    async def work(slot: Slot) -> None:
        async with LoadClient() as client:
            for job in waiting:
                if env.stop.is_set():
                    return
                placed = slot.place(job.configuration.server)
                # what a launch watches is its own cards: a neighbour's memory is none of its business
                own = replace(env, hardware=env.hardware.only([card.uuid for card in placed.cards]))
                server = budgeted(placed, env.plan.options, own.hardware)
                outcome = await LaunchRun(own, job.configuration, server, job.launch, client).run(job.cells)
                if outcome.failure is not None:
                    failures[job.configuration.config_id] = outcome.failure

    for note in _told_beforehand(env, slots):
        env.note(note)
    try:
        async with asyncio.TaskGroup() as tasks:
            for slot in slots:
                tasks.create_task(work(slot))
    except ExceptionGroup as group:
        raise _told(group.exceptions[0], env.paths) from group
    return failures


def _told_beforehand(env: Environment, slots: Sequence[Slot]) -> list[str]:
    budget = budget_note(env.plan.options, env.hardware)
    shared = f"{len(slots)} configurations at a time shared this host" if len(slots) > 1 else None
    return [note for note in (budget, shared) if note is not None]


def _told(error: Exception, paths: RunPaths) -> Exception:
    """What ended the sweep, as the user is told it: a full disk is no traceback."""
    if not isinstance(error, OSError) or error.errno not in _DISK_TROUBLE:
        return error
    where = error.filename or paths.root
    return RunError(f"{where}: {error.strerror}. Finished cells are safe: make room, then --resume {paths.root}.")


def _finish(paths: RunPaths, meta: dict[str, Any], env: Environment, interrupted: bool) -> None:
    versions = {**meta["versions"], "vllm": _vllm_version(env) or meta["versions"]["vllm"]}
    timings = [*(meta.get("timings") or []), env.timings.to_json()]
    finished = None if interrupted else time.strftime("%Y-%m-%dT%H:%M:%S%z")
    notes = [*meta.get("notes", ()), *(masked(note, Masker.from_environment()) for note in env.notes)]
    finish(paths, meta, versions=versions, timings=timings, finished=finished, notes=notes)


def _vllm_version(env: Environment) -> str | None:
    """As the first server's log says it."""
    for file in sorted(env.paths.servers.glob("*/memory.json")):
        version = read_json(file).get("vllm_version")
        if version:
            return str(version)
    return None

"""One launch of one configuration: start, ledger, its cells, stop, VRAM given back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from qwenbench.analysis.intervals import relative_half_width
from qwenbench.analysis.machines import machine_of
from qwenbench.analysis.run import grouped
from qwenbench.bounded_http import Questions
from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure, LaunchError, no_answer
from qwenbench.engine.launch_record import write_launch_record
from qwenbench.engine.log_lines import LogReader, StartPhases
from qwenbench.engine.server import STOP_GRACE_S, Server
from qwenbench.engine.startup_log_reader import read_startup_log
from qwenbench.load.clients import Client
from qwenbench.observe.ledger import MemoryLedger, build_ledger, with_cache_labels
from qwenbench.observe.metrics import scrape
from qwenbench.observe.nvml import VramPhases, wait_drained
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.files import write_json
from qwenbench.sweep.context import SweepContext
from qwenbench.sweep.endurance import Endurance
from qwenbench.sweep.hardware import budgeted, largest, versions_here
from qwenbench.sweep.load_point import PointMeter
from qwenbench.sweep.model_files import served_layout
from qwenbench.sweep.probing import says_simulated, server_version
from qwenbench.sweep.ready_server import ReadyServer, TextChecks, loads_of, must_answer, request_tokens
from qwenbench.sweep.record import CellResult, keep_earlier_log
from qwenbench.sweep.requests import Until
from qwenbench.sweep.slots import Slot
from qwenbench.sweep.text_checks import check_texts

_HANGING_GRACE_S = 2.0
"""A server that hangs has so long to end in order."""
ALIVE_EVERY_S = 0.25
"""How often a server under load is looked at."""
START_TOLD_EVERY_S = 1.0
VRAM_LIMIT_S = 120.0
"""Longest wait for VRAM to be given back after a stop."""
MOST_REPEATS = 20
"""Of one load point under --until-ci."""


@dataclass(frozen=True)
class Launch:
    """A launch that is to be made, and the cells that it still has to measure."""

    configuration: Configuration
    number: int
    """1 for the configuration's first launch."""
    cells: tuple[Cell, ...]


class Course(Protocol):
    """What is measured in a launch, one load point after the other, by what the earlier ones gave."""

    def ready(self, seconds: float) -> None:
        """The server answers, so long after its start."""

    def next(self) -> Cell | None:
        """The next load point; None ends the launch."""

    def until(self, cell: Cell) -> Until | None:
        """When this point ends; None: as the plan's options say."""

    def done(self, cell: Cell, result: CellResult) -> None:
        """It is measured and on disk."""


class ListedCells:
    """A sweep's course: the launch's cells as they are listed, then what --until-ci adds to them."""

    def __init__(self, sweep: SweepContext, launch: Launch) -> None:
        self._sweep = sweep
        self._launch = launch
        self._pending = list(launch.cells)

    def ready(self, seconds: float) -> None:
        """Nothing depends on it."""

    def next(self) -> Cell | None:
        """The next listed cell, or another repeat."""
        if not self._pending:
            launch = self._launch
            self._pending = next_repeats(self._sweep, launch.configuration.config_id, launch.number)
            self._sweep.schedule.add(self._pending)
        return self._pending.pop(0) if self._pending else None

    def until(self, cell: Cell) -> Until | None:
        return None

    def done(self, cell: Cell, result: CellResult) -> None:
        """Nothing depends on it."""


@dataclass(frozen=True)
class LaunchOutcome:
    cells_done: int
    failure: Failure | None = None
    interrupted: bool = False


class LaunchRun:
    """Makes one launch and measures its cells. One object per launch; `run` is called once."""

    def __init__(
        self, sweep: SweepContext, launch: Launch, slot: Slot, client: Client, course: Course | None = None
    ) -> None:
        """`course`: the launch's cells when left out. Raises UsageError when --card's budget cannot be kept there."""
        self._sweep = sweep
        self._course = course or ListedCells(sweep, launch)
        self._launch = launch
        self._configuration = launch.configuration
        placed = slot.place(launch.configuration.server)
        # what a launch watches is its own cards: a neighbour's memory is none of its business
        self._hardware = sweep.site.hardware.only([card.uuid for card in placed.cards])
        self._server_config = budgeted(placed, sweep.plan.options, self._hardware)
        self._client = client
        self._folder = sweep.paths.server(launch.configuration.config_id, launch.number)

    async def run(self) -> LaunchOutcome:
        """Starts the server, measures the cells and stops it again, whatever happens in between."""
        sweep = self._sweep
        self._folder.mkdir(parents=True, exist_ok=True)
        keep_earlier_log(self._folder)
        refusal = self._preflight()
        if refusal is not None:
            return self._failed(refusal, 0)
        ours = sweep.site.launcher.starts_servers
        sweep.schedule.launching(self._configuration.config_id, self._launch.number)
        if ours:
            sweep.progress.launching(self._configuration, self._launch.number)
        # a server that runs already holds its memory: what was used before it is not known
        before = self._hardware.used_mib() if ours else {}
        began_ns = time.time_ns()
        try:
            with sweep.timings.phase("start"):
                server = await sweep.site.launcher.launch(self._server_config, self._folder, sweep.run_id)
        except LaunchError as error:
            return self._failed(error.failure, 0)
        self._complete_launch_record(server, began_ns)
        done = 0
        failure: Failure | None = None
        ledger: MemoryLedger | None = None
        try:
            with sweep.timings.phase("start"):
                seconds = await self._until_ready(server)
            if ours:
                sweep.progress.ready(self._configuration, seconds)
            ready = await self._look_at(server, seconds if ours else None, before)
            self._course.ready(seconds)
            ledger = ready.ledger
            beyond = Endurance(sweep, server, ready, self._client)
            with sweep.timings.phase("prefill_cost"):
                await beyond.before_points()
            must_answer(ready.questions)
            done, failure = await self._measure_all(server, ready)
            if failure is None and not sweep.stop.is_set():
                with sweep.timings.phase("endurance"):
                    failure = await beyond.after_points()
        except LaunchError as error:
            failure = error.failure
        finally:
            with sweep.timings.phase("stop"):
                hangs = failure is not None and failure.kind == "no_answer"
                await server.stop(_HANGING_GRACE_S if hangs else STOP_GRACE_S)
        with sweep.timings.phase("vram_gate"):
            # after Ctrl-C no launch follows that could need the memory
            if ours and not sweep.stop.is_set():
                await self._wait_given_back(before)
        if ledger is not None:
            after = largest(self._hardware.used_mib()) if ours and not sweep.stop.is_set() else None
            vram = replace(ledger.vram, peak_mib=self._peak_mib(), after_mib=after)
            self._write_ledger(replace(ledger, vram=vram))
        if failure is not None and not sweep.stop.is_set():
            return self._failed(failure, done)
        return LaunchOutcome(done, interrupted=sweep.stop.is_set())

    def _preflight(self) -> Failure | None:
        """Writes prediction.json, tells known problems, and says why not to launch at all."""
        found = self._sweep.preflight.check(self._server_config)
        if found.prediction is not None:
            write_json(self._folder / "prediction.json", found.prediction)
        if found.unknown is not None and found.unknown not in self._sweep.notes:
            self._sweep.note(found.unknown)
        for problem in found.problems:
            self._sweep.note(f"{problem.text} (source: {problem.source})", self._configuration.config_id)
        return None if self._sweep.plan.options.force else found.refusal()

    async def _until_ready(self, server: Server) -> float:
        """Seconds from launch to ready; ends early when the user stops the sweep."""
        ready = asyncio.ensure_future(server.wait_ready(self._sweep.plan.options.startup_timeout_s))
        stopped = asyncio.ensure_future(self._sweep.stop.wait())
        telling = asyncio.ensure_future(self._tell_start(server))
        try:
            await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return await ready
            raise LaunchError(Failure("interrupted", "stopped by the user while starting", ""))
        finally:
            for task in (ready, stopped, telling):
                task.cancel()
            await asyncio.gather(ready, stopped, telling, return_exceptions=True)

    async def _tell_start(self, server: Server) -> None:
        began, phases = time.monotonic(), StartPhases(LogReader(server.log_path))
        while True:
            await asyncio.sleep(START_TOLD_EVERY_S)
            self._sweep.progress.starting(self._configuration, time.monotonic() - began, phases.now())

    async def _look_at(self, server: Server, startup_s: float | None, before: Mapping[str, float]) -> ReadyServer:
        """Reads the start-up log and /metrics, and asks the server what the load needs to know."""
        sweep = self._sweep
        options, ours = sweep.plan.options, sweep.site.launcher.starts_servers
        if ours:
            server.limit.restart(min(options.timeout_s, options.startup_timeout_s))
        questions = Questions(sweep.http, server.base_url, sweep.headers, server.limit)
        if ours and not sweep.site.simulated and says_simulated(await server_version(questions)):
            sweep.found_simulated()
            self._write_launch_record(server)
        startup = read_startup_log(server.log_path)
        reading = await scrape(questions)
        if reading is None:
            sweep.note(f"{server.base_url}/metrics gives nothing of vLLM's: KV, queue and prefix columns stay empty.")
        labels = reading.cache_config if reading else {}
        startup = with_cache_labels(startup, labels, self._server_config.max_model_len, sweep.site.vllm_version)
        layout = served_layout(sweep.shape, startup, labels, self._server_config.docker.cache_mount)
        ready_mib = largest(self._hardware.used_mib())
        if ready_mib is None and reading is not None:
            ready_mib = reading.values.get("vram_used_mib")  # the simulator's own
        ledger = build_ledger(
            startup,
            vram=VramPhases(before_mib=largest(before), ready_mib=ready_mib),
            cache_config=labels,
            layout=layout,
            cuda_total_gib=self._hardware.cuda_total_gib(),
            utilization=self._server_config.gpu_memory_utilization,
        )
        self._write_ledger(ledger)
        sweep.preflight.learn(startup)
        ready = ReadyServer(
            configuration=self._configuration,
            server_config=self._server_config,
            hardware=self._hardware,
            vram_before_mib=before,
            loads=await loads_of(sweep, self._configuration, questions, startup, server.gpu_pids()),
            questions=questions,
            startup_s=startup_s,
            ledger=ledger,
            layout=layout,
            own_pids=tuple(server.gpu_pids()),
            texts=TextChecks(),
            log_path=server.log_path if sweep.site.launcher.starts_servers else None,
            # of a server elsewhere only the client's host is known
            node=server.record.host if server.record.machine is not None else None,
            machine=server.record.machine,
        )
        with sweep.timings.phase("text_checks"):
            ready = replace(ready, request_tokens=await request_tokens(sweep, ready))
            ready = replace(ready, texts=await check_texts(sweep, ready, self._client))
        must_answer(questions)
        return ready

    async def _measure_all(self, server: Server, ready: ReadyServer) -> tuple[int, Failure | None]:
        """Measures cell after cell until all are done, the server fails or the user stops."""
        done = 0
        lost: Failure | None = None
        meter = PointMeter(self._sweep, ready, self._client)
        while (cell := self._course.next()) is not None:
            result = await self._measure_one(server, meter, cell)
            if self._sweep.stop.is_set():
                return done, None  # stopped by the user: nothing half-measured is kept
            if not server.alive() or result.engine_dead:
                return done, await server.failure("load", most_frequent_errors(result.requests))
            if result.silent_s is not None:
                return done, no_answer(result.silent_s, f"in {cell.cell_id}, nor to one for a single token afterwards")
            if result.lost is not None:
                lost = result.lost
                self._sweep.forget_client_errors()  # what sends the rest may be another
                self._sweep.note(f"{lost.evidence}. {lost.advice}")
                continue
            self._sweep.recorder.record(cell, result)
            self._sweep.schedule.cell_done(cell)
            self._sweep.progress.cell_done(cell, result.point)
            self._course.done(cell, result)
            done += 1
        return done, lost

    async def _measure_one(self, server: Server, meter: PointMeter, cell: Cell) -> CellResult:
        self._sweep.schedule.cell_started(cell)
        self._sweep.progress.cell_started(cell, len(self._sweep.recorder.points) + 1)
        halt = asyncio.Event()
        watching = asyncio.create_task(self._halt_when_over(server, halt))
        try:
            return await meter.measure(cell, halt, self._course.until(cell))
        finally:
            watching.cancel()

    async def _halt_when_over(self, server: Server, halt: asyncio.Event) -> None:
        """Ends a load as soon as the user stops the sweep or the server dies: nothing waits for time-outs."""
        while server.alive():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sweep.stop.wait(), ALIVE_EVERY_S)
                break
        halt.set()

    def _peak_mib(self) -> float | None:
        """Over all points of this launch, those from before a --resume included."""
        own = (self._configuration.config_id, self._launch.number)
        rows = (row for row in self._sweep.recorder.points if (row["config_id"], row["launch"]) == own)
        return max((row["vram_peak_mib"] for row in rows if row["vram_peak_mib"] is not None), default=None)

    async def _wait_given_back(self, before: dict[str, float]) -> None:
        nvml = self._hardware.nvml
        if nvml is None:
            return
        report = await wait_drained(nvml.used_mib, before, VRAM_LIMIT_S)
        if not report.drained:
            self._sweep.note(
                f"{self._configuration.config_id}: {max(report.left_mib.values()):.0f} MiB of VRAM were not given back "
                f"within {VRAM_LIMIT_S:.0f} s after the stop; the next launch starts all the same."
            )

    def _complete_launch_record(self, server: Server, began_ns: int) -> None:
        """Adds what the launcher cannot know: what was asked for, where, and the card whose budget counts."""
        card, hardware = self._hardware.card, self._hardware.to_json()
        server.record = replace(
            server.record,
            requested=dict(self._configuration.server.flags),
            card=card.name if card else None,
            started_ns=began_ns,
            hardware=hardware,
            versions=versions_here(self._hardware),
        )
        self._write_launch_record(server)

    def _write_launch_record(self, server: Server) -> None:
        simulated = self._sweep.site.simulated
        kind = "sim" if simulated else self._sweep.site.launcher.name
        server.record = replace(server.record, simulated=simulated, machine=machine_of(self._hardware.to_json(), kind))
        write_launch_record(self._folder, server.record, self._sweep.plan.options.header_env.values())
        self._sweep.launched()

    def _write_ledger(self, ledger: MemoryLedger) -> None:
        write_json(self._folder / "memory.json", ledger.to_json())

    def _failed(self, failure: Failure, done: int) -> LaunchOutcome:
        if failure.kind == "interrupted":
            return LaunchOutcome(done, interrupted=True)
        write_json(self._folder / "failure.json", failure.to_json())
        self._sweep.schedule.given_up(self._configuration.config_id, self._launch.number)
        self._sweep.progress.failed(self._configuration.config_id, failure)
        return LaunchOutcome(done, failure)


def next_repeats(sweep: SweepContext, config_id: str, launch: int) -> list[Cell]:
    """--until-ci: one more repeat of each load point of this launch whose 95 % interval is wider than asked for.

    Empty without --until-ci, and for points that have MOST_REPEATS already or whose rate is not known.
    """
    target = sweep.plan.options.until_ci
    if target is None:
        return []
    cells = ((Cell.of_row(row), row) for row in sweep.recorder.points)
    own = [(cell.point, row) for cell, row in cells if (cell.config_id, cell.launch) == (config_id, launch)]
    measured = grouped(own, lambda pair: replace(pair[0], repeat=1))
    more = []
    for point in sweep.plan.points:
        rows = [row for _, row in measured.get(point, ())] if point.repeat == 1 else []
        values = [float(row["output_tokens_per_s"]) for row in rows if row.get("output_tokens_per_s") is not None]
        if not values or len(rows) >= MOST_REPEATS:
            continue
        width = relative_half_width(values)
        if width is None or width > target:
            another = replace(point, repeat=max(int(row["repeat"]) for row in rows) + 1)
            more.append(Cell(config_id, launch, another))
    return more


def most_frequent_errors(requests: pa.Table) -> list[str]:
    """The three most frequent answers of a server to requests that failed; what the client saw is no answer."""
    rows = zip(requests["error"].to_pylist(), requests["error_detail"].to_pylist(), strict=True)
    counted = Counter(detail for error, detail in rows if detail and error in ("http_status", "stream_error"))
    return [detail for detail, _ in counted.most_common(3)]

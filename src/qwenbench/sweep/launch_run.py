"""One launch of one configuration: start, ledger, its cells, stop, VRAM given back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.failures import Failure, LaunchError
from qwenbench.engine.launch_record import write_launch_record
from qwenbench.engine.server import Server
from qwenbench.engine.startup_log import StartupLog, parse_startup_log
from qwenbench.load.run import LoadClient
from qwenbench.load.spec import Target
from qwenbench.observe.ledger import MemoryLedger, build_ledger
from qwenbench.observe.metrics import scrape
from qwenbench.observe.vram import VramPhases, wait_drained
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.runfolder.files import write_json
from qwenbench.sweep.environment import Environment
from qwenbench.sweep.hardware import largest
from qwenbench.sweep.measure import CellResult, ServerState, measure
from qwenbench.sweep.model_files import served_layout
from qwenbench.sweep.probing import chars_per_token, check_served, salt_mode, served_models
from qwenbench.sweep.repeating import next_repeats
from qwenbench.sweep.requests import ServerTraits
from qwenbench.sweep.text_checks import check_texts

ALIVE_EVERY_S = 0.25
"""How often a server under load is looked at."""
VRAM_LIMIT_S = 120.0
"""Longest wait for VRAM to be given back after a stop."""


@dataclass(frozen=True)
class LaunchOutcome:
    """How a launch went."""

    cells_done: int
    failure: Failure | None = None
    interrupted: bool = False
    vram_left_mib: float | None = None
    """Memory that was not given back within the limit."""


class LaunchRun:
    """Runs the pending cells of one launch. One object per launch; `run` is called once."""

    def __init__(
        self,
        environment: Environment,
        configuration: Configuration,
        server_config: ServerConfig,
        launch: int,
        client: LoadClient,
    ) -> None:
        self._env = environment
        self._configuration = configuration
        self._server_config = server_config
        self._launch = launch
        self._client = client
        self._folder = environment.paths.server(configuration.config_id, launch)

    async def run(self, cells: Sequence[Cell]) -> LaunchOutcome:
        """Starts the server, measures the cells and stops it again, whatever happens in between."""
        env = self._env
        self._folder.mkdir(parents=True, exist_ok=True)
        keep_earlier_log(self._folder)
        refusal = self._preflight()
        if refusal is not None:
            return self._failed(refusal, 0)
        env.progress.launching(self._configuration, self._launch)
        before = env.hardware.nvml.used_mib() if env.hardware.nvml else {}
        try:
            with env.timings.phase("start"):
                server = await env.launcher.launch(self._server_config, self._folder, env.run_id)
        except LaunchError as error:
            return self._failed(error.failure, 0)
        self._complete_launch_record(server)
        done = 0
        failure: Failure | None = None
        ledger: MemoryLedger | None = None
        try:
            with env.timings.phase("start"):
                startup_s = await self._until_ready(server)
            env.progress.ready(self._configuration, startup_s)
            state = await self._look_at(server, startup_s, before)
            ledger = state.ledger
            done, failure = await self._measure_all(server, state, cells)
        except LaunchError as error:
            failure = error.failure
        finally:
            with env.timings.phase("stop"):
                await server.stop()
        with env.timings.phase("vram_gate"):
            # after Ctrl-C no launch follows that could need the memory
            left = None if env.stop.is_set() else await self._given_back(before)
        if ledger is not None:
            nvml = None if env.stop.is_set() else env.hardware.nvml
            after = largest(nvml.used_mib()) if nvml else None
            vram = replace(ledger.vram, peak_mib=self._peak_mib(), after_mib=after)
            self._write_ledger(replace(ledger, vram=vram))
        if failure is not None and not env.stop.is_set():
            return replace(self._failed(failure, done), vram_left_mib=left)
        return LaunchOutcome(done, interrupted=env.stop.is_set(), vram_left_mib=left)

    def _preflight(self) -> Failure | None:
        """Writes prediction.json, tells known problems, and says why not to launch at all."""
        found = self._env.preflight.check(self._server_config)
        if found.prediction is not None:
            write_json(self._folder / "prediction.json", found.prediction)
        for problem in found.problems:
            self._env.note(f"{self._configuration.config_id}: {problem.text} (source: {problem.source})")
        return None if self._env.plan.options.force else found.refusal()

    async def _until_ready(self, server: Server) -> float:
        """Seconds from launch to ready; ends early when the user stops the sweep."""
        ready = asyncio.ensure_future(server.wait_ready(self._env.plan.options.startup_timeout_s))
        stopped = asyncio.ensure_future(self._env.stop.wait())
        try:
            await asyncio.wait({ready, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                return await ready
            raise LaunchError(Failure("interrupted", "stopped by the user while starting", ""))
        finally:
            for task in (ready, stopped):
                task.cancel()
            await asyncio.gather(ready, stopped, return_exceptions=True)

    async def _look_at(self, server: Server, startup_s: float, before: Mapping[str, float]) -> ServerState:
        """Reads the start-up log and /metrics, and asks the server what the load needs to know."""
        env = self._env
        startup = parse_startup_log(_read(server.log_path))
        reading = await scrape(env.http, server.base_url, env.headers)
        if reading is None:
            env.note(f"{server.base_url}/metrics gives nothing: KV, queue and prefix columns stay empty.")
        labels = reading.cache_config if reading else {}
        layout = served_layout(env.shape, startup, labels)
        ready_mib = largest(env.hardware.nvml.used_mib()) if env.hardware.nvml else None
        if ready_mib is None and reading is not None:
            ready_mib = reading.values.get("vram_used_mib")  # the simulator's own
        ledger = build_ledger(
            startup,
            vram=VramPhases(before_mib=largest(before), ready_mib=ready_mib),
            cache_config=labels,
            layout=layout,
            cuda_total_gib=env.hardware.cuda_total_gib(),
            utilization=self._server_config.gpu_memory_utilization,
        )
        self._write_ledger(ledger)
        env.preflight.learn(startup)
        traits = await self._traits(server, startup)
        target = Target(server.base_url, env.plan.options.endpoint, env.headers)
        with env.timings.phase("text_checks"):
            texts = await check_texts(env, self._configuration, target, traits, self._client)
        return ServerState(
            base_url=server.base_url,
            startup_s=startup_s,
            startup=startup,
            ledger=ledger,
            layout=layout,
            traits=traits,
            own_pids=tuple(server.gpu_pids()),
            vram_before_mib=before,
            server_config=self._server_config,
            texts=texts,
        )

    async def _traits(self, server: Server, startup: StartupLog) -> ServerTraits:
        env, options = self._env, self._env.plan.options
        model = self._server_config.served_model_name
        check_served(model, await served_models(env.http, server.base_url, env.headers), server.base_url)
        stretches = any(scenario.file.scenario.input_tokens for scenario in env.plan.scenarios.values())
        prompts = [prompt for scenario in env.plan.scenarios.values() for prompt in scenario.prompts]
        traits = ServerTraits(
            model=model,
            salt_mode=await salt_mode(env.http, server.base_url, env.headers, model, options.endpoint),
            judge_text=not dummy_weights(startup),
        )
        if not stretches or not prompts:
            return traits
        ratio = await chars_per_token(env.http, server.base_url, env.headers, model, prompts)
        return replace(traits, chars_per_token=ratio)

    async def _measure_all(
        self, server: Server, state: ServerState, cells: Sequence[Cell]
    ) -> tuple[int, Failure | None]:
        """Measures cell after cell until all are done, the server fails or the user stops."""
        done = 0
        pending = list(cells)
        while pending:
            cell = pending.pop(0)
            result = await self._measure_one(server, state, cell)
            if result is None:
                return done, None  # stopped by the user: nothing half-measured is kept
            if not server.alive() or result.engine_dead:
                return done, await server.failure("load")
            self._keep(cell, result)
            done += 1
            if not pending:
                pending = self._more_repeats()
        return done, None

    async def _measure_one(self, server: Server, state: ServerState, cell: Cell) -> CellResult | None:
        env = self._env
        env.progress.cell_started(cell, len(env.recorder.points) + 1)
        target = Target(server.base_url, env.plan.options.endpoint, env.headers)
        halt = asyncio.Event()
        watching = asyncio.create_task(self._halt_when_over(server, halt))
        try:
            result = await measure(env, self._configuration, state, cell, target, self._client, halt)
        finally:
            watching.cancel()
        return None if env.stop.is_set() else result

    async def _halt_when_over(self, server: Server, halt: asyncio.Event) -> None:
        """Ends a load as soon as the user stops the sweep or the server dies: nothing waits for time-outs."""
        while server.alive():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._env.stop.wait(), ALIVE_EVERY_S)
                break
        halt.set()

    def _keep(self, cell: Cell, result: CellResult) -> None:
        self._env.recorder.record(
            cell, result.point, result.requests, result.samples.metrics, result.samples.nvml, result.texts
        )
        self._env.progress.cell_done(cell, result.point)

    def _peak_mib(self) -> float | None:
        """Over all points of this launch, those from before a --resume included."""
        own = (self._configuration.config_id, self._launch)
        rows = (row for row in self._env.recorder.points if (row["config_id"], row["launch"]) == own)
        return max((row["vram_peak_mib"] for row in rows if row["vram_peak_mib"] is not None), default=None)

    def _more_repeats(self) -> list[Cell]:
        """--until-ci: another repeat of each load point whose interval is still too wide."""
        points: list[LoadPoint] = next_repeats(
            self._env.plan, self._env.recorder.points, self._configuration.config_id, self._launch
        )
        return [Cell(self._configuration.config_id, self._launch, point) for point in points]

    async def _given_back(self, before: dict[str, float]) -> float | None:
        nvml = self._env.hardware.nvml
        if nvml is None:
            return None
        report = await wait_drained(nvml.used_mib, before, VRAM_LIMIT_S)
        if report.drained:
            return None
        left = max(report.left_mib.values())
        self._env.note(
            f"{self._configuration.config_id}: {left:.0f} MiB of VRAM were not given back within "
            f"{VRAM_LIMIT_S:.0f} s after the stop; the next launch starts all the same."
        )
        return left

    def _complete_launch_record(self, server: Server) -> None:
        """Adds what the launcher cannot know: what was asked for, and the card whose budget counts."""
        card = self._env.hardware.card
        requested = dict(self._configuration.server.flags)
        server.record = replace(server.record, requested=requested, card=card.name if card else None)
        write_launch_record(self._folder, server.record, self._env.plan.options.header_env.values())

    def _write_ledger(self, ledger: MemoryLedger) -> None:
        write_json(self._folder / "memory.json", ledger.to_json())

    def _failed(self, failure: Failure, done: int) -> LaunchOutcome:
        if failure.kind == "interrupted":
            return LaunchOutcome(done, interrupted=True)
        write_json(self._folder / "failure.json", failure.to_json())
        self._env.progress.failed(self._configuration.config_id, failure)
        return LaunchOutcome(done, failure)


def keep_earlier_log(folder: Path) -> None:
    """A resumed configuration is launched again: its earlier log stays beside the new one, its failure goes."""
    log = folder / "server.log"
    if log.exists():
        log.rename(folder / f"server.{time.strftime('%Y%m%d-%H%M%S')}.log")
    (folder / "failure.json").unlink(missing_ok=True)


def dummy_weights(startup: StartupLog) -> bool:
    """Whether the log says that the weights are random: then the text means nothing and is not judged."""
    return str(startup.requested.get("load_format", "")).lower() == "dummy"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""

"""The driver's side: a sweep whose launches are made on nodes. It alone writes the run folder.

A launch that is lost with its node goes on elsewhere with the cells that it still lacks.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import orjson

from qwenbench.cluster.fleet import Fleet, LostError, News, Placed, Task, card_name
from qwenbench.engine.failures import Failure, failure_of
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.runfolder.files import write_bytes
from qwenbench.runfolder.journal import parse_entry
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.launch import Launch
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.progress import Live, Progress
from qwenbench.sweep.record import Site, finish, keep_earlier_log
from qwenbench.sweep.slots import Slot
from qwenbench.sweep.sweep import Sweep
from qwenbench.sweep.text_checks import canaries_beside_the_first

MOST_LOSSES = 3
"""Losses of one launch without a finished cell between them: then it may be the launch that kills the nodes."""
_CAPACITY_S = 10.0
"""How often the cluster is asked whether more can run side by side."""


@dataclass(frozen=True)
class Outcome:
    """How a launch on the cluster ended; without a failure its cells are there, or the user stopped it."""

    failure: Failure | None = None


class ClusterSweep(Sweep):
    """A sweep over the nodes of a cluster, all of one kind of card."""

    def __init__(
        self, plan: Plan, paths: RunPaths, site: Site, progress: Progress, fleet: Fleet, about: Mapping[str, Any],
        stop: asyncio.Event,
    ) -> None:  # fmt: skip
        """`about`: what run.json says of the cluster and its kind of node (`address`, `on`, `hardware`); `stop` ends it
        in good order: its owner listens to signals. Raises UsageError as Sweep."""
        super().__init__(plan, paths, site, progress)
        self.stop = stop
        self.fleet = fleet
        self._about = about

    def add_clients(self, launch: Launch, clients: Sequence[Mapping[str, Any]]) -> None:
        """Keeps for run.json which nodes have sent a launch's load (--client remote)."""
        made = {"config_id": launch.configuration.config_id, "launch": launch.number}
        self._meta["clients"] = [*(self._meta.get("clients") or []), *({**made, **client} for client in clients)]

    def _signals(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def _check(self, slots: Sequence[Slot]) -> None:
        """The nodes were looked at before."""

    async def _run(self, meta: dict[str, Any], slots: Sequence[Slot]) -> Any:
        hardware = self._about["hardware"]
        driver = next((gpu["driver"] for gpu in hardware["gpus"]), None)
        if self.recorder.points and card_name(meta["hardware"]) != card_name(hardware):
            raise UsageError(
                f"--resume {self.paths.root}: it was measured on {card_name(meta['hardware'])}, these nodes have "
                f"{card_name(hardware)}: figures of unlike cards do not go into one run. Start a new one."
            )
        versions = {**meta["versions"], "driver": driver}
        cluster = {name: self._about[name] for name in ("address", "on")}
        finish(self.paths, meta, cluster=cluster, hardware=hardware, versions=versions)
        return await super()._run(meta, slots)

    def _close(self, meta: dict[str, Any]) -> None:
        for told in canaries_beside_the_first(self.paths, [one.config_id for one in self.plan.configurations]):
            self.note(told)
        super()._close(meta)

    async def _run_all(self, slots: Sequence[Slot], launches: Sequence[Launch]) -> dict[str, Failure]:
        """Gives the launches to the cluster in their order, as many at a time as it can hold."""
        for told in self.plan.notes:
            self.note(told)
        failures: dict[str, Failure] = {}
        waiting = list(reversed(launches))
        running: dict[asyncio.Task[Outcome], Launch] = {}
        try:
            while running or (waiting and not self.stop.is_set()):
                while waiting and not self.stop.is_set() and len(running) < max(1, self.fleet.capacity()):
                    launch = waiting.pop()
                    running[asyncio.create_task(RemoteLaunch(self, launch).run())] = launch
                ended, _ = await asyncio.wait(running, timeout=_CAPACITY_S, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    launch, outcome = running.pop(task), task.result()
                    if outcome.failure is not None:
                        failures[launch.configuration.config_id] = outcome.failure
        except Exception as error:
            raise self._explained(error) from error
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return failures


class RemoteLaunch:
    """One launch, on as many nodes as it takes. One object per launch; `run` is called once."""

    def __init__(self, sweep: ClusterSweep, launch: Launch) -> None:
        self._sweep = sweep
        self._launch = launch
        self._configuration = launch.configuration
        self._folder = sweep.paths.server(launch.configuration.config_id, launch.number)
        self._finished = 0
        """Cells that this launch has handed over."""
        self._lost = 0
        """How often it was lost."""
        self._node = ""

    async def run(self) -> Outcome:
        """Has the launch made, and made again where its node is lost."""
        config_id, losses, finished = self._configuration.config_id, 0, 0
        while not self._sweep.stop.is_set():
            placed = self._sweep.fleet.place(self._task())
            try:
                return await self._follow(placed)
            except LostError as lost:
                losses = 1 if self._finished > finished else losses + 1
                finished = self._finished
                self._lost += 1
                told = f"{config_id}: launch {self._launch.number} was lost on {self._node or 'its node'}"
                self._sweep.note(f"{told} ({self._lost}): {lost}; placed again")
                if losses >= MOST_LOSSES:
                    failure = Failure("node_lost", f"lost {losses} times in a row: {lost}", _ADVICE, phase="load")
                    return self._failed(failure)
            finally:
                await placed.release()
        return Outcome()

    def _task(self) -> Task:
        plan = replace(self._sweep.plan, configurations=(self._configuration,))
        entries = self._sweep.recorder.entries_of(self._configuration.config_id, self._launch.number)
        lines = b"".join(entry.line() + b"\n" for entry in entries)
        return Task(self._sweep.run_id, self._launch.number, pickle.dumps(plan), lines)

    async def _follow(self, placed: Placed) -> Outcome:
        """Takes over what the node finishes until it is done. Raises LostError."""
        sweep = self._sweep
        starting, stopped = asyncio.ensure_future(placed.placed()), asyncio.ensure_future(sweep.stop.wait())
        try:
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                return Outcome()  # stopped while it waited for a place
            self._node = await starting
            keep_earlier_log(self._folder)
            stopping = asyncio.ensure_future(self._stop_when_asked(placed))
            try:
                while True:
                    news = await placed.news()
                    self._take(news)
                    if news.result is not None:
                        return self._outcome(news.result)
            finally:
                stopping.cancel()
        finally:
            starting.cancel()
            stopped.cancel()

    async def _stop_when_asked(self, placed: Placed) -> None:
        await self._sweep.stop.wait()
        await placed.stop()

    def _take(self, news: News) -> None:
        for event in news.events:
            self._replay(event)
        cell = None
        if news.cell is not None:
            entry = parse_entry(news.cell)
            cell = Cell.of_row(entry.point)
            if self._sweep.recorder.is_done(cell):
                return  # handed over twice
            self._sweep.recorder.take(entry, news.files)
        else:
            for name, data in news.files.items():
                write_bytes(self._sweep.paths.root / name, data)
        if any(name.endswith("/launch.json") for name in news.files):
            self._sweep.launched()
        if cell is not None:
            self._finished += 1
            self._sweep.schedule.cell_done(cell)
            self._sweep.progress.cell_done(cell, entry.point)

    def _replay(self, event: Mapping[str, Any]) -> None:
        """What the sweep on the node told, told here."""
        sweep, configuration = self._sweep, self._configuration
        match event["event"]:
            case "launching":
                sweep.schedule.launching(configuration.config_id, self._launch.number)
                sweep.progress.launching(configuration, self._launch.number)
            case "starting":
                sweep.progress.starting(configuration, event["seconds"], event["phase"])
            case "ready":
                sweep.progress.ready(configuration, event["seconds"])
            case "cell_started":
                cell = self._cell(event)
                sweep.schedule.add([cell])
                sweep.schedule.cell_started(cell)
                sweep.progress.cell_started(cell, len(sweep.recorder.points) + 1)
            case "live":
                sweep.progress.live(self._cell(event), Live(**event["live"]))
            case "note":
                sweep.note(event["text"])

    def _cell(self, event: Mapping[str, Any]) -> Cell:
        return Cell(self._configuration.config_id, self._launch.number, LoadPoint(**event["point"]))

    def _outcome(self, result: Mapping[str, Any]) -> Outcome:
        """Raises LostError when the shard's process did not end by itself."""
        if "lost" in result:
            raise LostError(result["lost"])
        if "error" in result:
            return self._failed(Failure("node", str(result["error"]), "", phase="start"))
        self._sweep.timings.add(result["timings"])
        self._sweep.add_clients(self._launch, result["clients"])
        for profile, (cut, answers) in result["cut_answers"].items():
            before, all_before = self._sweep.cut_answers.get(profile, (0, 0))
            self._sweep.cut_answers[profile] = (before + cut, all_before + answers)
        if result["failure"] is not None and not self._sweep.stop.is_set():
            return self._failed(failure_of(result["failure"]))
        return Outcome()

    def _failed(self, failure: Failure) -> Outcome:
        write_bytes(self._folder / "failure.json", orjson.dumps(failure.to_json(), option=orjson.OPT_INDENT_2) + b"\n")
        self._sweep.schedule.given_up(self._configuration.config_id, self._launch.number)
        self._sweep.progress.failed(self._configuration.config_id, failure)
        return Outcome(failure)


_ADVICE = "Look at that node (dmesg, Ray's logs), then --resume."

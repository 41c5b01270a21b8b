"""A sweep: a plan that is run launch after launch, cell after cell, into a run folder that survives anything."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from qwenbench.engine.failures import Failure
from qwenbench.engine.leftovers import find_leftovers, remove_leftover
from qwenbench.engine.readiness import port_in_use
from qwenbench.engine.startup_log_reader import read_startup_log
from qwenbench.load.clients import Client
from qwenbench.masking import masked
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.damage import object_or_none
from qwenbench.runfolder.files import disk_trouble, remove_unfinished
from qwenbench.runfolder.lock import RunLock
from qwenbench.sweep.context import SweepContext
from qwenbench.sweep.hardware import budget_note
from qwenbench.sweep.launch import Launch, LaunchRun, next_repeats
from qwenbench.sweep.progress import Schedule, expected
from qwenbench.sweep.record import Recorder, begin, describe, finish, launches_of, masker_of
from qwenbench.sweep.slots import Slot, card_locks, cards_of, slots_for
from qwenbench.workload.profiles import find_profile

PORT_LIMIT_S = 10.0
"""Longest wait for the port of a server that an interrupted run left."""


@dataclass(frozen=True)
class SweepOutcome:
    """How a sweep ended."""

    cells: int
    cells_done: int
    failures: dict[str, Failure]
    interrupted: bool
    cells_without_answer: int = 0
    """Load points of which every request failed."""
    cells_invalid: int = 0
    """Load points that were measured and cannot be used."""

    @property
    def exit_status(self) -> int:
        """0 done; 1 some cells failed, or not one point is valid; 2 nothing could run; 130 interrupted.

        Some invalid points among valid ones are told, and are no failure: a busy moment of the client spoils a point,
        and a repeat makes up for it.
        """
        if self.interrupted:
            return 130
        if self.cells_done == 0:
            return 2
        whole = self.cells_done >= self.cells and not self.failures and not self.cells_without_answer
        return 0 if whole and self.cells_invalid < self.cells_done else 1


class Sweep(SweepContext):
    """One run of a plan into a folder. `run` is called once."""

    async def run(self, command_line: Sequence[str]) -> SweepOutcome:
        """Runs what is not finished yet.

        Raises UsageError when nothing could be started, or the folder belongs to someone else or to another plan;
        RunError when the folder can no longer be written.
        """
        hardware = self.site.hardware
        slots = slots_for(self.plan, hardware)
        resumed = self.paths.run_json.exists()
        if not resumed:
            await self._check(slots)  # before the run has a folder
        with (
            card_locks(cards_of(slots, hardware)),
            RunLock(self.paths.lock, takeover=self.plan.options.force),
            self._signals(),
        ):
            meta = self._meta = begin(self.paths, describe(self.plan, self.run_id, self.site, command_line))
            self.run_id = str(meta["run_id"])
            self.site.launcher.simulated |= bool(meta["simulated"])
            await self._end_leftovers()
            remove_unfinished(self.paths.root)
            if resumed:
                await self._check(slots)  # not earlier: our own leftover may have held the port
            if hardware.note and not self.site.simulated:
                self.progress.note(f"{hardware.note}: VRAM, power and energy columns stay empty.")
            self.recorder = Recorder(self.paths, tuple(self.plan.options.vary))
            self._learn_from_earlier_starts()
            async with AsyncExitStack() as stack:
                self.http = await stack.enter_async_context(aiohttp.ClientSession())
                return await self._run(meta, slots)

    async def _run(self, meta: dict[str, Any], slots: Sequence[Slot]) -> SweepOutcome:
        cells = self.plan.cells()
        launches = self._pending()
        pending = [cell for launch in launches for cell in launch.cells]
        done = sum(self.recorder.is_done(cell) for cell in cells)
        self.schedule = Schedule(pending, done, expected(self.plan, self.site.launcher.name), len(slots))
        self.progress.plan(self.schedule)
        failures = await self._run_all(slots, launches)
        done = sum(self.recorder.is_done(cell) for cell in cells)
        self._close(meta)
        return SweepOutcome(
            cells=len(cells),
            cells_done=done,
            failures=failures,
            interrupted=self.stop.is_set(),
            cells_without_answer=sum(not point["requests_ok"] for point in self.recorder.points),
            cells_invalid=sum(not point["valid"] for point in self.recorder.points),
        )

    def _close(self, meta: dict[str, Any]) -> None:
        """What is derived from all points together, and the end of run.json."""
        self.recorder.write_points()
        self.recorder.write_summary()
        self._tell_cut_answers()
        self._finish(meta)

    def _learn_from_earlier_starts(self) -> None:
        """A resumed run has seen servers start: what the plan refused by their logs is refused again."""
        for log in sorted(self.paths.servers.glob("*/server.log")):
            self.preflight.learn(read_startup_log(log))

    def _tell_cut_answers(self) -> None:
        """Answers that reached their limit while still thinking: their TTFO is empty. Told once, for the whole run."""
        for profile, (cut, answers) in sorted(self.cut_answers.items()):
            if not cut:
                continue
            advice = (
                "raise --output-tokens, or choose an instruct profile, to measure whole answers"
                if find_profile(profile).enable_thinking
                else "the profile asks for no thinking, so the model thinks all the same, or its thoughts never end "
                "(weights of --load-format dummy)"
            )
            self.note(
                f"profile {profile}: {cut} of {answers} answers reached their output limit while still thinking, so "
                f"they have no TTFO; {advice}"
            )

    async def _run_all(self, slots: Sequence[Slot], launches: Sequence[Launch]) -> dict[str, Failure]:
        """Runs the launches, one per slot of cards at a time; the cells of a launch never split."""
        failures: dict[str, Failure] = {}
        waiting = iter(launches)

        async def work(slot: Slot, client: Client) -> None:
            for launch in waiting:
                if self.stop.is_set():
                    return
                outcome = await LaunchRun(self, launch, slot, client).run()
                if outcome.failure is not None:
                    failures[launch.configuration.config_id] = outcome.failure

        await self._side_by_side(slots, work)
        return failures

    async def _side_by_side(
        self, slots: Sequence[Slot], work: Callable[[Slot, Client], Coroutine[Any, Any, None]]
    ) -> None:
        """Does the work on every slot at a time, each with a load generator of its own."""

        async def one(slot: Slot) -> None:
            async with self.clients.client() as client:
                await work(slot, client)

        for told in self.plan.notes:
            self.note(told)
        budget = budget_note(self.plan.options, self.site.hardware)
        if budget is not None:
            self.note(budget)
        if len(slots) > 1:
            self.note(f"{len(slots)} configurations at a time shared this host")
        try:
            async with asyncio.TaskGroup() as tasks:
                for slot in slots:
                    tasks.create_task(one(slot))
        except ExceptionGroup as group:
            raise self._explained(group.exceptions[0]) from group

    def _pending(self) -> list[Launch]:
        launches = []
        for configuration, number in self.plan.launches():
            cells = [Cell(configuration.config_id, number, point) for point in self.plan.points]
            pending = tuple(cell for cell in cells if not self.recorder.is_done(cell))
            if not pending:  # --until-ci may have been stopped between two repeats
                pending = tuple(next_repeats(self, configuration.config_id, number))
            if pending:
                launches.append(Launch(configuration, number, pending))
        return launches

    async def _check(self, slots: Sequence[Slot]) -> None:
        """Raises UsageError for what can be known to be impossible on any of the places for servers."""
        first = self.plan.configurations[0].server
        for slot in slots[: len(list(self.plan.launches()))]:
            await self.site.launcher.check(slot.place(first))

    async def _end_leftovers(self) -> None:
        """A qwenbench that was killed may have left its server: it is this run's, so it is ended before going on."""
        for leftover in find_leftovers(self.paths.root):
            self.progress.note(f"ending what an interrupted qwenbench left: {leftover}")
            await remove_leftover(leftover)
            await self._port_given_back()

    async def _port_given_back(self) -> None:
        """A process can be gone while its last thread still holds the port: `_check` would take it for a stranger's."""
        server = self.plan.configurations[0].server
        deadline = time.monotonic() + PORT_LIMIT_S
        while port_in_use(server.host, server.port) and time.monotonic() < deadline:  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.05)

    def _signals(self) -> AbstractContextManager[None]:
        """Who listens to signals while it runs."""
        return stopping_signals(self.stop)

    def _explained(self, error: Exception) -> Exception:
        """What ended the sweep, as the user is told it: a full disk is no traceback."""
        return disk_trouble(error, self.paths.root) or error

    def _finish(self, meta: dict[str, Any]) -> None:
        interrupted = self.stop.is_set()
        if self.clients.cluster is not None:
            meta["cluster"] = {"address": self.clients.cluster, "on": None}
        masker = masker_of(self.plan.options)
        finish(
            self.paths,
            meta,
            versions={**meta["versions"], "vllm": self._vllm_version() or meta["versions"]["vllm"]},
            timings=[*(meta.get("timings") or []), self.timings.to_json()],
            finished=None if interrupted else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            launches=launches_of(self.paths),
            clients=[*(meta.get("clients") or []), *self.clients.to_json()],
            notes=[*meta.get("notes", ()), *(masked(note, masker) for note in self.notes)],
        )

    def _vllm_version(self) -> str | None:
        """As the first server's log says it."""
        for file in sorted(self.paths.servers.glob("*/memory.json")):
            version = (object_or_none(file, "it is not asked for vLLM's version") or {}).get("vllm_version")
            if version:
                return str(version)
        return None


@contextmanager
def stopping_signals(stop: asyncio.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop`, which ends a sweep in good order; a second one ends the process at once."""
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

"""What a sweep tells while it runs, how far it is and how long the rest may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.sweep.plan import Plan

Phase = Literal[
    "start", "stop", "vram_gate", "warm_up", "load", "self_check", "text_checks", "prefill_cost", "endurance"
]


class Timings:
    """Seconds by phase, added up over the run: what remains beside servers and load is qwenbench's own overhead."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Counts the block's wall time to this phase."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.monotonic() - began

    def add(self, phases: Mapping[str, float]) -> None:
        """Adds what another process counted (its `to_json`)."""
        for name, seconds in phases.items():
            if name not in ("wall", "overhead"):
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def to_json(self) -> dict[str, float]:
        """Seconds by phase, with `wall` and `overhead` = wall minus all phases (side by side runs: not below 0)."""
        wall = time.monotonic() - self._began
        overhead = max(0.0, wall - sum(self._seconds.values()))
        rounded = {name: round(seconds, 3) for name, seconds in self._seconds.items()}
        return {**rounded, "wall": round(wall, 3), "overhead": round(overhead, 3)}


@dataclass(frozen=True, slots=True)
class Expected:
    """What a launch and each load point are expected to take before any was timed, in seconds."""

    launch_s: float
    point_s: Callable[[LoadPoint], float]


class Schedule:
    """The cells that a sweep has still to do, and how long they will take by what was timed so far.

    What was expected is held against what was timed, for each load by itself, so that one slow start or one short
    point does not speak for all the others.
    """

    def __init__(
        self,
        pending: Sequence[Cell],
        done: int,
        expected: Expected,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
        open_end: bool = False,
    ) -> None:
        """`done` cells are there already; `slots` launches run side by side; `open_end`: nobody knows how many come."""
        self._open_end = open_end
        self.done = done
        self._pending = list(pending)
        self._given_up = 0
        self._expected = expected
        self._slots = slots
        self._clock = clock
        self._launched: dict[tuple[str, int], float] = {}
        self._starts_s: list[float] = []
        self._began: dict[Cell, float] = {}
        self._measuring: set[tuple[str, int]] = set()
        """Launches that have begun their first cell."""
        self._timed: dict[str, list[tuple[float, float]]] = {}
        """Load -> (expected, timed) of each of its cells."""

    @property
    def cells(self) -> int:
        """All cells, the finished ones included."""
        return self.done + len(self._pending) + self._given_up

    def add(self, cells: Sequence[Cell]) -> None:
        """More cells than were planned (--until-ci)."""
        self._pending += [cell for cell in cells if cell not in self._pending]

    def launching(self, config_id: str, launch: int) -> None:
        self._launched[config_id, launch] = self._clock()

    def cell_started(self, cell: Cell) -> None:
        """A cell begins; the first one of a launch ends its start."""
        now = self._clock()
        began = self._launched.get((cell.config_id, cell.launch))
        own = (cell.config_id, cell.launch)
        if began is not None and own not in self._measuring:
            self._starts_s.append(now - began)
        self._measuring.add(own)
        self._began[cell] = now

    def cell_done(self, cell: Cell) -> None:
        self.done += 1
        if cell in self._pending:
            self._pending.remove(cell)
        began = self._began.pop(cell, None)
        if began is not None:
            pair = (self._expected.point_s(cell.point), self._clock() - began)
            self._timed.setdefault(cell.point.load_name, []).append(pair)

    def given_up(self, config_id: str, launch: int) -> None:
        """A launch ended before its cells were done: they are not waited for."""
        left = [cell for cell in self._pending if (cell.config_id, cell.launch) != (config_id, launch)]
        self._given_up += len(self._pending) - len(left)
        self._pending = left

    def seconds_left(self) -> float | None:
        """Starts, warm-ups and load points still to come; None before the first cell was timed."""
        if not self._timed or self._open_end:
            return None
        now = self._clock()
        points = sum(self._cell_s(cell, now) for cell in self._pending)
        to_come = {(cell.config_id, cell.launch) for cell in self._pending} - self._launched.keys()
        start = sum(self._starts_s) / len(self._starts_s) if self._starts_s else self._expected.launch_s
        return (points + start * len(to_come)) / max(1, min(self._slots, len(to_come) + 1))

    def _cell_s(self, cell: Cell, now: float) -> float:
        pairs = self._timed.get(cell.point.load_name) or [pair for load in self._timed.values() for pair in load]
        expected, timed = (sum(values) for values in zip(*pairs, strict=True))
        whole = self._expected.point_s(cell.point) * (timed / expected if expected > 0 else 1.0)
        began = self._began.get(cell)
        return whole if began is None else max(0.0, whole - (now - began))

    def __str__(self) -> str:
        if self._open_end:
            return f"point {self.done}"
        left = self.seconds_left()
        return f"{self.done}/{self.cells} points" + ("" if left is None else f", {duration(left)} left")


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# start + stop of one server, seconds: 134-222 s were recorded for new capture sizes
_LAUNCH_S = {"docker": 180.0, "process": 180.0, "sim": 2.0, "url": 0.0}
# ms per output token of one stream at so many streams, as recorded on an H200 (captured batches)
_STREAMS = (1, 16, 64, 128, 256)
_ITL_MS = (4.4, 5.2, 8.1, 13.0, 26.0)
_FIRST_TOKEN_S = 0.25


def expected(plan: Plan, launcher: str) -> Expected:
    """What this plan's launches and points are expected to take, from recorded speeds: never for a result."""
    return Expected(_LAUNCH_S.get(launcher, 180.0), lambda point: _point_seconds(plan, point))


def estimated_seconds(plan: Plan, launcher: str, cells: Sequence[Cell]) -> float:
    """Launches, warm-ups and load points of these cells together, in seconds: for --dry-run."""
    guess = expected(plan, launcher)
    launches = {(cell.config_id, cell.launch) for cell in cells}
    return len(launches) * guess.launch_s + sum(guess.point_s(cell.point) for cell in cells)


def _point_seconds(plan: Plan, point: LoadPoint) -> float:
    scenario = plan.scenarios[point.scenario].file.scenario
    lengths = scenario.output_tokens
    tokens = lengths.median or (lengths.min + lengths.max) / 2
    if plan.options.duration_s is not None:
        return plan.options.duration_s + 5.0
    if plan.trace:
        return plan.trace[-1].start_s + 10.0
    streams = point.concurrency or 16
    rounds = scenario.request_count(streams) / streams
    per_request = _FIRST_TOKEN_S + tokens * float(np.interp(streams, _STREAMS, _ITL_MS)) / 1000
    return rounds * per_request * 1.3 + 2.0


@dataclass(frozen=True, slots=True)
class Live:
    """The current point, about once a second. None: not known."""

    phase: str
    """`warm-up` or `load`."""
    done: int
    total: int | None
    failed: int
    in_flight: int
    output_tokens_per_s: float | None
    ttft_ms: float | None
    running: float | None
    waiting: float | None
    kv_cache_usage: float | None
    vram_mib: float | None


class Progress(Protocol):
    """Listens to a sweep."""

    def plan(self, schedule: Schedule) -> None:
        """What there is to do. The sweep keeps the schedule up to date."""

    def launching(self, configuration: Configuration, launch: int) -> None:
        """A server is being started."""

    def starting(self, configuration: Configuration, seconds: float, phase: str | None) -> None:
        """About once a second while it starts: how long it takes so far, and what its log says that it does."""

    def ready(self, configuration: Configuration, seconds: float) -> None:
        """It answers."""

    def cell_started(self, cell: Cell, number: int) -> None:
        """A load point begins (its warm-up first)."""

    def live(self, cell: Cell, live: Live) -> None:
        """How the point goes."""

    def cell_done(self, cell: Cell, point: Mapping[str, Any]) -> None:
        """A load point is on disk."""

    def failed(self, config_id: str, failure: Failure) -> None:
        """A configuration failed; the sweep goes on."""

    def note(self, text: str) -> None:
        """Something worth a line."""

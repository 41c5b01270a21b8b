"""A campaign over many nodes in virtual time: does the driver keep them busy, and what does it cost the driver?

    .venv/bin/python bench/cluster_scale.py [--launches 200] [--nodes 40] [--failing 0.05]

The real driver (cluster/driver.py, with its journal, files and points.csv on disk) over nodes that only wait: a start
of 150 to 250 s, load points of 20 to 60 s, all in virtual time. Some of the nodes fail for good at random moments.
Prints one JSON object: makespan against its bound, launches placed again, the driver's CPU time and memory.

The bound is the time at which the nodes that were left have had as many seconds as the work takes, what was lost with
failed nodes counted in, plus the longest launch (Graham's bound for lists, R. L. Graham, SIAM J. Appl. Math. 17, 1969).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import random
import resource
import selectors
import tempfile
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
from rich.console import Console

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.cli.live_view import PlainLines
from qwenbench.cluster.driver import ClusterSweep
from qwenbench.cluster.fleet import LostError, News, Placed, Task
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan, make_plan
from qwenbench.sweep.record import find_site

T = TypeVar("T")
START_S, POINT_S = (150.0, 250.0), (20.0, 60.0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer as soon as there is nothing else to do."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        """Virtual seconds."""
        return self.now


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self._loop.now += timeout
        return ready


def run_virtually(work: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """Runs a coroutine in virtual time; its value, and how many virtual seconds it took."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work), loop.now
    finally:
        loop.close()


class SimulatedFleet:
    """Nodes with one card each that do nothing but take their time; a failing one is gone for good."""

    def __init__(self, nodes: int, seed: int, failures: Sequence[float] = ()) -> None:
        """`failures`: the seconds after which nodes fail, one each."""
        self.random = random.Random(seed)
        self.alive = nodes
        self.free = asyncio.Queue[int]()
        for number in range(nodes):
            self.free.put_nowait(number)
        loop = asyncio.get_running_loop()
        self.failed = {number: loop.create_future() for number in range(nodes)}
        for number, after in zip(self.random.sample(range(nodes), len(failures)), failures, strict=True):
            loop.call_later(after, self._fail, number)
        self.worked_s = self.lost_s = self.longest_s = 0.0
        self.seconds: list[float] = []
        """When nodes failed."""
        self.placements = 0

    def _fail(self, number: int) -> None:
        self.alive -= 1
        self.seconds.append(asyncio.get_running_loop().time())
        self.failed[number].set_result(None)

    def capacity(self) -> int:
        """See Fleet."""
        return self.alive

    def place(self, task: Task) -> Placed:
        """See Fleet."""
        self.placements += 1
        return SimulatedLaunch(self, task)

    def dooms(self, task: Task) -> bool:
        """Whether this launch is lost wherever it is placed."""
        return False


class SimulatedLaunch:
    """One launch on a simulated node."""

    def __init__(self, fleet: SimulatedFleet, task: Task) -> None:
        self._fleet = fleet
        self._doomed = fleet.dooms(task)
        plan: Plan = pickle.loads(task.plan)
        done = {orjson.loads(line)["cell"] for line in task.journal.splitlines()}
        cells = [Cell(plan.configurations[0].config_id, task.launch, point) for point in plan.points]
        self._cells = [cell for cell in cells if cell.cell_id not in done]
        self._node: int | None = None
        self._stopped = False
        self._began = self._kept = 0.0

    async def placed(self) -> str:
        """See Placed."""
        while self._node is None:
            node = await self._fleet.free.get()
            if not self._fleet.failed[node].done():
                self._node = node
        self._began = self._kept = asyncio.get_running_loop().time()
        await self._work(START_S)
        if self._doomed:
            raise LostError("the launch killed its node's worker")
        return f"node-{self._node}"

    async def news(self) -> News:
        """See Placed."""
        if not self._cells or self._stopped:
            self._keep()
            self._fleet.longest_s = max(self._fleet.longest_s, asyncio.get_running_loop().time() - self._began)
            result: dict[str, Any] = {"failure": None, "interrupted": self._stopped, "timings": {}}
            result |= {"cut_answers": {}, "clients": []}
            return News(None, {}, (), result)
        cell = self._cells.pop(0)
        await self._work(POINT_S)
        self._keep()
        row: dict[str, Any] = dict.fromkeys(COLUMN_NAMES)
        row |= {"config_id": cell.config_id, "launch": cell.launch, "scenario": cell.point.scenario, "valid": True}
        row |= {"profile": cell.point.profile, "concurrency": cell.point.concurrency, "repeat": cell.point.repeat}
        row |= {"requests_ok": 16, "output_tokens_per_s": self._fleet.random.gauss(1000.0, 20.0), "simulated": True}
        entry = Entry(cell.cell_id, cell.config_id, cell.launch, row, 0)
        return News(entry.line(), {f"servers/{cell.config_id}/samples/{cell.cell_id}.nvml.parquet": bytes(20_000)})

    async def stop(self) -> None:
        """See Placed."""
        self._stopped = True

    async def release(self) -> None:
        """See Placed."""
        if self._node is not None and not self._fleet.failed[self._node].done():
            self._fleet.free.put_nowait(self._node)

    def _keep(self) -> None:
        now = asyncio.get_running_loop().time()
        self._fleet.worked_s += now - self._kept
        self._kept = now

    async def _work(self, seconds: tuple[float, float]) -> None:
        assert self._node is not None
        failed = self._fleet.failed[self._node]
        await asyncio.wait({failed}, timeout=self._fleet.random.uniform(*seconds))
        if failed.done():
            self._fleet.lost_s += asyncio.get_running_loop().time() - self._kept
            raise LostError("the node failed")


def campaign(launches: int) -> Plan:
    """So many launches of 8 load points each."""
    captures = tuple(8 * number for number in range(1, launches // 5 + 1))
    options = SweepOptions(
        launcher="sim", capture=captures, concurrency=(1, 8, 32, 64), scenario=("math", "code"), relaunch_repeats=5
    )
    return make_plan(options)


def bound_s(fleet: SimulatedFleet, nodes: int) -> float:
    """See the module's text; seconds."""
    work, alive, now = fleet.worked_s + fleet.lost_s, nodes, 0.0
    for second in [*fleet.seconds, float("inf")]:
        if work <= alive * (second - now):
            return now + work / alive + fleet.longest_s
        work -= alive * (second - now)
        alive, now = alive - 1, second
    raise AssertionError("no node is left")


async def run_campaign(plan: Plan, nodes: int, failing: int, seed: int, folder: Path) -> tuple[SimulatedFleet, Any]:
    """The driver over simulated nodes, in the running loop's time."""
    expected_s = len(list(plan.launches())) * (np.mean(START_S) + len(plan.points) * np.mean(POINT_S)) / nodes
    moments = sorted(random.Random(seed).uniform(0.0, float(expected_s)) for _ in range(failing))
    fleet = SimulatedFleet(nodes, seed, moments)
    site = find_site(plan.options)
    about = {"address": "nowhere", "on": "simulated", "hardware": site.hardware.to_json()}
    with (folder / "log").open("w") as log:
        progress = PlainLines(Console(file=log, width=200))
        sweep = ClusterSweep(plan, RunPaths(folder / "r"), site, progress, fleet, about, asyncio.Event())
        return fleet, await sweep.run(["bench/cluster_scale.py"])


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--launches", type=int, default=200)
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--failing", type=float, default=0.05, help="share of the nodes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    plan = campaign(given.launches)
    with tempfile.TemporaryDirectory() as name:
        began, cpu = time.perf_counter(), time.process_time()
        failing = round(given.failing * given.nodes)
        work = run_campaign(plan, given.nodes, failing, given.seed, Path(name))
        (fleet, outcome), makespan = run_virtually(work)
        cells = [entry.cell for entry in Journal(RunPaths(Path(name) / "r").journal).entries()]
    bound = bound_s(fleet, given.nodes)
    found = {
        "launches": len(list(plan.launches())), "cells": len(cells), "cells_twice": len(cells) - len(set(cells)),
        "cells_missing": outcome.cells - outcome.cells_done, "nodes": given.nodes, "failed_nodes": len(fleet.seconds),
        "placements": fleet.placements, "makespan_s": round(makespan), "bound_s": round(bound),
        "makespan_of_bound": round(makespan / bound, 3), "lost_node_s": round(fleet.lost_s),
        "driver_wall_s": round(time.perf_counter() - began, 1), "driver_cpu_s": round(time.process_time() - cpu, 1),
        "driver_cpu_share": round((time.process_time() - cpu) / makespan, 5),
        "driver_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()

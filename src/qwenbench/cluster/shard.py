"""`python -m qwenbench.cluster.shard FOLDER RUN LAUNCH`: one launch on a node, as a sweep into a run folder there.

It is the sweep that a user would start on that machine, cut down to one launch. The actor beside it (node.py) hands the
finished cells to the driver.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pickle
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from qwenbench.cluster.node import EVENTS, RESULT, TASK
from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure
from qwenbench.engine.readiness import port_in_use
from qwenbench.errors import RunError, UsageError
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.files import write_json
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.launch import Launch
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.progress import Live, Progress, Schedule
from qwenbench.sweep.record import Site, find_site
from qwenbench.sweep.sweep import Sweep

_PORTS = 200
"""Ports after the asked one that are tried: other launches of this node have theirs there."""


class ShardSweep(Sweep):
    """A sweep of one launch. What is derived from all points of a run is the driver's to derive."""

    def __init__(self, plan: Plan, paths: RunPaths, site: Site, progress: Progress, number: int) -> None:
        super().__init__(plan, paths, site, progress)
        self._number = number

    def _pending(self) -> list[Launch]:
        return [launch for launch in super()._pending() if launch.number == self._number]

    def _close(self, meta: dict[str, Any]) -> None:
        self._finish(meta)


class EventLog:
    """A Progress that writes what it is told as lines of JSON; the driver replays them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def plan(self, schedule: Schedule) -> None:
        """The driver has its own."""

    def launching(self, configuration: Configuration, launch: int) -> None:
        """See Progress."""
        self._tell("launching")

    def starting(self, configuration: Configuration, seconds: float, phase: str | None) -> None:
        """See Progress."""
        self._tell("starting", seconds=seconds, phase=phase)

    def ready(self, configuration: Configuration, seconds: float) -> None:
        """See Progress."""
        self._tell("ready", seconds=seconds)

    def cell_started(self, cell: Cell, number: int) -> None:
        """See Progress."""
        self._tell("cell_started", point=asdict(cell.point))

    def live(self, cell: Cell, live: Live) -> None:
        """See Progress."""
        self._tell("live", point=asdict(cell.point), live=asdict(live))

    def cell_done(self, cell: Cell, point: Mapping[str, Any]) -> None:
        """The journal says it."""

    def failed(self, config_id: str, failure: Failure) -> None:
        """The result says it."""

    def note(self, text: str) -> None:
        """See Progress."""
        self._tell("note", text=text)

    def _tell(self, event: str, **fields: Any) -> None:
        self._file.write(orjson.dumps({"event": event, **fields}) + b"\n")


@contextmanager
def own_port(first: int) -> Iterator[int]:
    """A port that is this process' alone while the block runs: the first free one from `first` on.

    Several launches on one machine each look for theirs; a lock a port keeps two of them apart.
    Raises UsageError when none is free.
    """
    for port in range(first, first + _PORTS):
        path = Path(tempfile.gettempdir()) / f"qwenbench-port-{port}-{os.getuid()}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not port_in_use("127.0.0.1", port):
                yield port
                return
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
    raise UsageError(f"--port {first}: no port from there to {first + _PORTS - 1} is free on this node.")


def run_shard(folder: Path, run_id: str, number: int, command_line: Sequence[str]) -> dict[str, Any]:
    """Runs the launch; what RESULT shall hold. Raises UsageError and RunError as a sweep does."""
    plan: Plan = pickle.loads((folder / TASK).read_bytes())
    (configuration,) = plan.configurations
    site = find_site(plan.options)
    with own_port(configuration.server.port) as port:
        placed = replace(configuration, server=replace(configuration.server, port=port))
        plan = replace(plan, configurations=(placed,), notes=())
        sweep = ShardSweep(plan, RunPaths(folder / run_id), site, EventLog(folder / EVENTS), number)
        outcome = _run(sweep, command_line)
    failure = outcome.failures.get(configuration.config_id)
    return {
        "failure": None if failure is None else failure.to_json(),
        "interrupted": outcome.interrupted,
        "timings": sweep.timings.to_json(),
        "cut_answers": sweep.cut_answers,
    }


def _run(sweep: ShardSweep, command_line: Sequence[str]) -> Any:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(sweep.run(command_line))
    return uvloop.run(sweep.run(command_line))


def main(words: Sequence[str]) -> int:
    """Runs the shard and writes its result; returns the exit status."""
    folder, run_id, number = Path(words[0]), words[1], int(words[2])
    try:
        result = run_shard(folder, run_id, number, ["qwenbench.cluster.shard", *words])
    except (UsageError, RunError) as error:
        result = {"error": str(error)}
    write_json(folder / RESULT, result)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

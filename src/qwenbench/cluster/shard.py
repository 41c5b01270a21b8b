"""`python -m qwenbench.cluster.shard FOLDER CLUSTER NODE`: one launch on a node, as a sweep into a run folder there.

It is the sweep that a user would start on that machine, cut down to one launch. The actor beside it (node.py) says when
it begins, and hands the finished cells to the driver.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pickle
import sys
import tempfile
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from qwenbench.cluster.fleet import Task
from qwenbench.cluster.node import BEGIN, EVENTS, RESULT, TASK
from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure
from qwenbench.engine.readiness import base_url, port_in_use
from qwenbench.errors import RunError, UsageError
from qwenbench.load.clients import Clients
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.files import write_json
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.launch import Launch
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.progress import Live, Progress, Schedule
from qwenbench.sweep.record import Site, find_site
from qwenbench.sweep.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from qwenbench.cluster.clients import RemoteClients

_PORTS = 200
"""Ports after the asked one that are tried: other launches of this node have theirs there."""


class ShardSweep(Sweep):
    """A sweep of one launch. What is derived from all points of a run is the driver's to derive."""

    def __init__(
        self, plan: Plan, paths: RunPaths, site: Site, progress: Progress, number: int, clients: Clients | None
    ) -> None:
        super().__init__(plan, paths, site, progress, clients)
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
def own_port(host: str, first: int) -> Iterator[int]:
    """A port of this machine's address `host` that is this process' alone while the block runs: the first free one from
    `first` on.

    Several launches on one machine each look for theirs; a lock a port keeps two of them apart.
    Raises UsageError when none is free.
    """
    for port in range(first, first + _PORTS):
        path = Path(tempfile.gettempdir()) / f"qwenbench-port-{port}-{os.getuid()}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not port_in_use(host, port):
                yield port
                return
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
    raise UsageError(f"--port {first}: no port from there to {first + _PORTS - 1} is free on this node.")


@dataclass(frozen=True)
class _Remote:
    """The load from another node (--client remote)."""

    clients: RemoteClients
    address: str
    """This node's, under which the other one reaches the server."""

    async def check(self, port: int) -> None:
        """Whether the way is open, before a server takes minutes to start. Raises UsageError."""
        async with await asyncio.start_server(lambda _, writer: writer.close(), self.address, port):
            await self.clients.check(base_url(self.address, port))


def _other_node(options: SweepOptions, cluster: str, own_id: str, turn: int) -> _Remote:
    """A node without cards, if there is one; launches take turns. Raises UsageError when there is no other node."""
    from qwenbench.cluster.clients import RayHost, RemoteClients
    from qwenbench.cluster.ray_fleet import connect, kinds_of, living_nodes

    ray = connect(cluster)
    nodes = {node["NodeID"]: node for node in living_nodes(ray)}
    own = nodes.pop(own_id)
    if not nodes:
        raise UsageError("--client remote: no other node is left that could send the load.")
    others = [nodes[name] for name in sorted(nodes)]
    others = [node for node in others if not kinds_of(node["Resources"])] or others
    clients = RemoteClients([RayHost(ray, others[turn % len(others)], options)], cluster)
    return _Remote(clients, own["NodeManagerAddress"])


def run_shard(folder: Path, cluster: str, node: str) -> dict[str, Any]:
    """Runs the launch; what RESULT shall hold. Raises UsageError and RunError as a sweep does."""
    task: Task = pickle.loads((folder / TASK).read_bytes())
    plan: Plan = pickle.loads(task.plan)
    run_id, number = task.run_id, task.launch
    (configuration,) = plan.configurations
    site = find_site(plan.options)
    turn = number + crc32(configuration.config_id.encode())
    remote = _other_node(plan.options, cluster, node, turn) if plan.options.client == "remote" else None
    host = configuration.server.host if remote is None else remote.address
    with own_port(host, configuration.server.port) as port:
        placed = replace(configuration, server=replace(configuration.server, host=host, port=port))
        plan = replace(plan, configurations=(placed,), notes=())
        clients = None if remote is None else remote.clients
        sweep = ShardSweep(plan, RunPaths(folder / run_id), site, EventLog(folder / EVENTS), number, clients)

        async def work() -> SweepOutcome:
            if remote is not None:
                await remote.check(port)
                sweep.note(remote.clients.told(), configuration.config_id)
            return await sweep.run([f"qwenbench.cluster.shard of {run_id}"])

        outcome = _run(work())
    failure = outcome.failures.get(configuration.config_id)
    if failure is not None and failure.kind == "client_lost" and remote is not None:
        return {"lost": failure.evidence}
    return {
        "failure": None if failure is None else failure.to_json(),
        "interrupted": outcome.interrupted,
        "timings": sweep.timings.to_json(),
        "cut_answers": sweep.cut_answers,
        "clients": sweep.clients.to_json(),
    }


def _run(work: Coroutine[Any, Any, SweepOutcome]) -> SweepOutcome:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def main(words: Sequence[str]) -> int:
    """Waits for the actor's word, runs the shard and writes its result; returns the exit status."""
    folder, cluster, node = words
    with (Path(folder) / BEGIN).open("rb", buffering=0) as actor:
        actor.read(1)
    try:
        result = run_shard(Path(folder), cluster, node)
    except (UsageError, RunError) as error:
        result = {"error": str(error)}
    write_json(Path(folder) / RESULT, result)
    return 1 if "error" in result else 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # all is on disk: the libraries' own ends would take half a second

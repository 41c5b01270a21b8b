"""A cluster of Ray's as a Fleet. The only module of the driver that knows Ray; nothing imports it without --cluster."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from qwenbench.cluster.fleet import LostError, News, Placed, Task
from qwenbench.cluster.node import LEASE_S, STOP_S, Node
from qwenbench.errors import RunError, UsageError

_ANSWER_S = 5.0
_CONNECT_S = 30.0
"""Longest wait for a Ray that answers at all; by itself Ray would try for minutes."""
NO_NODE_S = 600.0
"""Longest wait for a node of the kind when all of them are gone."""
_SILENCE_S = LEASE_S + STOP_S
"""A node that has not answered for so long is given up: by then its actor has ended what ran there."""
_TYPE = "accelerator_type:"


def import_ray() -> ModuleType:
    """Ray. Raises UsageError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise UsageError("--cluster needs Ray, which is not installed here: pip install 'qwenbench[ray]'.") from None
    return ray  # type: ignore[no-any-return]


def connect(address: str) -> ModuleType:
    """Connects this process to a running cluster. Raises UsageError: no Ray, or nothing that answers."""
    ray = import_ray()
    _refuse_silent(address)
    problem: list[BaseException] = []

    def init() -> None:
        try:
            ray.init(address=address, namespace="qwenbench", log_to_driver=False, logging_level="ERROR")
        except BaseException as error:  # also SystemExit, with which Ray gives up
            problem.append(error)

    thread = threading.Thread(target=init, daemon=True)
    thread.start()
    thread.join(_CONNECT_S)
    if thread.is_alive():
        raise UsageError(f"--cluster {address}: what is there does not answer as Ray does. Is it the port of its head?")
    if problem:
        words = " ".join(str(problem[0]).split())
        raise UsageError(f"--cluster {address}: {words[:300]}")
    return ray


def living_nodes(ray: ModuleType) -> list[dict[str, Any]]:
    """The nodes that are there, as ray.nodes() tells them."""
    return [node for node in ray.nodes() if node["Alive"]]


def _refuse_silent(address: str) -> None:
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme != "ray":
        raise UsageError(f"--cluster {address}: give auto, HOST:PORT of the cluster's head, or ray://HOST:PORT.")
    try:
        socket.create_connection((host, port), _ANSWER_S).close()
    except OSError as error:
        raise UsageError(
            f"--cluster {address}: nothing answers there ({error.strerror or error}). Is the head running "
            "(ray start --head), and the port open to this machine?"
        ) from None


@dataclass(frozen=True)
class Needs:
    """What one launch takes of a node, in Ray's resources."""

    resources: Mapping[str, float]

    def fits(self, node: Mapping[str, Any]) -> int:
        """How many such launches a node (an entry of ray.nodes()) holds."""
        total = node.get("Resources", {})
        return int(min(total.get(name, 0.0) / amount for name, amount in self.resources.items()))

    def options(self) -> dict[str, Any]:
        """As an actor asks for them."""
        own = {"CPU", "GPU"}
        return {
            "num_cpus": self.resources.get("CPU", 0),
            "num_gpus": self.resources.get("GPU", 0),
            "resources": {name: amount for name, amount in self.resources.items() if name not in own},
        }


def needs_of(kind: str | None, cards: int, simulated: bool, nodes: Sequence[Mapping[str, Any]]) -> Needs:
    """The resources of a launch on `cards` cards of a kind: the custom resource of that name, else Ray's own
    accelerator type, and GPUs where the nodes count them.

    Raises UsageError when no node has them, or none has as many.
    """
    offered = {name for node in nodes for name in node["Resources"]}
    needs: dict[str, float] = {}
    if kind is None:
        if "GPU" not in offered and not simulated:
            raise UsageError(
                "--cluster: no node has a GPU that Ray counts. Start its nodes with ray start --num-gpus N, or "
                "--resources '{\"KIND\": N}' and name KIND with --on."
            )
        needs = {"GPU": cards} if "GPU" in offered else {"CPU": 1}
    else:
        names = {one.lower().removeprefix(_TYPE): one for one in sorted(offered, reverse=True)}  # a custom one first
        name = names.get(kind.lower())
        if name is None:
            raise UsageError(f"--on {kind}: no node of the cluster has such a card ({_offer(offered)}).")
        needs = {name: 0.001 if name.startswith(_TYPE) else cards}
        if name.startswith(_TYPE) or any("GPU" in node["Resources"] for node in nodes if name in node["Resources"]):
            needs["GPU"] = cards
    found = Needs(needs)
    if not any(found.fits(node) for node in nodes):
        what = f"{cards} of them" if cards > 1 else "one"
        raise UsageError(f"--cluster: a launch needs {what} on one node ({_told(needs)}), and no node has as many.")
    return found


def kinds_of(resources: Iterable[str]) -> list[str]:
    """The kinds of card among Ray's resources."""
    plain = ("CPU", "memory", "object_store_memory")
    return sorted(name.removeprefix(_TYPE) for name in resources if name not in plain and not name.startswith("node:"))


def _offer(offered: set[str]) -> str:
    kinds = kinds_of(offered)
    return "there are: " + ", ".join(kinds) if kinds else "there is none: ray start --resources '{\"KIND\": N}'"


def _told(needs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in needs.items())


class RayFleet:
    """The nodes of a Ray cluster that have what a launch needs."""

    def __init__(self, ray: ModuleType, needs: Needs) -> None:
        self._ray = ray
        self._needs = needs
        self._warm: list[Any] = []

    def warm(self, launches: int) -> None:
        """Starts what so many launches will need before there is a server, as far as they find room: their processes
        import while the nodes are looked at. All of them have to be placed then; they hold their cards."""
        self._warm = [self._actor() for _ in range(min(launches, self.capacity()))]

    def _actor(self) -> Any:
        actor = self._ray.remote(Node).options(**self._needs.options(), max_restarts=0, max_concurrency=8).remote()
        actor.warm.remote()
        return actor

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes on which a launch fits, as ray.nodes() tells them."""
        return [node for node in living_nodes(self._ray) if self._needs.fits(node)]

    def capacity(self) -> int:
        """See Fleet."""
        return sum(self._needs.fits(node) for node in self.nodes())

    def place(self, task: Task) -> Placed:
        """See Fleet."""
        return RayPlaced(self, self._ray, self._warm.pop() if self._warm else self._actor(), task)


class RayPlaced:
    """One launch's actor, from its task to its end."""

    def __init__(self, fleet: RayFleet, ray: ModuleType, actor: Any, task: Task) -> None:
        self._fleet = fleet
        self._ray = ray
        self._received = 0
        self._task = task
        self._over = False
        self._actor = actor

    async def placed(self) -> str:
        """See Placed."""
        begun = asyncio.ensure_future(self._call("begin", self._task, limit_s=None))
        without_node = 0.0
        try:
            while not begun.done():
                began = time.monotonic()
                await asyncio.wait({begun}, timeout=_ANSWER_S)
                there = bool(begun.done() or await asyncio.to_thread(self._fleet.capacity))
                without_node = 0.0 if there else without_node + time.monotonic() - began
                if without_node > NO_NODE_S:
                    raise LostError(f"no node of the kind has come for {NO_NODE_S / 60:.0f} minutes")
            return await begun  # type: ignore[no-any-return]
        finally:
            begun.cancel()

    async def news(self) -> News:
        """See Placed."""
        news: News = await self._call("news", self._received, limit_s=_SILENCE_S)
        self._received += 1
        self._over = news.result is not None
        return news

    async def stop(self) -> None:
        """See Placed."""
        with contextlib.suppress(LostError):
            await self._call("stop", limit_s=_SILENCE_S)

    async def release(self) -> None:
        """See Placed."""
        with contextlib.suppress(Exception):
            if not self._over:
                self._ray.kill(self._actor)  # its supervisor ends what it ran
                return
            await asyncio.wait_for(self._actor.close.remote(), STOP_S)
            self._ray.kill(self._actor)

    async def _call(self, method: str, *arguments: Any, limit_s: float | None) -> Any:
        """One call of the actor. A connection that is broken for a while is tried again: calls can be repeated."""
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return await answer_of(self._ray, getattr(self._actor, method).remote(*arguments), left)
            except UnavailableError:
                if method == "begin":
                    raise
                await asyncio.sleep(1.0)
            except (RunError, UsageError) as error:
                raise LostError(f"its node could not go on: {error}") from error


class UnavailableError(LostError):
    """The connection to a node is broken for the moment."""


async def answer_of(ray: ModuleType, answer: Any, limit_s: float | None) -> Any:
    """What a node answers. Raises the UsageError or RunError that was raised there, and LostError for anything else."""
    errors = ray.exceptions
    try:
        return await asyncio.wait_for(answer, limit_s)
    except TimeoutError:
        raise LostError(f"its node has not answered for {limit_s or 0:.0f} s") from None
    except errors.ActorUnavailableError as error:
        raise UnavailableError(_words(error)) from error
    except errors.RayTaskError as error:
        if isinstance(error.cause, RunError | UsageError):
            raise error.cause from None
        raise LostError(f"its node could not go on: {_words(error.cause or error)}") from error
    except errors.RayError as error:
        raise LostError(_words(error)) from error


def pinned(remote: Any, node: Mapping[str, Any], **options: Any) -> Any:
    """A remote function or actor that runs on this node (an entry of ray.nodes()), whatever else runs there."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return remote.options(num_cpus=0, scheduling_strategy=strategy, **options)


def node_name(node: Mapping[str, Any]) -> str:
    """A node for people: HOST (ADDRESS)."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _words(error: BaseException) -> str:
    """The first sentence of what Ray says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "because" in line or "died" in line.lower()), lines[0] if lines else "")
    return (reason or type(error).__name__)[:240]

"""What passes between the driver and a launch on some node, and what the driver asks of a cluster.

No word of Ray: the driver is the same over ray_fleet.py and over simulated nodes (bench/cluster_scale.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """One launch of one configuration, as a node is told it. Opaque on its way: the node's shard process reads it."""

    run_id: str
    launch: int
    plan: bytes = field(repr=False)
    """The pickled Plan, with that configuration alone."""
    journal: bytes = field(repr=False)
    """The journal's lines of this launch's finished cells: what the shard goes on from."""


@dataclass(frozen=True, slots=True)
class News:
    """What came of a launch since the last news."""

    cell: bytes | None = field(repr=False)
    """The journal line of a cell that is finished on the node; its files are among `files`."""
    files: Mapping[str, bytes] = field(repr=False)
    """Path below the run folder -> contents: the cell's, and those of the launch's folder that changed."""
    events: tuple[Mapping[str, Any], ...] = ()
    """What the sweep on the node told (shard.EventLog)."""
    result: Mapping[str, Any] | None = None
    """How it ended (shard.main); None while it runs. The last news."""


class LostError(Exception):
    """The node, or the process that stood for it, is gone: what it had not handed over is lost."""


class Placed(Protocol):
    """A launch that was given to the cluster."""

    async def placed(self) -> str:
        """Waits for a free place, and begins; the node's name. Raises LostError, also when no place comes."""

    async def news(self) -> News:
        """What is new, after some seconds at most. Raises LostError."""

    async def stop(self) -> None:
        """Ends the launch in good order: its last news comes as usual."""

    async def release(self) -> None:
        """Gives its place back, whatever state it is in. Never fails."""


class Fleet(Protocol):
    """A cluster, seen by one run: places for launches of one kind."""

    def capacity(self) -> int:
        """Launches that the nodes which are there now can hold at a time."""

    def place(self, task: Task) -> Placed:
        """Asks for a place; does not wait."""


def card_name(hardware: Mapping[str, Any]) -> str:
    """The card of a node (run.json's `hardware`): figures of two names never go into one run."""
    gpus = hardware["gpus"]
    return str(gpus[0]["name"]) if gpus else str(hardware["card"] or "no card")

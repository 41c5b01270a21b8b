"""Places for servers: on several cards configurations run side by side, each on cards and a port of its own.

One sweep per card: two servers on one card would measure each other.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qwenbench.engine.cards import assign_cards, cards_named_by_user, cards_needed
from qwenbench.engine.config import AssignedCard, Gpu, ServerConfig
from qwenbench.errors import UsageError
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.plan import Plan


@dataclass(frozen=True)
class Slot:
    """One server at a time runs here."""

    number: int
    gpus: tuple[Gpu, ...] = ()
    """Its cards; empty when none are known: a server takes what it finds."""
    named: bool = False
    """Whether the server's own description names them, and nothing is added to it."""
    alone: bool = False
    """Whether the machine has no other cards."""

    def place(self, server: ServerConfig) -> ServerConfig:
        """The server on this slot's cards and port (the ports of further slots follow the first one's)."""
        placed = replace(server, port=server.port + self.number)
        if not self.gpus:
            return placed
        if self.named:
            return replace(placed, cards=tuple(AssignedCard(gpu.index, gpu.uuid, gpu.name) for gpu in self.gpus))
        return assign_cards(placed, self.gpus, others=not self.alone)


def slots_for(plan: Plan, hardware: Hardware) -> list[Slot]:
    """As many as the cards of --devices give for the widest configuration; without it one, on the first cards.

    Raises UsageError when a configuration needs more cards than were named.
    """
    devices = plan.options.devices
    if plan.options.attached:
        return [Slot(0, hardware.gpus, named=True)]  # all that were found are the server's
    servers = [configuration.server for configuration in plan.configurations]
    needed = max(map(cards_needed, servers))
    if not devices:
        return [_first_slot(plan.options.launcher, servers, needed, hardware)]
    count = len(devices) // needed
    if count == 0:
        raise UsageError(
            f"--devices {','.join(devices)}: a configuration needs {needed} cards "
            "(tensor x pipeline x data parallel). Name as many."
        )
    if not hardware.gpus:
        return [Slot(number) for number in range(count)]  # simulated cards
    alone = hardware.machine_gpus == 1
    return [
        Slot(number, hardware.gpus[number * needed : (number + 1) * needed], alone=alone) for number in range(count)
    ]


def _first_slot(launcher: str, servers: Sequence[ServerConfig], needed: int, hardware: Hardware) -> Slot:
    named = cards_named_by_user(servers[0], launcher, hardware.gpus)
    if named is not None:
        return Slot(0, tuple(named), named=True)
    if launcher not in ("process", "docker") or needed > len(hardware.gpus):
        return Slot(0)  # a simulated one, or one that spans several machines
    return Slot(0, hardware.gpus[:needed], alone=hardware.machine_gpus == 1)


def cards_of(slots: Sequence[Slot], hardware: Hardware) -> list[Gpu]:
    """The cards that a run occupies: those of its slots, all that may be used where a slot's are not known."""
    if not all(slot.gpus for slot in slots):
        return list(hardware.gpus)
    return [gpu for slot in slots for gpu in slot.gpus]


@contextmanager
def card_locks(gpus: Sequence[Gpu]) -> Iterator[None]:
    """Holds one lock per card, for all users of this machine; the kernel drops it with the process.

    Raises UsageError when another qwenbench measures on one of the cards.
    """
    handles: list[int] = []
    try:
        for gpu in gpus:
            handles.append(_take(gpu))
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _take(gpu: Gpu) -> int:
    path = Path(tempfile.gettempdir()) / f"qwenbench-{gpu.uuid}.lock"
    # readable is enough to lock: another user's file can be locked as well
    handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(
            f"card {gpu.index} ({gpu.name}): another qwenbench is measuring on it. Wait for it, or name another card "
            "with --devices."
        ) from None
    return handle

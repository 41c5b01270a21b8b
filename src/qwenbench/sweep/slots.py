"""Places for servers: on several cards configurations run side by side, each on cards and a port of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwenbench.engine.config import ServerConfig
from qwenbench.engine.devices import assign_devices, cards_needed
from qwenbench.errors import UsageError
from qwenbench.observe.nvml import Gpu
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.plan import Plan


@dataclass(frozen=True)
class Slot:
    """One server at a time runs here."""

    number: int
    gpus: tuple[Gpu, ...] | None
    """None: the user named no cards, so the server takes what it finds."""

    def place(self, server: ServerConfig) -> ServerConfig:
        """The server on this slot's cards and port (the ports of further slots follow the first one's)."""
        placed = replace(server, port=server.port + self.number)
        return placed if self.gpus is None else assign_devices(placed, self.gpus)


def slots_for(plan: Plan, hardware: Hardware) -> list[Slot]:
    """One slot without --devices; else as many as the cards give for the widest configuration.

    Raises UsageError when a configuration needs more cards than were named.
    """
    if not plan.options.devices:
        return [Slot(0, None)]
    needed = max(cards_needed(configuration.server) for configuration in plan.configurations)
    count = len(plan.options.devices) // needed
    if count == 0:
        raise UsageError(
            f"--devices {','.join(plan.options.devices)}: a configuration needs {needed} cards "
            "(tensor x pipeline x data parallel). Name as many."
        )
    if not hardware.gpus:
        return [Slot(number, None) for number in range(count)]  # simulated cards
    return [Slot(number, hardware.gpus[number * needed : (number + 1) * needed]) for number in range(count)]

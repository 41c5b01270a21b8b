"""The machine that a sweep runs on: its cards, and the budget of the card it shall stand for."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwenbench import __version__
from qwenbench.capacity.cards import Card, find_card, utilization_for_card
from qwenbench.capacity.settings import default_batched_tokens
from qwenbench.engine.cards import VISIBLE, chosen_cards, visible_cards
from qwenbench.engine.config import Gpu, ServerConfig
from qwenbench.errors import UsageError
from qwenbench.observe.cuda_driver import cuda_totals
from qwenbench.observe.nvml import Nvml, open_nvml
from qwenbench.sweep.options import SweepOptions


@dataclass(frozen=True)
class Hardware:
    """What was found. Without a GPU `nvml` is None and `note` says why."""

    gpus: tuple[Gpu, ...]
    """The cards that may be used, in the order in which they are."""
    nvml: Nvml | None
    note: str
    card: Card | None
    """The card whose budget counts: --card's, else the real one where it is known."""
    real_card: Card | None
    platform: str
    """`linux` or `wsl`: they report different CUDA totals."""
    machine_gpus: int = 0
    """How many cards the machine has, those that may not be used included."""
    cuda_totals: Mapping[str, int] = field(default_factory=dict)
    """UUID -> CUDA's total as the driver tells it, bytes; empty where it was not asked or did not answer."""

    def only(self, uuids: Collection[str]) -> Hardware:
        """What one server sees and is watched on: these cards. No card named: all of them."""
        if not uuids:
            return self
        gpus = tuple(gpu for gpu in self.gpus if gpu.uuid in uuids)
        real = _known_card(gpus)
        card = real if self.card is self.real_card else self.card
        nvml = self.nvml.only(uuids) if self.nvml is not None else None
        return replace(self, gpus=gpus, nvml=nvml, card=card, real_card=real)

    def used_mib(self) -> dict[str, float]:
        """UUID -> used memory now, MiB; empty where it is not watched."""
        return self.nvml.used_mib() if self.nvml else {}

    def cuda_total_gib(self) -> float | None:
        """CUDA's total of the real card (what vLLM multiplies), GiB: as the driver tells it, else the table's.

        The smallest of several cards: each of their workers has the same share to get by with.
        """
        told = [self.cuda_totals[gpu.uuid] for gpu in self.gpus if gpu.uuid in self.cuda_totals]
        if told:
            return min(told) / 2**30
        return None if self.real_card is None else self.real_card.known_cuda_gib(self.platform)

    def to_json(self) -> dict[str, Any]:
        return {
            "cpu": _cpu_model(),
            "cpus": _cpu_count(),
            "machine": platform.machine(),
            "os": platform.platform(),
            "platform": self.platform,
            "gpus": [
                {"index": g.index, "uuid": g.uuid, "name": g.name, "total_mib": g.total_mib, "driver": g.driver}
                for g in self.gpus
            ],
            "card": self.card.name if self.card else None,
            "cuda_total_gib": None if (total := self.cuda_total_gib()) is None else round(total, 3),
        }


def versions_here(hardware: Hardware) -> dict[str, str | None]:
    """What measures here, for run.json and launch.json: qwenbench, Python and the driver of these cards."""
    return {
        "qwenbench": __version__,
        "python": platform.python_version(),
        "driver": hardware.gpus[0].driver if hardware.gpus else None,
    }


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def _platform() -> str:
    return "wsl" if "microsoft" in platform.release().lower() else "linux"


def _known_card(gpus: Sequence[Gpu]) -> Card | None:
    if not gpus:
        return None
    try:
        return find_card(gpus[0].name)
    except UsageError:
        return None


def find_attached_hardware(
    options: SweepOptions, processes: Sequence[Collection[int]], local: bool
) -> tuple[Hardware, tuple[int, ...]]:
    """The cards of a server that runs already, and its processes: those of --devices, else where NVML sees one of
    its processes (guesses at them, the narrowest first).

    A server on another machine, or of which NVML sees nothing, has no cards here.
    """
    wanted = find_card(options.card) if options.card else None
    if not local and not options.devices:
        return Hardware((), None, "the server is on another machine: no NVML", wanted, None, _platform()), ()
    found = find_hardware(options)
    own = tuple(processes[0]) if processes else ()
    if options.devices or found.nvml is None:
        return found, own
    on_cards = found.nvml.processes()
    for pids in processes:
        uuids = [uuid for uuid, running in on_cards.items() if any(process.pid in pids for process in running)]
        if uuids:
            return found.only(uuids), tuple(pids)
    nothing_told = not any(on_cards.values())
    if processes and len(found.gpus) == 1 and nothing_told:  # WSL names no processes
        return found, own
    why = "NVML shows no process of this server on any card (name them with --devices where it runs on some)"
    return Hardware((), None, why, wanted, None, _platform()), own


def find_hardware(options: SweepOptions) -> Hardware:
    """Looks at the cards.

    Raises UsageError for an unknown --card or a device that is not there."""
    wanted = find_card(options.card) if options.card else None
    if options.launcher == "sim":
        card = wanted or find_card("rtx-5090")
        return Hardware((), None, "simulated card: no NVML", card, card, "linux")
    nvml, note = open_nvml()
    gpus: tuple[Gpu, ...] = ()
    machine: tuple[Gpu, ...] = ()
    if nvml is not None:
        machine = tuple(nvml.gpus())
        inherited = os.environ.get(VISIBLE)
        if inherited is not None and "MIG-" in inherited:
            nvml, note = None, f"{VISIBLE} names a part of a card (MIG), which is not watched apart from the rest"
        else:
            visible = visible_cards(machine, inherited)
            gpus = tuple(chosen_cards(visible, options.devices) if options.devices else visible)
            nvml = nvml.only([gpu.uuid for gpu in gpus])
    if options.devices and not gpus:
        raise UsageError(f"--devices {','.join(options.devices)}: these cards are not to be found here ({note}).")
    real = _known_card(gpus)
    totals = cuda_totals() if gpus else {}
    return Hardware(gpus, nvml, note, wanted or real, real, _platform(), len(machine), totals)


def budgeted(server: ServerConfig, options: SweepOptions, hardware: Hardware) -> ServerConfig:
    """With --card on a larger real card: the server that keeps the smaller card's budget.

    Its utilisation is the share of the real card, and it takes the smaller card's default of batched tokens, which
    vLLM would otherwise choose by the real card's size.

    Raises UsageError when the real card is unknown, or smaller than the budget.
    """
    card, total = _card_stood_for(options, hardware), hardware.cuda_total_gib()
    if card is None:
        return server
    if total is None:
        raise UsageError(
            f"--card {options.card}: CUDA's total of {hardware.gpus[0].name} is not known here, so its share cannot be "
            "worked out. Leave --card out and give --gpu-memory-utilization."
        )
    fraction = server.gpu_memory_utilization or 0.9
    share = utilization_for_card(card, total, fraction, platform=hardware.platform)
    kept = server.with_flag("gpu-memory-utilization", f"{share:g}")
    batched = default_batched_tokens(card.cuda_gib(hardware.platform))
    if server.int_flag("max-num-batched-tokens") is None and batched != default_batched_tokens(total):
        kept = kept.with_flag("max-num-batched-tokens", str(batched))
    return kept


def _card_stood_for(options: SweepOptions, hardware: Hardware) -> Card | None:
    """--card, where a real card of another kind keeps its budget."""
    another = options.card is not None and options.launcher != "sim" and hardware.card != hardware.real_card
    return hardware.card if another and hardware.gpus else None


def budget_note(options: SweepOptions, hardware: Hardware) -> str | None:
    """What --card on a larger real card means, for people and run.json; None when no card stands for another."""
    card, total = _card_stood_for(options, hardware), hardware.cuda_total_gib()
    if card is None or total is None:
        return None
    real = hardware.gpus[0].name
    return (
        f"the memory budget of {card.name} ({card.cuda_gib(hardware.platform):.2f} GiB to CUDA) is kept on {real} "
        f"({total:.2f} GiB): utilisations are fractions of {card.name}; speeds are those of {real}"
    )


def largest(values: Mapping[str, float]) -> float | None:
    return max(values.values(), default=None)

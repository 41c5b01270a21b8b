"""Which cards a server gets, and how it is told: processes by index, containers by UUID."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TypeVar

from qwenbench.engine.config import AssignedCard, ServerConfig
from qwenbench.engine.flags import flags_of
from qwenbench.errors import UsageError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
C = TypeVar("C", bound=AssignedCard)


def cards_needed(config: ServerConfig) -> int:
    """Tensor x pipeline x data parallel, from the configuration's flags and extra arguments (the last one wins)."""
    flags = flags_of(config)
    sizes = (flags.get(f"{kind}-parallel-size") or "1" for kind in ("tensor", "pipeline", "data"))
    return prod(max(1, int(size)) if size.isdigit() else 1 for size in sizes)


def visible_cards(cards: Sequence[C], variable: str | None) -> list[C]:
    """The cards that CUDA shows under this value of CUDA_VISIBLE_DEVICES, in its order; all when it is unset.

    As CUDA does it, the list ends at the first entry that names no card. UUIDs may be cut short. An index counts in
    the order of the PCI bus.
    """
    if variable is None:
        return list(cards)
    found: list[C] = []
    for entry in variable.split(","):
        card = _named(cards, entry.strip())
        if card is None or card in found:
            break
        found.append(card)
    return found


def _named(cards: Sequence[C], entry: str) -> C | None:
    if entry.isdigit():
        return next((card for card in cards if card.index == int(entry)), None)
    matches = [card for card in cards if entry.startswith("GPU-") and card.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def chosen_cards(visible: Sequence[C], wanted: Sequence[str]) -> list[C]:
    """The cards of --devices: an index counts among the visible ones, as CUDA counts. Raises UsageError."""
    found: list[C] = []
    for word in wanted:
        card = next(iter(visible[int(word) :]), None) if word.isdigit() else _named(visible, word)
        if card is None or card in found:
            told = ", ".join(f"{number} ({card.uuid})" for number, card in enumerate(visible)) or "none"
            why = "is named twice" if card in found else "is no card of this machine that may be used"
            raise UsageError(f"--devices {','.join(wanted)}: {word} {why} (there are: {told}).")
        found.append(card)
    return found


def assign_cards(config: ServerConfig, cards: Sequence[AssignedCard], *, others: bool = True) -> ServerConfig:
    """The configuration on the first of these cards, as many as it needs.

    A container gets them by UUID, unless there are no `others` on the machine and `--gpus all` says the same.
    A line of the user's that names its cards itself stays. Raises UsageError when the cards are too few.
    """
    needed = cards_needed(config)
    if needed > len(cards):
        raise UsageError(
            f"A configuration needs {needed} cards (tensor x pipeline x data parallel) and {len(cards)} were named: "
            "name more with --devices."
        )
    own = tuple(AssignedCard(card.index, card.uuid, card.name) for card in cards[:needed])
    docker = config.docker
    if others and docker.gpus is not None:
        ids = ",".join(card.uuid for card in own)
        # docker reads the value as CSV: quotes keep several ids in one field
        docker = replace(docker, gpus=f"device={ids}" if needed == 1 else f'"device={ids}"')
    return replace(config, cards=own, docker=docker)


def cards_named_by_user(config: ServerConfig, launcher: str, cards: Sequence[C]) -> list[C] | None:
    """The cards that a deployment names by itself: its `--gpus` for containers, CUDA_VISIBLE_DEVICES for processes.

    None when it names none.
    """
    if launcher == "process":
        return visible_cards(cards, config.env[VISIBLE]) if VISIBLE in config.env else None
    gpus = (config.docker.gpus or "").strip("\"'")
    if launcher != "docker" or not gpus.startswith("device="):
        return None
    return visible_cards(cards, gpus.removeprefix("device="))


def cuda_environment(config: ServerConfig) -> Mapping[str, str]:
    """What shows a process its cards and no others; nothing when it was given none, or names them itself.

    vLLM up to 0.20.2 cannot read UUIDs there. Indices mean the same to NVML and CUDA in the order of the PCI bus only.
    """
    if not config.cards or VISIBLE in config.env:
        return {}
    return {ORDER: "PCI_BUS_ID", VISIBLE: ",".join(str(card.index) for card in config.cards)}

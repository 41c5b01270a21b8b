"""Which cards a configuration gets: as many as tensor x pipeline x data parallel, named by UUID."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from qwenbench.engine.config import ServerConfig
from qwenbench.errors import UsageError

_PARALLEL = {
    "tensor-parallel-size": ("-tp",),
    "pipeline-parallel-size": ("-pp",),
    "data-parallel-size": ("-dp",),
}


class Card(Protocol):
    """A card as NVML knows it (observe.nvml.Gpu)."""

    @property
    def uuid(self) -> str:
        """GPU-xxxxxxxx-..."""


def cards_needed(config: ServerConfig) -> int:
    """Tensor x pipeline x data parallel, from the configuration's flags and extra arguments (the last one wins)."""
    needed = 1
    for flag, short in _PARALLEL.items():
        size = config.int_flag(flag) or 1
        words = iter(config.extra_args)
        for word in words:
            name, equals, value = word.partition("=")
            if name in (f"--{flag}", *short):
                text = value if equals else next(words, "")
                size = int(text) if text.isdigit() else size
        needed *= max(1, size)
    return needed


def assign_devices(config: ServerConfig, gpus: Sequence[Card]) -> ServerConfig:
    """The configuration on the first of these cards, for containers (--gpus) and processes (CUDA_VISIBLE_DEVICES).

    Indices change with CUDA_DEVICE_ORDER and between host and container, UUIDs do not. Raises UsageError when it
    needs more cards than there are.
    """
    needed = cards_needed(config)
    if needed > len(gpus):
        raise UsageError(
            f"A configuration needs {needed} cards (tensor x pipeline x data parallel) and {len(gpus)} were named: "
            "name more with --devices."
        )
    ids = ",".join(gpu.uuid for gpu in gpus[:needed])
    # docker reads the value as CSV: quotes keep several ids in one field
    wanted = f"device={ids}" if needed == 1 else f'"device={ids}"'
    return replace(config, docker=replace(config.docker, gpus=wanted))


def visible_devices(config: ServerConfig) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES for a process on the cards that were assigned; nothing when none were."""
    wanted = (config.docker.gpus or "").strip('"')
    return {"CUDA_VISIBLE_DEVICES": wanted.removeprefix("device=")} if wanted.startswith("device=") else {}

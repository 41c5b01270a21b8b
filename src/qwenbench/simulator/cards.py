"""The cards that can be simulated: a size, a bandwidth and a compute figure each, relative to the measured one.

The recorded server ran on an H200; every other card's speed is scaled from it and so extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwenbench.errors import UsageError


@dataclass(frozen=True, slots=True)
class SimCard:
    """A card as the simulator sees it."""

    name: str
    nvml_mib: float
    """Total that NVML reports."""
    cuda_gib: float
    """Total that CUDA reports, which --gpu-memory-utilization multiplies."""
    bandwidth_gbps: float
    compute_tflops: float
    """Dense BF16."""
    tdp_w: float


_CARDS = (
    SimCard("h200", 143_771, 139.9, 4800, 989, 700),
    SimCard("rtx-5090", 32_607, 31.36, 1792, 209.5, 575),
    SimCard("rtx-4090", 24_564, 23.52, 1008, 165.2, 450),
    SimCard("rtx-pro-6000", 97_887, 94.97, 1792, 252, 600),
)
MEASURED = "h200"


def sim_card(name: str) -> SimCard:
    """The card of that name. Raises UsageError for an unknown one."""
    for card in _CARDS:
        if card.name == name:
            return card
    known = ", ".join(card.name for card in _CARDS)
    raise UsageError(f"--sim-card {name}: unknown card (known: {known})")

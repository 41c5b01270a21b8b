"""The cards that a configuration may be planned for, with both of their memory totals.

NVML (nvidia-smi) and CUDA report different totals, and vLLM multiplies CUDA's with
--gpu-memory-utilization. Under Windows with WSL, CUDA reports NVML's total.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from qwenbench.errors import UsageError

PLATFORMS = ("linux", "wsl")

_WSL = "WSL reports NVML's total, as seen on an RTX 5090 (31.84 GiB)"
_OOM = "'total capacity' in PyTorch's out-of-memory messages in public reports"


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU model. The CUDA totals vary by about 0.05 GiB with driver version and ECC."""

    name: str
    nvml_mib: int
    """Total memory as NVML and nvidia-smi report it, MiB."""
    cuda_gib_linux: float
    """Total memory as CUDA reports it on Linux, GiB: what vLLM multiplies with the utilisation."""
    cuda_gib_wsl: float | None
    """The same on Windows with WSL, GiB; None for data-centre cards."""
    bandwidth_gb_s: float
    """Memory bandwidth of the data sheet, 10^9 bytes per second."""
    bf16_tflops: float
    """Dense BF16 tensor throughput with FP32 accumulation of the data sheet, 10^12 per second."""
    source: str
    """Where the two totals come from."""

    def cuda_gib(self, platform: str = "linux") -> float:
        """CUDA's total on `linux` or `wsl`, GiB. Raises UsageError where it is not known."""
        if platform not in PLATFORMS:
            raise UsageError(f"unknown platform {platform!r}: choose {' or '.join(PLATFORMS)}")
        total = self.cuda_gib_linux if platform == "linux" else self.cuda_gib_wsl
        if total is None:
            raise UsageError(f"the memory of {self.name} under WSL is not known: give it with --vram-mib")
        return total


def _geforce(name: str, nvml_mib: int, cuda_gib: float, bandwidth: float, tflops: float, source: str) -> Card:
    """Consumer cards: the WSL total is NVML's."""
    return Card(name, nvml_mib, cuda_gib, round(nvml_mib / 1024, 2), bandwidth, tflops, f"{source}; {_WSL}")


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _geforce("rtx-5090", 32607, 31.36, 1792, 209.5, f"31.36-31.37 GiB in {_OOM}"),
        _geforce("rtx-5080", 16303, 15.47, 960, 112.6, f"15.47 GiB in {_OOM}"),
        _geforce("rtx-4090", 24564, 23.64, 1008, 165.2, f"23.64-23.65 GiB in {_OOM}"),
        _geforce("rtx-3090", 24576, 23.69, 936, 71.0, f"23.68-23.70 GiB in {_OOM}"),
        Card("l4", 23034, 22.05, None, 300, 121.0, f"22.03-22.07 GiB in {_OOM}"),
        Card("l40s", 46068, 44.40, None, 864, 362.0, f"44.39-44.42 GiB in {_OOM}"),
        Card("a100-80g", 81920, 79.15, None, 2039, 312.0, f"79.14-79.25 GiB in {_OOM}"),
        Card("h100", 81559, 79.11, None, 3350, 989.0, f"79.10-79.11 GiB in {_OOM}"),
        Card("h200", 143771, 139.80, None, 4800, 989.0, f"NVML recorded; 139.80-139.81 GiB in {_OOM}"),
    )
}
"""Card name -> card."""


def find_card(name: str) -> Card:
    """The card of this name; `NVIDIA GeForce RTX 5090` and `5090` find rtx-5090.

    Raises UsageError for an unknown name, with the nearest known one.
    """
    key = re.sub(r"[\s_]+", "-", re.sub(r"nvidia|geforce|-?sxm\d?|pcie", " ", name.lower()).strip())
    key = {"a100-sxm4-80gb": "a100-80g", "a100-80gb": "a100-80g", "h100-80gb-hbm3": "h100"}.get(key, key)
    for candidate in (key, f"rtx-{key}", key.removesuffix("-80gb-hbm3")):
        if candidate in CARDS:
            return CARDS[candidate]
    near = difflib.get_close_matches(key, CARDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"unknown card {name!r}: {hint}known are {', '.join(CARDS)}; or give --vram-mib")


def utilization_for_card(card: Card, real_cuda_total_gib: float, fraction: float, *, platform: str = "linux") -> float:
    """The --gpu-memory-utilization that gives a real card the budget of a smaller one.

    `fraction` is the utilisation meant for `card`; its budget is fraction x the card's CUDA total. The
    result is rounded down to five digits so that the budget is never the larger one. Raises UsageError for
    a fraction outside (0, 1] and when the real card is smaller than the budget.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--gpu-memory-utilization {fraction:g} is no fraction of a card: give 0 < U <= 1")
    if real_cuda_total_gib <= 0:
        raise UsageError(f"the card's memory ({real_cuda_total_gib:g} GiB) must be positive")
    budget = fraction * card.cuda_gib(platform)
    utilization = int(budget / real_cuda_total_gib * 1e5) / 1e5
    if budget > real_cuda_total_gib:
        raise UsageError(
            f"the budget of {card.name} ({fraction:g} x {card.cuda_gib(platform):.2f} GiB = {budget:.2f} GiB) "
            f"does not fit on this card ({real_cuda_total_gib:.2f} GiB): leave --card out"
        )
    return utilization

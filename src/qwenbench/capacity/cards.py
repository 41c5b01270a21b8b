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
    nvml_mib: int | None
    """Total memory as NVML and nvidia-smi report it, MiB; None for unified memory, which they do not tell."""
    cuda_gib_linux: float | None
    """Total memory as CUDA reports it on Linux, GiB: what vLLM multiplies with the utilisation; None: not known."""
    cuda_gib_wsl: float | None
    """The same on Windows with WSL, GiB; None for data-centre cards."""
    bandwidth_gb_s: float
    """Memory bandwidth of the data sheet, 10^9 bytes per second."""
    bf16_tflops: float
    """Dense BF16 tensor throughput with FP32 accumulation of the data sheet, 10^12 per second."""
    capability: str
    """CUDA compute capability (`12.0`)."""
    source: str
    """Where the two totals come from."""

    @property
    def vram_mib(self) -> float:
        """All of the card's memory, MiB: NVML's total, or CUDA's where NVML tells none."""
        return self.nvml_mib if self.nvml_mib is not None else self.cuda_gib() * 1024

    def cuda_gib(self, platform: str = "linux") -> float:
        """CUDA's total on `linux` or `wsl`, GiB. Raises UsageError where it is not known."""
        total = self.known_cuda_gib(platform)
        if total is None:
            where = "under WSL" if platform == "wsl" else "on Linux"
            raise UsageError(f"CUDA's total of {self.name} {where} is not known: give it with --vram-mib")
        return total

    def known_cuda_gib(self, platform: str = "linux") -> float | None:
        """The same, None where it is not known. Raises UsageError for an unknown platform."""
        if platform not in PLATFORMS:
            raise UsageError(f"unknown platform {platform!r}: choose {' or '.join(PLATFORMS)}")
        return self.cuda_gib_linux if platform == "linux" else self.cuda_gib_wsl


def _geforce(
    name: str, nvml_mib: int, cuda_gib: float | None, bandwidth: float, tflops: float, capability: str, source: str
) -> Card:
    """Cards for Windows too: the WSL total is NVML's."""
    wsl = round(nvml_mib / 1024, 2)
    return Card(name, nvml_mib, cuda_gib, wsl, bandwidth, tflops, capability, f"{source}; {_WSL}")


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _geforce("rtx-5090", 32607, 31.36, 1792, 209.5, "12.0", f"31.36-31.37 GiB in {_OOM}"),
        _geforce(
            "rtx-5090-laptop", 24463, None, 896, 114.0, "12.0",
            "NVML's total in a public report (club-3090 issue 102); CUDA's on Linux was not found",
        ),
        _geforce("rtx-5080", 16303, 15.47, 960, 112.6, "12.0", f"15.47-15.48 GiB in {_OOM}"),
        _geforce(
            "rtx-5070-ti", 16303, 15.48, 896, 87.9, "12.0",
            "NVML's total in public inventories; CUDA's as of the RTX 5080 (15.51 in one report)",
        ),
        _geforce("rtx-5060-ti", 16311, 15.48, 448, 47.4, "12.0", "15.48 GiB told by PyTorch in public reports"),
        _geforce(
            "rtx-pro-6000", 97887, 94.97, 1792, 252.0, "12.0", f"94.96-94.98 GiB in {_OOM} and in a log of vLLM 0.29"
        ),
        _geforce("rtx-pro-6000-max-q", 97887, 94.97, 1792, 219.0, "12.0", "as of the workstation edition: one chip"),
        _geforce(
            "rtx-pro-5000", 48935, None, 1344, 129.0, "12.0",
            "NVML's total in public inventories; CUDA's was not found",
        ),
        _geforce("rtx-4090", 24564, 23.64, 1008, 165.2, "8.9", f"23.64-23.65 GiB in {_OOM}"),
        _geforce("rtx-4090-48g", 49140, 47.36, 1008, 165.2, "8.9", "47.36 GiB in a public report of the modified card"),
        _geforce("rtx-4080", 16376, 15.58, 717, 97.5, "8.9", f"15.57-15.60 GiB in {_OOM} of cards of 16,376 MiB"),
        _geforce("rtx-3090", 24576, 23.69, 936, 71.0, "8.6", f"23.68-23.70 GiB in {_OOM}"),
        _geforce(
            "rtx-a6000", 49140, 47.45, 768, 154.8, "8.6",
            "47.54 GiB with drivers of 2023, 47.40 with later ones, in public reports",
        ),
        _geforce("rtx-6000-ada", 46068, 44.43, 960, 364.2, "8.9", f"44.43 GiB in {_OOM}, ECC on (49,140 MiB without)"),
        Card("l4", 23034, 22.05, None, 300, 121.0, "8.9", f"22.03-22.07 GiB in {_OOM}"),
        Card("l40s", 46068, 44.40, None, 864, 362.0, "8.9", f"44.39-44.42 GiB in {_OOM}"),
        Card("a100-80g", 81920, 79.15, None, 2039, 312.0, "8.0", f"79.14-79.25 GiB in {_OOM}"),
        Card("h100", 81559, 79.18, None, 3350, 989.0, "9.0", "79.18 GiB in recorded logs of vLLM; 79.10-79.25 seen"),
        Card("h200", 143771, 139.80, None, 4800, 989.0, "9.0", f"NVML recorded; 139.80-139.81 GiB in {_OOM}"),
        Card("b200", 183359, 178.35, None, 8000, 2250.0, "10.0", f"178.35-178.36 GiB in {_OOM}"),
        Card(
            "gb10", None, 121.69, None, 273, 62.5, "12.1",
            "unified memory: 121.69 GiB in public logs of vLLM (119.63 in one); nvidia-smi tells no total",
        ),
    )
}  # fmt: skip
"""Card name -> card. Bandwidths and throughputs are the data sheets'; an RTX 50's is a sixteenth of its AI TOPS."""


_OTHER_NAMES = {
    "a100-sxm4-80gb": "a100-80g", "a100-80gb": "a100-80g", "h100-80gb-hbm3": "h100", "dgx-spark": "gb10",
    "rtx-pro-6000-blackwell-workstation-edition": "rtx-pro-6000", "rtx-pro-6000-blackwell": "rtx-pro-6000",
    "rtx-pro-6000-blackwell-max-q-workstation-edition": "rtx-pro-6000-max-q", "rtx-pro-5000-blackwell": "rtx-pro-5000",
    "rtx-pro-6000-blackwell-server-edition": "rtx-pro-6000", "rtx-6000-ada-generation": "rtx-6000-ada",
    "rtx-5090-laptop-gpu": "rtx-5090-laptop", "a6000": "rtx-a6000", "4090-48gb": "rtx-4090-48g",
    "rtx-4090-48gb": "rtx-4090-48g",
}  # fmt: skip


def find_card(name: str) -> Card:
    """The card of this name; `NVIDIA GeForce RTX 5090` and `5090` find rtx-5090.

    Raises UsageError for an unknown name, with the nearest known one.
    """
    key = re.sub(r"nvidia|geforce|-?sxm\d?\b|pcie", " ", name.lower())
    key = re.sub(r"[\s_]+", "-", key.strip())
    key = _OTHER_NAMES.get(key, key)
    for candidate in (key, f"rtx-{key}", key.removesuffix("-80gb-hbm3"), _OTHER_NAMES.get(f"rtx-{key}", key)):
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

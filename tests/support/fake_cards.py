"""A TEST DOUBLE of NVML for machines without a card, and of a process that holds a card's memory.

Who holds what stands in files of one folder (PID.json: card index -> MiB); it counts while that process runs, as with
the real driver. `FakeNvml` answers by pynvml's names from there; run as a script this file is a server that takes its
cards as vLLM 0.20.2 does (CUDA_VISIBLE_DEVICES must be integers) and goes on as the simulator.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml

MIB = 1024 * 1024
FOLDER = "FAKE_CARDS"
"""Variable that names the folder."""
RESERVED_MIB = 600
"""What the driver keeps of every card."""


def hold(folder: Path, pid: int, held: dict[int, int]) -> None:
    """Says that a process holds so many MiB of these cards."""
    beside = folder / f"{pid}.tmp"
    beside.write_text(json.dumps(held))
    beside.rename(folder / f"{pid}.json")


class FakeNvml:
    """Stands in for the module `pynvml`. A name that the real one does not have is an error of the code under test."""

    NVMLError = pynvml.NVMLError

    def __init__(self, folder: Path, cards: int = 2, name: str = "NVIDIA GeForce RTX 5090") -> None:
        self.folder = folder
        self.cards = cards
        self.name = name
        self.per_process = True
        """Whether the driver tells the memory of a process (under WSL it does not)."""

    def _holders(self, card: int) -> dict[int, int]:
        held = {}
        for file in self.folder.glob("*.json"):
            pid = int(file.stem)
            mib = json.loads(file.read_text()).get(str(card))
            if mib is not None and _runs(pid):
                held[pid] = mib
        return held

    def _memory(self, card: int) -> SimpleNamespace:
        used = RESERVED_MIB + sum(self._holders(card).values())
        return SimpleNamespace(total=32_607 * MIB, used=used * MIB, free=(32_607 - used) * MIB)

    def _processes(self, card: int) -> list[SimpleNamespace]:
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=mib * MIB if self.per_process else None)
            for pid, mib in self._holders(card).items()
        ]

    def __getattr__(self, name: str) -> Any:
        assert hasattr(pynvml, name), f"pynvml has no {name}"
        if name.startswith("NVML_") or name.startswith("nvmlClocks"):
            return getattr(pynvml, name)
        answers: dict[str, Callable[..., Any]] = {
            "nvmlInit": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "580.65",
            "nvmlDeviceGetCount": lambda: self.cards,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetIndex": lambda card: card,
            "nvmlDeviceGetUUID": lambda card: f"GPU-{card}{card}{card}",
            "nvmlDeviceGetName": lambda card: self.name,
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetComputeRunningProcesses": self._processes,
            "nvmlSystemGetProcessName": lambda pid: f"program-{pid}",
        }
        if name not in answers:
            return self._unsupported
        return answers[name]

    def _unsupported(self, *_: Any) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except OSError:
        return False


def serve() -> None:
    """Takes the cards that CUDA_VISIBLE_DEVICES shows, as many as the parallel size, and becomes the simulator."""
    words = sys.argv[1:]
    wanted = int(words[words.index("--tensor-parallel-size") + 1]) if "--tensor-parallel-size" in words else 1
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        visible = [0, 1] if shown is None else [int(entry) for entry in shown.split(",")]
    except ValueError as error:
        print(f"ERROR 11-25 10:00:00 [registry.py:912] ValueError: {error}", flush=True)
        print("Model architectures ['Qwen3_5ForConditionalGeneration'] failed to be inspected.", flush=True)
        sys.exit(1)
    if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        visible = visible[::-1]  # CUDA's own order is the fastest card first, which need not be NVML's
    hold(Path(os.environ[FOLDER]), os.getpid(), dict.fromkeys(visible[:wanted], 20_000))
    os.execv(sys.executable, [sys.executable, "-m", "qwenbench.simulator", "serve", *words])


if __name__ == "__main__":
    serve()

"""NVML: what the cards hold and draw, sampled in a thread of its own while the load runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qwenbench.observe.samples import NVML_SCHEMA

_MIB = 1024 * 1024
RATE_HZ = 10.0
_OTHERS_EVERY = 10  # naming processes costs more than reading counters: once a second is enough


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card as NVML knows it."""

    index: int
    uuid: str
    name: str
    total_mib: float
    driver: str


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a card."""

    pid: int
    used_mib: float | None
    """Memory that it holds there, MiB; None where the driver does not tell."""


class Nvml:
    """NVML opened once. Without a driver `open_nvml` gives None instead."""

    def __init__(self, library: Any, indices: Sequence[int | str] | None) -> None:
        self._nvml = library
        self._handles = self._find(indices)

    def only(self, uuids: Collection[str]) -> Nvml:
        """The same library, watching these of its cards only."""
        return Nvml(self._nvml, [uuid for uuid in self._handles if uuid in uuids])

    def _find(self, wanted: Sequence[int | str] | None) -> dict[str, Any]:
        count = self._nvml.nvmlDeviceGetCount()
        found: dict[str, Any] = {}
        for index in range(count):
            handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
            uuid = _text(self._nvml.nvmlDeviceGetUUID(handle))
            if wanted is None or index in wanted or uuid in wanted:
                found[uuid] = handle
        return found

    def gpus(self) -> list[Gpu]:
        """The watched cards."""
        driver = _text(self._nvml.nvmlSystemGetDriverVersion())
        return [
            Gpu(
                index=int(self._nvml.nvmlDeviceGetIndex(handle)),
                uuid=uuid,
                name=_text(self._nvml.nvmlDeviceGetName(handle)),
                total_mib=self._nvml.nvmlDeviceGetMemoryInfo(handle).total / _MIB,
                driver=driver,
            )
            for uuid, handle in self._handles.items()
        ]

    def used_mib(self) -> dict[str, float]:
        """UUID -> memory in use, MiB."""
        return {uuid: self._nvml.nvmlDeviceGetMemoryInfo(handle).used / _MIB for uuid, handle in self._handles.items()}

    def processes(self) -> dict[str, list[GpuProcess]]:
        """UUID -> the processes that compute on the card; empty where the driver does not tell."""
        return {uuid: self._processes(handle) for uuid, handle in self._handles.items()}

    def _processes(self, handle: Any) -> list[GpuProcess]:
        told = self._try(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        # the driver of Windows (WSL too) names processes without their memory
        return [GpuProcess(p.pid, None if p.usedGpuMemory is None else p.usedGpuMemory / _MIB) for p in told]

    def own_mib(self, own_pids: Collection[int]) -> dict[str, float]:
        """UUID -> MiB that these processes hold there; a card on which NVML does not tell it is missing.

        In a container NVML may number processes as the host does: then none of them is ours, and nothing is told.
        """
        held = {}
        for uuid, processes in self.processes().items():
            own = [process.used_mib for process in processes if process.pid in own_pids]
            if own and None not in own:
                held[uuid] = sum(mib for mib in own if mib is not None)
        return held

    def others(self, own_pids: Collection[int]) -> dict[str, str]:
        """UUID -> `pid:name` of processes on the card that are not the server's, comma-separated."""
        return {
            uuid: ",".join(f"{p.pid}:{self._process_name(p.pid)}" for p in processes if p.pid not in own_pids)
            for uuid, processes in self.processes().items()
        }

    def _process_name(self, pid: int) -> str:
        name = self._try(self._nvml.nvmlSystemGetProcessName, pid)
        return _text(name).rsplit("/", 1)[-1].split(" ")[0] if name else "?"

    def sample(self) -> list[dict[str, Any]]:
        """One row of NVML_SCHEMA per card, without own_mib and other_pids. What a card does not support is None."""
        nvml, now = self._nvml, time.time_ns()
        rows = []
        for uuid, handle in self._handles.items():
            milliwatts = self._try(nvml.nvmlDeviceGetPowerUsage, handle)
            millijoules = self._try(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            utilisation = self._try(nvml.nvmlDeviceGetUtilizationRates, handle)
            limit = self._try(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
            rows.append(
                {
                    "t_ns": now,
                    "gpu": uuid,
                    "used_mib": nvml.nvmlDeviceGetMemoryInfo(handle).used / _MIB,
                    "power_w": None if milliwatts is None else milliwatts / 1e3,
                    "energy_j": None if millijoules is None else millijoules / 1e3,
                    "util_pct": None if utilisation is None else float(utilisation.gpu),
                    "sm_clock_mhz": self._try(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
                    "mem_clock_mhz": self._try(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
                    "temperature_c": self._try(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                    "power_limit_w": None if limit is None else limit / 1e3,
                    "throttle": self._try(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle),
                }
            )
        return rows

    def _try(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A counter that this card or driver does not have (laptops, MIG, WSL) is unknown, not an error."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def open_nvml(devices: Sequence[int | str] | None = None) -> tuple[Nvml | None, str]:
    """NVML for these cards (index or UUID; None: all), or None and the reason in one line."""
    try:
        import pynvml
    except ImportError as error:
        return None, f"no NVML: {error}"
    try:
        pynvml.nvmlInit()
        nvml = Nvml(pynvml, devices)
        if not nvml.gpus():
            return None, "no NVML: no card of that index or UUID"
    except pynvml.NVMLError as error:
        return None, f"no NVML: {error}"
    return nvml, ""


class NvmlSampler:
    """Samples in a daemon thread from `start` until `stop`."""

    def __init__(self, nvml: Nvml, own_pids: Callable[[], Sequence[int]], rate_hz: float = RATE_HZ) -> None:
        self._nvml = nvml
        self._own_pids = own_pids
        self._period = 1.0 / rate_hz
        self._rows: list[dict[str, Any]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nvml-sampler", daemon=True)
        self._error: str | None = None

    def start(self) -> NvmlSampler:
        """Starts sampling at absolute deadlines (a late sample does not shift the later ones)."""
        self._thread.start()
        return self

    def _run(self) -> None:
        start, number = time.monotonic(), 0
        own: frozenset[int] = frozenset()
        others: dict[str, str] = {}
        while not self._done.is_set():
            try:
                if number % _OTHERS_EVERY == 0:
                    own = frozenset(self._own_pids())
                    others = self._nvml.others(own)
                held = self._nvml.own_mib(own) if own else {}
                for row in self._nvml.sample():
                    gpu = row["gpu"]
                    self._rows.append({**row, "own_mib": held.get(gpu), "other_pids": others.get(gpu) or None})
            except Exception as error:  # a card that falls off the bus must not take the run with it
                self._error = f"NVML stopped answering: {error}"
                return
            number += 1
            self._done.wait(max(0.0, start + number * self._period - time.monotonic()))

    def latest_used_mib(self) -> float | None:
        """Used memory of the fullest card at the last sample, MiB."""
        if not self._rows:
            return None
        last = self._rows[-1]["t_ns"]
        return max(float(row["used_mib"]) for row in self._rows[-16:] if row["t_ns"] == last)

    @property
    def error(self) -> str | None:
        """Why sampling ended early, or None."""
        return self._error

    def stop(self) -> pa.Table:
        """Ends sampling; all samples as NVML_SCHEMA."""
        self._done.set()
        self._thread.join()
        return pa.Table.from_pylist(self._rows, schema=NVML_SCHEMA)

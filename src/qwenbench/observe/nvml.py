"""NVML: what the cards hold and draw, sampled in a thread while the load runs, and VRAM from launch to stop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qwenbench.engine.config import Gpu

NVML_SCHEMA = pa.schema(
    [
        ("t_ns", pa.int64()),  # CLOCK_REALTIME
        ("gpu", pa.string()),  # UUID
        ("used_mib", pa.float64()),
        ("own_mib", pa.float64()),  # of it the server's processes; null where NVML does not tell
        ("power_w", pa.float64()),
        ("energy_j", pa.float64()),  # NVML's total energy counter
        ("util_pct", pa.float64()),
        ("sm_clock_mhz", pa.float64()),
        ("mem_clock_mhz", pa.float64()),
        ("temperature_c", pa.float64()),
        ("power_limit_w", pa.float64()),  # as enforced now
        ("throttle", pa.int64()),  # NVML's clock event reasons, a bit each (analysis/server_samples.py)
        ("other_pids", pa.string()),  # comma-separated pid:name of processes that are not the server's
    ]
)

"""An unknown value is null, never 0."""


_MIB = 1024 * 1024
RATE_HZ = 10.0
_OTHERS_EVERY = 10  # naming processes costs more than reading counters: once a second is enough


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int
    used_mib: float | None
    """Memory that it holds there, MiB; None where the driver does not tell."""


class Nvml:
    """NVML opened once. Without a driver `open_nvml` gives None instead."""

    def __init__(self, library: Any, indices: Sequence[int | str] | None) -> None:
        self._nvml = library
        handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        found = {_text(library.nvmlDeviceGetUUID(handle)): (index, handle) for index, handle in enumerate(handles)}
        self._handles: dict[str, Any] = {
            uuid: handle
            for uuid, (index, handle) in found.items()
            if indices is None or index in indices or uuid in indices
        }

    def only(self, uuids: Collection[str]) -> Nvml:
        """The same library, watching these of its cards only."""
        return Nvml(self._nvml, [uuid for uuid in self._handles if uuid in uuids])

    def gpus(self) -> list[Gpu]:
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
        ask = self._nvml.nvmlDeviceGetComputeRunningProcesses
        # the driver of Windows (WSL too) names processes without their memory
        return {
            uuid: [
                GpuProcess(process.pid, None if process.usedGpuMemory is None else process.usedGpuMemory / _MIB)
                for process in self._try(ask, handle) or []
            ]
            for uuid, handle in self._handles.items()
        }

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
            thousandths = {
                "power_w": self._try(nvml.nvmlDeviceGetPowerUsage, handle),
                "energy_j": self._try(nvml.nvmlDeviceGetTotalEnergyConsumption, handle),
                "power_limit_w": self._try(nvml.nvmlDeviceGetEnforcedPowerLimit, handle),
            }
            utilisation = self._try(nvml.nvmlDeviceGetUtilizationRates, handle)
            rows.append(
                {
                    "t_ns": now,
                    "gpu": uuid,
                    "used_mib": nvml.nvmlDeviceGetMemoryInfo(handle).used / _MIB,
                    **{name: None if value is None else value / 1e3 for name, value in thousandths.items()},
                    "util_pct": None if utilisation is None else float(utilisation.gpu),
                    "sm_clock_mhz": self._try(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
                    "mem_clock_mhz": self._try(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
                    "temperature_c": self._try(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
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
        self.error: str | None = None
        """Why sampling ended early, or None."""

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
                self.error = f"NVML stopped answering: {error}"
                return
            number += 1
            self._done.wait(max(0.0, start + number * self._period - time.monotonic()))

    def latest_used_mib(self) -> float | None:
        """Used memory of the fullest card at the last sample, MiB."""
        if not self._rows:
            return None
        last = self._rows[-1]["t_ns"]
        return max(float(row["used_mib"]) for row in self._rows[-16:] if row["t_ns"] == last)

    def stop(self) -> pa.Table:
        """Ends sampling; all samples as NVML_SCHEMA."""
        self._done.set()
        self._thread.join()
        return pa.Table.from_pylist(self._rows, schema=NVML_SCHEMA)


MIB_PER_GIB = 1024
_POLL_S = 0.03
SLACK_MIB = 64.0
"""How far above the value before the launch still counts as given back: contexts of other programs come and go."""


@dataclass(frozen=True, slots=True)
class VramPhases:
    """Used VRAM of one card in MiB; None where the series does not show it."""

    before_mib: float | None = None
    ready_mib: float | None = None
    peak_mib: float | None = None
    after_mib: float | None = None


NOT_WATCHED = VramPhases()
"""No NVML, or nobody looked."""


def vram_phases(
    samples: Sequence[tuple[float, float]],
    *,
    kv_cache_gib: float | None = None,
    kv_to_ready_s: float | None = None,
) -> VramPhases:
    """Phases of a series of (seconds, used MiB) that spans a server's whole life.

    The moment of readiness is where the log puts it: the KV cache's allocation is the one jump of about its
    size, and `kv_to_ready_s` later the server answered. Without that jump it stays None. The last sample is
    `after` only when the KV cache is gone by then.
    """
    if not samples:
        return NOT_WATCHED
    used = [mib for _, mib in samples]
    peak = max(used)
    ready = None
    if kv_cache_gib is not None and kv_to_ready_s is not None:
        allocated_at = _jump_at(samples, kv_cache_gib * MIB_PER_GIB)
        if allocated_at is not None:
            since = [mib for at, mib in samples if at <= allocated_at + kv_to_ready_s]
            ready = since[-1] if samples[-1][0] >= allocated_at + kv_to_ready_s else None
    gone = kv_cache_gib is not None and used[-1] < peak - kv_cache_gib * MIB_PER_GIB
    return VramPhases(used[0], ready, peak, used[-1] if gone else None)


def _jump_at(samples: Sequence[tuple[float, float]], size_mib: float) -> float | None:
    """The end of the last rise of about this size (-10 % to +15 %) within 1.5 s.

    The last, because weights of the same size may be loaded as quickly before.
    """
    found = None
    start = 0
    for index, (at, mib) in enumerate(samples):
        while at - samples[start][0] > 1.5:
            start += 1
        rise = mib - min(value for _, value in samples[start : index + 1])
        fresh = index and mib - samples[index - 1][1] > 0.5 * size_mib
        if fresh and 0.9 * size_mib <= rise <= 1.15 * size_mib:
            found = at
    return found


@dataclass(frozen=True, slots=True)
class DrainReport:
    seconds: float
    drained: bool
    """False when the limit was reached with memory still held."""
    left_mib: Mapping[str, float]
    """Per card (UUID): what is used now above what was used before the launch, never negative."""


async def wait_drained(
    read_used_mib: Callable[[], Mapping[str, float]], before: Mapping[str, float], limit_s: float
) -> DrainReport:
    """Waits until every card uses no more than before the launch (+ 64 MiB), at most `limit_s` seconds.

    `read_used_mib` gives MiB in use per card UUID, now; cards that `before` does not know are passed over.
    """
    began = time.monotonic()
    while True:
        now = read_used_mib()
        left = {card: max(0.0, now[card] - used) for card, used in before.items() if card in now}
        seconds = time.monotonic() - began
        if all(mib <= SLACK_MIB for mib in left.values()):
            return DrainReport(seconds, True, left)
        if seconds >= limit_s:
            return DrainReport(seconds, False, left)
        await asyncio.sleep(_POLL_S)

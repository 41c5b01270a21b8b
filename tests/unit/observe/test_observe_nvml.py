"""NVML through a stand-in that has the real library's names: cards, samples, foreign processes, errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from qwenbench.observe.nvml import NVML_SCHEMA, Nvml, NvmlSampler, open_nvml

MIB = 1024 * 1024


class FakeLibrary:
    """Two cards. A name that the real pynvml does not have is an error of the code under test."""

    NVMLError = pynvml.NVMLError

    def __init__(self) -> None:
        self.used = [1000, 2000]
        self.processes: list[list[int]] = [[], []]
        self.per_process: dict[int, int] = {}
        self.unsupported: set[str] = set()
        self.asked = threading.Event()
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        assert hasattr(pynvml, name), f"pynvml has no {name}"
        if name.startswith("NVML_"):
            return getattr(pynvml, name)
        answers: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetIndex": lambda card: card,
            "nvmlDeviceGetUUID": lambda card: f"GPU-{card}",
            "nvmlDeviceGetName": lambda card: b"NVIDIA GeForce RTX 5090",
            "nvmlSystemGetDriverVersion": lambda: "580.65",
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetPowerUsage": lambda card: 450_000,
            "nvmlDeviceGetTotalEnergyConsumption": lambda card: 7_500,
            "nvmlDeviceGetUtilizationRates": lambda card: SimpleNamespace(gpu=99, memory=50),
            "nvmlDeviceGetClockInfo": lambda card, kind: 2_400 if kind == pynvml.NVML_CLOCK_SM else 14_000,
            "nvmlDeviceGetTemperature": lambda card, sensor: 61,
            "nvmlDeviceGetEnforcedPowerLimit": lambda card: 575_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda card: 0x4,
            "nvmlDeviceGetComputeRunningProcesses": lambda card: [
                SimpleNamespace(pid=pid, usedGpuMemory=self.per_process.get(pid)) for pid in self.processes[card]
            ],
            "nvmlSystemGetProcessName": lambda pid: f"/usr/bin/program-{pid} --flag".encode(),
        }

        def call(*arguments: Any) -> Any:
            if name in self.unsupported:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answers[name](*arguments)

        return call

    def _memory(self, card: int) -> SimpleNamespace:
        if self.broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        self.asked.set()
        return SimpleNamespace(total=32_607 * MIB, used=self.used[card] * MIB, free=0)


@pytest.fixture
def library() -> FakeLibrary:
    return FakeLibrary()


def test_cards_are_chosen_by_index_or_uuid(library: FakeLibrary) -> None:
    assert [gpu.uuid for gpu in Nvml(library, None).gpus()] == ["GPU-0", "GPU-1"]
    assert [gpu.uuid for gpu in Nvml(library, [1]).gpus()] == ["GPU-1"]
    assert [gpu.uuid for gpu in Nvml(library, ["GPU-0"]).gpus()] == ["GPU-0"]
    (gpu,) = Nvml(library, [0]).gpus()
    assert (gpu.name, gpu.total_mib, gpu.driver) == ("NVIDIA GeForce RTX 5090", 32_607, "580.65")


def test_a_sample_is_in_the_columns_units(library: FakeLibrary) -> None:
    sample = Nvml(library, [0]).sample()[0]
    sample.pop("t_ns")
    assert sample == {
        "gpu": "GPU-0",
        "used_mib": 1000.0,
        "power_w": 450.0,
        "energy_j": 7.5,
        "util_pct": 99.0,
        "sm_clock_mhz": 2400,
        "mem_clock_mhz": 14000,
        "temperature_c": 61,
        "power_limit_w": 575.0,
        "throttle": 4,
    }


@pytest.mark.parametrize(
    ("function", "column"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetUtilizationRates", "util_pct"),
        ("nvmlDeviceGetClockInfo", "sm_clock_mhz"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle"),
    ],
)
def test_what_a_card_does_not_support_is_unknown(library: FakeLibrary, function: str, column: str) -> None:
    library.unsupported.add(function)
    sample = Nvml(library, [0]).sample()[0]
    assert sample[column] is None
    assert sample["used_mib"] == 1000.0


def test_processes_that_are_not_the_servers_are_named(library: FakeLibrary) -> None:
    library.processes = [[11, 22], [33]]
    assert Nvml(library, None).others([22]) == {"GPU-0": "11:program-11", "GPU-1": "33:program-33"}
    library.unsupported.add("nvmlSystemGetProcessName")
    assert Nvml(library, [0]).others([22]) == {"GPU-0": "11:?"}
    library.unsupported.add("nvmlDeviceGetComputeRunningProcesses")
    assert Nvml(library, [0]).others([]) == {"GPU-0": ""}


def test_one_card_of_two_is_watched_alone(library: FakeLibrary) -> None:
    own = Nvml(library, None).only(["GPU-1"])
    assert own.used_mib() == {"GPU-1": 2000.0}
    assert [row["gpu"] for row in own.sample()] == ["GPU-1"]


def test_a_servers_own_memory_is_told_per_process(library: FakeLibrary) -> None:
    library.processes = [[11, 22, 33], [33]]
    library.per_process = {11: 300 * MIB, 22: 400 * MIB, 33: 50_000 * MIB}
    nvml = Nvml(library, None)
    assert nvml.own_mib([11, 22]) == {"GPU-0": 700.0}
    assert nvml.own_mib([44]) == {}, "pids of another namespace are nobody's"
    library.per_process.pop(22)  # as under WSL
    assert nvml.own_mib([11, 22]) == {}
    library.unsupported.add("nvmlDeviceGetComputeRunningProcesses")
    assert nvml.own_mib([11]) == {}


def test_samples_tell_the_servers_memory_apart_from_a_neighbours(library: FakeLibrary) -> None:
    library.processes, library.per_process = [[11, 33], [33]], {11: 300 * MIB, 33: 50_000 * MIB}
    sampler = NvmlSampler(Nvml(library, None), lambda: (11,), rate_hz=1000).start()
    for _ in range(2):
        library.asked.clear()
        assert library.asked.wait(10)
    rows = sampler.stop().to_pylist()
    assert {(row["gpu"], row["own_mib"]) for row in rows} == {("GPU-0", 300.0), ("GPU-1", None)}
    assert {row["other_pids"] for row in rows} == {"33:program-33"}


def test_a_sampler_gathers_until_it_is_stopped(library: FakeLibrary) -> None:
    library.processes = [[11], []]
    sampler = NvmlSampler(Nvml(library, None), lambda: (), rate_hz=1000).start()
    for _ in range(3):
        library.asked.clear()
        assert library.asked.wait(10)
    library.used = [1000, 3000]
    library.asked.clear()
    assert library.asked.wait(10)
    table = sampler.stop()
    assert table.schema.equals(NVML_SCHEMA)
    assert table.num_rows >= 6
    assert table.num_rows % 2 == 0
    assert set(table["gpu"].to_pylist()) == {"GPU-0", "GPU-1"}
    assert set(table.filter(table["gpu"].to_numpy(zero_copy_only=False) == "GPU-0")["other_pids"].to_pylist()) == {
        "11:program-11"
    }
    assert set(table.filter(table["gpu"].to_numpy(zero_copy_only=False) == "GPU-1")["other_pids"].to_pylist()) == {None}
    assert sampler.error is None


def test_a_card_that_falls_off_the_bus_ends_sampling_and_not_the_run(library: FakeLibrary) -> None:
    sampler = NvmlSampler(Nvml(library, None), lambda: (), rate_hz=1000).start()
    assert library.asked.wait(10)
    library.broken = True
    sampler._thread.join(10)
    assert not sampler._thread.is_alive()
    assert sampler.stop().num_rows >= 0
    assert sampler.error is not None
    assert "lost" in sampler.error.lower()


def test_the_fullest_card_counts_in_the_live_view(library: FakeLibrary) -> None:
    sampler = NvmlSampler(Nvml(library, None), lambda: (), rate_hz=1000)
    assert sampler.latest_used_mib() is None
    sampler.start()
    for _ in range(2):
        library.asked.clear()
        assert library.asked.wait(10)
    sampler.stop()
    assert sampler.latest_used_mib() == 2000


def test_a_machine_without_a_driver_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    nvml, why = open_nvml()
    assert nvml is None
    assert why.startswith("no NVML: ")


def test_a_card_that_is_not_there_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "580.65")
    nvml, why = open_nvml([7])
    assert nvml is None
    assert "no card" in why

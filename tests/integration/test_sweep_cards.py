"""Sweeps on a machine with two cards, over doubles: each server sees, and is watched on, its own cards only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_runs import QUICK, Ended, free_port, points, qwenbench, record

from qwenbench.engine.config import Gpu
from qwenbench.sweep.slots import card_locks

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import fake_cards

SERVER = Path(fake_cards.__file__)
NEIGHBOUR_MIB = 5_000
NAME = "NVIDIA GeForce RTX 5090"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_cards.FakeNvml]:
    """Two cards; a process that is none of ours holds memory of the second."""
    folder = tmp_path / "cards"
    folder.mkdir()
    monkeypatch.setenv(fake_cards.FOLDER, str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = fake_cards.FakeNvml(folder)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))  # the locks of other tests are not ours
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as neighbour:
        fake_cards.hold(folder, neighbour.pid, {1: NEIGHBOUR_MIB})
        yield nvml
        neighbour.kill()


def went_well(ended: Ended) -> None:
    """All was measured; on a busy machine the client may have been too late for a point to count."""
    assert ended.status == 0 or (ended.status == 1 and "are INVALID" in ended.err), ended.err
    assert "FAILED" not in ended.err


def sweep(folder: Path, *arguments: str) -> Ended:
    target = ("--out", str(folder.parent), "--run-id", folder.name, "--port", str(free_port(2)))
    command = f"{sys.executable} {SERVER}"
    return qwenbench(
        "sweep", "--launcher", "process", "--vllm-command", command, *QUICK, "--concurrency", "2", *target, *arguments
    )


def test_two_servers_side_by_side_are_watched_on_their_own_cards(machine: fake_cards.FakeNvml, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = sweep(run, "--devices", "0,1", "--capture", "8,16,32", "--repeats", "2")
    went_well(ended)
    assert "not given back" not in ended.err, "a neighbour's server is no memory of ours"
    seen = set()
    for config in ("cap8-seq8", "cap16-seq16", "cap32-seq32"):
        launch = record(run / "servers" / config / "launch.json")
        (card,) = launch["server"]["cards"]
        seen.add(card["index"])
        assert launch["env"]["CUDA_VISIBLE_DEVICES"] == str(card["index"])
        assert launch["env"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        before = fake_cards.RESERVED_MIB + (NEIGHBOUR_MIB if card["index"] == 1 else 0)
        memory = record(run / "servers" / config / "memory.json")
        assert (memory["vram_before_mib"], memory["vram_after_mib"]) == (before, before)
        assert memory["vram_ready_mib"] == memory["vram_peak_mib"] == before + 20_000
        for point in points(run):
            if point["config_id"] == config:
                assert float(point["vram_own_peak_mib"]) == 20_000
    assert seen == {0, 1}
    others = [line for line in ended.err.splitlines() if "another process is on the card" in line]
    assert len(others) == 1, "only the neighbour is a stranger, not the other slot's server"


def test_devices_count_among_the_cards_that_were_inherited(
    machine: fake_cards.FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    ended = sweep(tmp_path / "run", "--devices", "0", "--capture", "8")
    went_well(ended)
    launch = record(tmp_path / "run" / "servers" / "cap8-seq8" / "launch.json")
    assert launch["server"]["cards"] == [{"index": 1, "uuid": "GPU-111", "name": NAME}]
    assert launch["env"]["CUDA_VISIBLE_DEVICES"] == "1"
    refused = sweep(tmp_path / "refused", "--devices", "1", "--capture", "8")
    assert refused.status == 2
    assert "--devices 1: 1 is no card of this machine that may be used" in refused.err


def test_without_devices_a_server_is_kept_on_the_first_card(machine: fake_cards.FakeNvml, tmp_path: Path) -> None:
    machine.per_process = False  # as under WSL: only the card's total is told
    ended = sweep(tmp_path / "run", "--capture", "8")
    went_well(ended)
    assert json.loads((tmp_path / "run" / "servers" / "cap8-seq8" / "launch.json").read_text())["server"]["cards"] == [
        {"index": 0, "uuid": "GPU-000", "name": NAME}
    ]
    (point,) = points(tmp_path / "run")
    assert float(point["vram_before_mib"]) == fake_cards.RESERVED_MIB
    assert float(point["vram_own_peak_mib"]) == 20_000


def test_both_cards_of_a_tensor_parallel_server_are_its_own(machine: fake_cards.FakeNvml, tmp_path: Path) -> None:
    ended = sweep(tmp_path / "run", "--capture", "8", "--vllm-arg=--tensor-parallel-size=2")
    went_well(ended)
    launch = record(tmp_path / "run" / "servers" / "cap8-seq8" / "launch.json")
    assert launch["env"]["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.fixture
def attached(machine: fake_cards.FakeNvml, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of somebody else's on the second card. (A simulator, which for once does not say so.)"""
    port = free_port()
    words = ["ig1/Qwen3.5-9B-NVFP4", "--served-model-name", "mine", "--port", str(port), "--sim-time-scale", "0.2"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    async def version(*_: object) -> str:
        return "0.32.0"

    monkeypatch.setattr("qwenbench.sweep.probing.server_version", version)
    with subprocess.Popen(
        [sys.executable, str(SERVER), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        log = machine.folder.parent / "theirs.log"
        with log.open("w") as file:
            for line in server.stdout:
                file.write(line)
                if "Application startup complete" in line:
                    break
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, "bench ended a server that was not its own"
        server.terminate()
        server.stdout.read()


def bench(url: str, folder: Path, *arguments: str) -> Ended:
    load = ("--scenario", "math", "--concurrency", "2", "--requests", "4", "--output-tokens", "8-16")
    return qwenbench("bench", "--url", url, "--out", str(folder.parent), "--run-id", folder.name, *load, *arguments)


def test_bench_finds_the_servers_card_and_leaves_the_other_alone(
    machine: fake_cards.FakeNvml, attached: str, tmp_path: Path
) -> None:
    """Another qwenbench measures on the first card meanwhile; the server there may hold what it likes."""
    run = tmp_path / "run"
    with card_locks([Gpu(0, "GPU-000", NAME, 32607.0, "580.0")]):
        ended = bench(attached, run)
    went_well(ended)
    for words in ("starting the server", "ready after", "given back", "next launch"):
        assert words not in ended.err
    assert [gpu["index"] for gpu in record(run / "run.json")["hardware"]["gpus"]] == [1]
    (point,) = points(run)
    assert float(point["vram_own_peak_mib"]) == 20_000
    assert float(point["vram_peak_mib"]) == fake_cards.RESERVED_MIB + NEIGHBOUR_MIB + 20_000
    assert (point["vram_before_mib"], point["startup_s"]) == ("", ""), "of a server that runs already neither is known"
    assert len([line for line in ended.err.splitlines() if "another process is on the card" in line]) == 1
    with card_locks([Gpu(1, "GPU-111", NAME, 32607.0, "580.0")]):
        refused = bench(attached, tmp_path / "refused")
    assert refused.status == 2
    assert "card 1" in refused.err


def test_bench_of_a_server_that_no_card_shows_watches_none_unless_told(
    machine: fake_cards.FakeNvml, attached: str, tmp_path: Path
) -> None:
    for file in machine.folder.glob("*.json"):
        file.unlink()
    ended = bench(attached, tmp_path / "run")
    went_well(ended)
    assert "--devices" in ended.err
    assert [point["vram_peak_mib"] for point in points(tmp_path / "run")] == [""]
    told = bench(attached, tmp_path / "told", "--devices", "1")
    went_well(told)
    assert [float(point["vram_peak_mib"]) for point in points(tmp_path / "told")] == [fake_cards.RESERVED_MIB]


def test_bench_reads_the_servers_log_and_its_labels(
    machine: fake_cards.FakeNvml, attached: str, tmp_path: Path
) -> None:
    ended = bench(attached, tmp_path / "labels")
    (point,) = points(tmp_path / "labels")
    went_well(ended)
    assert int(point["kv_cache_blocks"]) > 900
    assert int(point["kv_cache_tokens"]) == 262_144
    assert int(point["requests_that_fit"]) > 100
    log = machine.folder.parent / "theirs.log"
    ended = bench(attached, tmp_path / "log", "--server-log", str(log))
    went_well(ended)
    memory = record(tmp_path / "log" / "servers" / "server" / "memory.json")
    assert (memory["weights_gib"], memory["kv_cache_gib"]) == (10.57, 15.15)
    assert (tmp_path / "log" / "servers" / "server" / "server.log").read_text() == log.read_text()
    missing = bench(attached, tmp_path / "missing", "--server-log", str(tmp_path / "no.log"))
    assert missing.status == 2
    assert "--server-log" in missing.err
    assert "Traceback" not in missing.err

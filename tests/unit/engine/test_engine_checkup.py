"""doctor: each check has a status, what was seen, and what to do; no secret is ever shown."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from qwenbench.cli.main import dispatch
from qwenbench.engine import checkup
from qwenbench.engine.config import DockerOptions, Gpu, ServerConfig
from qwenbench.engine.docker import command
from qwenbench.engine.docker.command import Said
from qwenbench.engine.leftovers import Leftover

NAMES = [
    "engine",
    "runtime",
    "image",
    "gpu",
    "driver",
    "speed",
    "port",
    "disk",
    "hf_token",
    "clock",
    "cpu_governor",
    "leftovers",
]


def engine_says(monkeypatch: pytest.MonkeyPatch, info: Said, image: Said) -> None:
    async def docker(*arguments: str, limit_s: float = 0.0) -> Said:
        return info if arguments[0] == "info" else image

    monkeypatch.setattr(command, "docker", docker)


async def test_a_ready_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"ServerVersion": "28.2.2", "OperatingSystem": "Debian", "Runtimes": {"runc": {}, "nvidia": {}}}
    image = Said(0, '["vllm/vllm-openai@sha256:0123456789abcdef0123"]\tsha256:99\n', "")
    engine_says(monkeypatch, Said(0, json.dumps(info), ""), image)
    checks = await checkup.check_docker(ServerConfig())
    assert [(check.name, check.status) for check in checks] == [("engine", "ok"), ("runtime", "ok"), ("image", "ok")]
    assert "sha256:0123456789ab" in checks[2].detail


async def test_no_runtime_and_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"ServerVersion": "28.2.2", "Runtimes": {"runc": {}}}
    engine_says(monkeypatch, Said(0, json.dumps(info), ""), Said(1, "", "Error: No such image: vllm/vllm-openai"))
    _, runtime, image = await checkup.check_docker(ServerConfig())
    assert (runtime.status, image.status) == ("missing", "warning")
    assert "nvidia-ctk" in runtime.fix
    assert image.fix == "docker pull vllm/vllm-openai:v0.18.0-cu130"


async def test_an_engine_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    down = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    engine_says(monkeypatch, Said(1, json.dumps({"ServerErrors": [down]}), down), Said(1, "", down))
    checks = await checkup.check_docker(ServerConfig())
    assert [check.status for check in checks] == ["missing"] * 3
    assert "systemctl start docker" in checks[0].fix


@pytest.mark.parametrize(
    ("driver", "image", "status"),
    [
        ("575.51.03", "vllm/vllm-openai:v0.18.0-cu130", "missing"),
        ("580.65.06", "vllm/vllm-openai:v0.18.0-cu130", "ok"),
        ("570.86.15", "vllm/vllm-openai:v0.18.0-cu128", "ok"),
        ("550.54.15", "vllm/vllm-openai:v0.18.0", "ok"),
    ],
)
def test_the_driver_against_the_image(driver: str, image: str, status: str) -> None:
    config = ServerConfig(docker=DockerOptions(image=image))
    gpu, found = checkup.check_gpu([Gpu(0, "GPU-a", "NVIDIA GeForce RTX 5090", 32607.0, driver)], "", config)
    assert (gpu.status, found.status) == ("ok", status)
    assert "32,607 MiB" in gpu.detail


def test_no_card() -> None:
    gpu, driver = checkup.check_gpu([], "no NVML: driver not loaded", ServerConfig())
    assert (gpu.status, gpu.detail, driver.status) == ("missing", "no NVML: driver not loaded", "missing")


def test_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = ServerConfig(port=taken.getsockname()[1])
        assert checkup.check_port(config).status == "missing"
    assert checkup.check_port(config).status == "ok"


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServerConfig(docker=DockerOptions(cache_mount=f"{tmp_path}/not/yet:/root/.cache"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: replace_free(2) if path == tmp_path else replace_free(0))
    assert checkup.check_disk(config).status == "warning"
    monkeypatch.setattr("shutil.disk_usage", lambda path: replace_free(200))
    assert "200 GiB free" in checkup.check_disk(config).detail
    assert checkup.check_disk(replace(config, docker=DockerOptions(cache_mount=None))).status == "warning"
    windows = replace(config, docker=DockerOptions(cache_mount="E:\\cache:/root/.cache"))
    assert checkup.check_disk(windows).status == "ok"


def replace_free(gib: int) -> object:
    return type("Usage", (), {"free": gib * 1024**3})()


def test_clock_and_governor(tmp_path: Path) -> None:
    source = tmp_path / "current_clocksource"
    assert checkup.check_clock(source).status == "warning"
    source.write_text("hpet\n")
    assert checkup.check_clock(source).status == "warning"
    source.write_text("tsc\n")
    assert checkup.check_clock(source).status == "ok"
    assert checkup.check_governor(f"{tmp_path}/none*").status == "ok"
    (tmp_path / "g0").write_text("powersave\n")
    assert checkup.check_governor(f"{tmp_path}/g*").status == "warning"


def fake_nvcc(folder: Path, release: str) -> dict[str, str]:
    """A toolkit whose compiler tells this release, as CUDA_HOME."""
    program = folder / "bin" / "nvcc"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.93'\n")
    program.chmod(0o755)
    return {"CUDA_HOME": str(folder)}


@pytest.mark.parametrize(
    ("card", "release", "status"),
    [
        ("NVIDIA GeForce RTX 5090", "12.8", "warning"),
        ("NVIDIA GeForce RTX 5060 Ti", "12.8", "warning"),
        ("NVIDIA GeForce RTX 5090", "12.9", "ok"),
        ("NVIDIA GeForce RTX 5090", "13.0", "ok"),
        ("NVIDIA GeForce RTX 4090", "12.4", "ok"),
    ],
)
def test_a_toolkit_that_does_not_know_the_card_costs_the_sampler(
    tmp_path: Path, card: str, release: str, status: str
) -> None:
    found = checkup.check_toolkit([Gpu(0, "GPU-a", card, 32_607.0, "580.0")], fake_nvcc(tmp_path, release))
    assert found.status == status
    assert release in found.detail
    if status == "warning":
        assert "sampler" in found.detail
        assert "12.9" in found.fix


def test_settings_that_cost_speed_are_told_with_their_cost() -> None:
    assert checkup.check_speed(ServerConfig(), {}).status == "ok"
    slow = ServerConfig(flags={"enforce-eager": None}, env={"VLLM_USE_FLASHINFER_SAMPLER": "0"})
    found = checkup.check_speed(slow, {"CUDA_LAUNCH_BLOCKING": "1"})
    assert found.status == "warning"
    for name in ("--enforce-eager", "VLLM_USE_FLASHINFER_SAMPLER=0: top-k", "CUDA_LAUNCH_BLOCKING=1"):
        assert name in found.detail
    assert checkup.check_speed(ServerConfig(extra_args=("--no-async-scheduling",)), {}).status == "warning"


def test_for_processes_the_program_is_what_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dispatch(["doctor", "--launcher", "process", "--vllm-command", str(tmp_path / "no"), "--json"]) == 1
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "engine" not in checks
    assert checks["vllm"]["status"] == "missing"
    assert "--vllm-command" in checks["vllm"]["fix"]
    ok = [checkup.Check("vllm", "ok", ""), checkup.Check("clock", "warning", "", "x")]
    monkeypatch.setattr(checkup, "check_all", lambda *_: ok)
    assert dispatch(["doctor", "--launcher", "process"]) == 0, "a warning is nothing that is missing"
    assert dispatch(["doctor", "--launcher", "sim"]) == 2


def test_leftovers_are_named_with_the_way_to_remove_them() -> None:
    found = checkup.check_leftovers([Leftover("container", "qwenbench-r-1", "r", container="qwenbench-r-1")])
    assert (found.status, found.detail) == ("warning", "qwenbench-r-1 of run r")
    assert "--remove-leftovers" in found.fix


def test_json_holds_every_check_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret-0123456789")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/planted-secret-0123456789.sock")
    assert dispatch(["doctor", "--json"]) == 1, "no engine answers there"
    out = capsys.readouterr().out
    checks = json.loads(out)["checks"]
    assert [check["name"] for check in checks] == NAMES
    assert all(check["status"] in ("ok", "warning", "missing") for check in checks)
    assert all(check["fix"] for check in checks if check["status"] != "ok")
    assert "planted" not in out

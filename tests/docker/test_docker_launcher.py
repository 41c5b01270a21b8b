"""The docker launcher against a real engine; the server in the image is the simulator."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import ENTRYPOINT, SERVER_IMAGE, docker, import_image
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.docker import launcher as launcher_module
from qwenbench.engine.docker.launcher import ContainerServer, DockerLauncher
from qwenbench.engine.docker.line import shown_argv
from qwenbench.engine.failures import LaunchError
from qwenbench.engine.leftovers import find_leftovers, remove_leftover
from qwenbench.errors import UsageError

Deployment = Callable[..., ServerConfig]
LAUNCHER = DockerLauncher(tell=lambda text: None)
ENGINE = Path(__file__).with_name("engine.sh")


def engine(what: str) -> None:
    """Stops or starts the engine itself."""
    subprocess.run([ENGINE, what], check=True)


def until(condition: Callable[[], object]) -> None:
    """Waits for something that is about to happen; the test's own time limit ends it."""
    while not condition():
        time.sleep(0.02)


async def launch(config: ServerConfig, folder: Path, run_id: str = "run-1") -> ContainerServer:
    await LAUNCHER.check(config)
    return await LAUNCHER.launch(config, folder, run_id)


def inspect(server: ContainerServer) -> dict[str, Any]:
    return json.loads(docker("container", "inspect", str(server.record.container)))[0]


@pytest.mark.parametrize("name", ["generic", "rtx5090-headless", "rtx5090-wsl"])
async def test_the_container_is_what_the_line_says(
    tmp_path: Path, deployment: Deployment, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret-0123456789")
    config = deployment(name)
    if name == "rtx5090-wsl":  # a Windows path names a volume on Linux
        config = replace(config, docker=replace(config.docker, cache_mount=f"{tmp_path}/E:/root/.cache"))
    server = await launch(config, tmp_path)
    try:
        await server.wait_ready(60)
        found = inspect(server)
        assert [found["Path"], *found["Args"]] == [*ENTRYPOINT, config.model, *config.vllm_args()]
        host = found["HostConfig"]
        assert (host["Runtime"], host["IpcMode"], host["Privileged"], host["Init"]) == ("nvidia", "host", False, True)
        assert (host["AutoRemove"], host["NetworkMode"] in ("default", "bridge")) == (False, True)
        request = host["DeviceRequests"][0]
        assert (request["Count"], request["Capabilities"]) == (-1, [["gpu"]])
        assert host["Binds"] == [config.docker.cache_mount]
        assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(config.port)}]}
        environment = found["Config"]["Env"]
        assert "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1" in environment
        assert "HF_TOKEN=planted-secret-0123456789" in environment
        labels = found["Config"]["Labels"]
        assert (labels["qwenbench.run"], labels["qwenbench.owner-pid"]) == ("run-1", str(os.getpid()))
        record = json.loads((tmp_path / "launch.json").read_text())
        assert record["image_digest"] == docker("image", "inspect", "-f", "{{.Id}}", SERVER_IMAGE).strip()
        assert record["shown_argv"] == shown_argv(config)
        assert found["State"]["Pid"] in server.gpu_pids()
    finally:
        report = await server.stop()
    assert (report.exit_code, report.killed) == (0, False)
    assert "GPU KV cache size" in server.log_path.read_text()
    assert all("planted" not in path.read_text() for path in tmp_path.glob("*") if path.is_file())
    with pytest.raises(subprocess.CalledProcessError):
        inspect(server)


async def test_stopped_to_started_again_without_a_conflict(tmp_path: Path, deployment: Deployment) -> None:
    config = deployment()
    for _ in range(3):  # docker stop returns before port and name are free
        server = await launch(config, tmp_path)
        await server.wait_ready(60)
        await server.stop()


async def test_sigterm_before_the_entrypoint_is_ready(tmp_path: Path, deployment: Deployment) -> None:
    server = await launch(deployment("generic", "--sim-fail", "hang-at-start"), tmp_path)
    await asyncio.to_thread(until, lambda: docker("ps", "--quiet"))
    report = await server.stop(60)
    assert not report.killed


async def test_the_port_held_by_a_container(tmp_path: Path, deployment: Deployment) -> None:
    config = deployment()
    docker(
        "run", "-d", "--name", "other", "--entrypoint", "sleep", "-p", f"127.0.0.1:{config.port}:80", SERVER_IMAGE, "99"
    )
    with pytest.raises(UsageError, match=str(config.port)):
        await LAUNCHER.check(config)
    with pytest.raises(LaunchError) as error:
        await LAUNCHER.launch(config, tmp_path, "run-1")
    assert error.value.failure.kind == "port_taken"
    docker("rm", "-f", "other")


async def test_the_port_held_by_a_process(tmp_path: Path, deployment: Deployment) -> None:
    config = deployment()
    with socket.create_server(("127.0.0.1", config.port)), pytest.raises(UsageError, match=str(config.port)):
        await LAUNCHER.check(config)


@pytest.mark.parametrize("by", ["container", "process"])
async def test_the_port_taken_between_the_check_and_the_start(
    tmp_path: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    config = deployment()
    monkeypatch.setattr("qwenbench.engine.readiness.port_in_use", lambda host, port: False)
    taken = None
    if by == "container":
        mapping = f"127.0.0.1:{config.port}:80"
        docker("run", "-d", "--name", "other", "--entrypoint", "sleep", "-p", mapping, SERVER_IMAGE, "99")
    else:
        taken = socket.create_server(("127.0.0.1", config.port))
    server = await LAUNCHER.launch(config, tmp_path, "run-1")
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(60)
    await server.stop()
    assert error.value.failure.kind == "port_taken"
    assert str(config.port) in error.value.failure.evidence
    if taken is not None:
        taken.close()
    else:
        docker("rm", "-f", "other")


async def test_the_name_taken(tmp_path: Path, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    docker("run", "-d", "--name", "other", "--entrypoint", "sleep", SERVER_IMAGE, "99")
    monkeypatch.setattr(launcher_module, "_unique_name", lambda run_id: "other")
    server = await launch(deployment(), tmp_path)
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(60)
    assert error.value.failure.kind == "name_taken"
    assert docker("ps", "--format", "{{.Names}}").split() == ["other"]
    await server.stop()
    assert docker("ps", "--format", "{{.Names}}").split() == ["other"]  # never one that is not its own
    docker("rm", "-f", "other")


async def test_an_absent_image(tmp_path: Path, deployment: Deployment) -> None:
    told: list[str] = []
    config = deployment()
    config = replace(config, docker=replace(config.docker, image="vllm/vllm-openai:nosuch"))
    with pytest.raises(LaunchError) as error:
        await DockerLauncher(told.append).launch(config, tmp_path, "run-1")
    assert error.value.failure.kind == "image_missing"
    assert told == ["pulling vllm/vllm-openai:nosuch ..."]


async def test_an_entrypoint_that_is_not_there(tmp_path: Path, deployment: Deployment, folders: Path) -> None:
    import_image(folders / "server", "broken:1", ["nosuch"])
    config = deployment()
    server = await launch(replace(config, docker=replace(config.docker, image="broken:1")), tmp_path)
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(60)
    assert (error.value.failure.kind, error.value.failure.exit_code) == ("entrypoint", 127)
    await server.stop()


async def test_a_runtime_that_is_not_there(tmp_path: Path, deployment: Deployment) -> None:
    config = deployment()
    config = replace(config, docker=replace(config.docker, runtime="nosuch"))
    server = await launch(config, tmp_path)
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(60)
    assert "nosuch" in error.value.failure.evidence
    await server.stop()


async def test_a_broken_driver(tmp_path: Path, deployment: Deployment) -> None:
    broken = Path(os.environ["ENGINE_FOLDER"]) / "nvidia-broken"
    broken.touch()
    try:
        server = await launch(deployment(), tmp_path)
        with pytest.raises(LaunchError) as error:
            await server.wait_ready(60)
        await server.stop()
    finally:
        broken.unlink()
    assert error.value.failure.kind == "nvidia_runtime_broken"


@pytest.mark.parametrize(
    ("fail", "kind"),
    [("exit-silently", "unknown"), ("oom-at-start", "oom_graph_capture"), ("kv-too-small", "kv_cache_too_small")],
)
async def test_a_container_that_exits_at_once(tmp_path: Path, deployment: Deployment, fail: str, kind: str) -> None:
    server = await launch(deployment("rtx5090-headless", "--sim-fail", fail), tmp_path)
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(600)
    assert error.value.failure.kind == kind
    await server.stop()


async def test_one_that_is_killed_for_memory(tmp_path: Path, deployment: Deployment, folders: Path) -> None:
    import_image(folders / "server", "hungry:1", ["python3", "-c", "x = []\nwhile True: x.append(bytearray(1 << 20))"])
    config = deployment()
    config = replace(config, env={"QWENBENCH_TEST_MEMORY_MIB": "48"}, docker=replace(config.docker, image="hungry:1"))
    server = await launch(config, tmp_path)
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(600)
    assert (error.value.failure.kind, error.value.failure.exit_code) == ("oom_killed", 137)
    await server.stop()


async def test_one_that_never_gets_healthy(tmp_path: Path, deployment: Deployment) -> None:
    server = await launch(deployment("generic", "--sim-fail", "hang-at-start"), tmp_path)
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(2)
    assert error.value.failure.kind == "never_healthy"
    await server.stop()


async def test_the_engine_stopped_while_a_server_runs(tmp_path: Path, deployment: Deployment) -> None:
    server = await launch(deployment(), tmp_path)
    await server.wait_ready(60)
    engine("stop")
    try:
        await asyncio.to_thread(until, lambda: not server.alive())
        failure = await server.failure("load")
        assert failure.phase == "load"
        with pytest.raises(UsageError, match="Docker engine"):
            await LAUNCHER.check(deployment())
        await server.stop(5)
    finally:
        engine("start")
    await server.stop()
    docker("rm", "-f", str(server.record.container))


async def test_a_leftover_is_removed_and_a_live_run_left_alone(tmp_path: Path, deployment: Deployment) -> None:
    live = await launch(deployment(), tmp_path / "live", "live-run")
    await live.wait_ready(60)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        other_port = probe.getsockname()[1]
    code = f"""
import asyncio
from dataclasses import replace
from pathlib import Path
from qwenbench.engine.deployments import find_deployment
from qwenbench.engine.docker.launcher import DockerLauncher
async def main():
    found = find_deployment("generic")
    config = replace(found, port={other_port}, docker=replace(found.docker, cache_mount=None))
    server = await DockerLauncher(print).launch(config, Path({str(tmp_path / "dead")!r}), "dead-run")
    await server.wait_ready(60)
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - a test
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    assert find_leftovers(None) == []
    owner.kill()
    owner.wait()
    owner.stdout.close()
    found = find_leftovers(None)
    assert [(left.kind, left.run_id) for left in found] == [("container", "dead-run")]
    assert find_leftovers(tmp_path / "live-run") == []
    assert find_leftovers(tmp_path / "dead-run") == found
    assert await remove_leftover(found[0])
    assert live.alive()
    with urllib.request.urlopen(f"{live.base_url}/health", timeout=5) as answer:  # noqa: ASYNC210 - a test
        assert answer.status == 200
    await live.stop()


async def test_time_from_stop_to_next_start(tmp_path: Path, deployment: Deployment) -> None:
    """Printed, not judged: what is added to Docker's own time."""
    server = await launch(deployment(), tmp_path)
    await server.wait_ready(60)
    began = time.monotonic()
    await server.stop()
    stopped = time.monotonic()
    server = await launch(deployment(), tmp_path)
    launched = time.monotonic()
    await server.wait_ready(60)
    await server.stop()
    print(f"\nstop {stopped - began:.2f} s, next launch called {launched - stopped:.2f} s")

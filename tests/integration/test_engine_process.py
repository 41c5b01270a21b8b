"""The process launcher against real processes and sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from qwenbench.engine import supervised
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.failures import LaunchError
from qwenbench.engine.launch_record import VARIABLE as MARK
from qwenbench.engine.process import ProcessLauncher, ProcessServer
from qwenbench.errors import UsageError
from qwenbench.processes import by_variable

FAKE = Path(__file__).with_name("fake_vllm.py")
LAUNCHER = ProcessLauncher((sys.executable, str(FAKE)))
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process supervision needs Linux")


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every process of a test inherits a variable; at its end none may be left."""
    stamp = os.urandom(8).hex()
    monkeypatch.setenv("QWENBENCH_TEST", stamp)
    yield
    left = [pid for pid in by_variable("QWENBENCH_TEST").get(stamp, []) if pid != os.getpid()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def config(port: int, *extra: str) -> ServerConfig:
    return ServerConfig(model="some/model", served_model_name="m", port=port, extra_args=extra)


async def launch(folder: Path, port: int, *extra: str) -> ProcessServer:
    server = await LAUNCHER.launch(config(port, *extra), folder, "run-1")
    assert isinstance(server, ProcessServer)
    return server


async def test_ready_then_stopped_with_log_and_launch_record(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port)
    seconds = await server.wait_ready(20)
    assert 0 < seconds < 20
    assert server.alive()
    assert server.record.pid in server.gpu_pids()
    record = json.loads((tmp_path / "launch.json").read_text())
    assert record["argv"][-5:] == ["m", "--host", "127.0.0.1", "--port", str(port)]
    assert (record["pid"], record["run_id"], record["owner_pid"]) == (server.record.pid, "run-1", os.getpid())
    report = await server.stop(10)
    assert (report.exit_code, report.killed) == (0, False)
    assert not server.alive()
    assert "Application startup complete." in report.log_tail
    assert await server.stop() == report


async def test_shared_memory_of_a_killed_server_is_removed_and_anothers_is_not(tmp_path: Path, port: int) -> None:
    own, others = (Path("/dev/shm") / f"qwenbench-test-{os.getpid()}-{name}" for name in ("own", "others"))
    others.write_bytes(b"x")
    try:
        server = await launch(tmp_path, port, "--shared-memory", str(own))
        await server.wait_ready(20)
        assert own.exists()
        assert server.record.pid is not None
        os.kill(server.record.pid, signal.SIGKILL)  # it gets no chance to clean up
        await server.stop(10)
        assert not own.exists()
        assert others.exists()
    finally:
        own.unlink(missing_ok=True)
        others.unlink(missing_ok=True)


async def test_fresh_caches_are_a_launchs_own_and_go_with_it(tmp_path: Path, port: int) -> None:
    launcher = ProcessLauncher((sys.executable, str(FAKE)), caches="fresh")
    folders = set()
    for _ in range(2):
        server = await launcher.launch(config(port), tmp_path, "run-1")
        await server.wait_ready(20)
        folder = Path(server.record.env["VLLM_CACHE_ROOT"]).parent
        assert folder.is_dir()
        await server.stop(10)
        assert not folder.exists()
        folders.add(folder)
    assert len(folders) == 2


async def test_a_child_in_another_session_does_not_survive(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--stubborn-child")
    await server.wait_ready(20)
    assert len(server.gpu_pids()) == 2
    report = await server.stop(10)
    assert report.killed
    assert by_variable(MARK).get(server.record.env[MARK], []) == []


async def test_sigterm_is_followed_by_sigkill(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--ignore-term")
    await server.wait_ready(20)
    report = await server.stop(0.3)
    assert (report.exit_code, report.killed) == (-signal.SIGKILL, True)


async def test_children_end_when_the_server_dies_by_itself(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--stubborn-child", "--exit-on-get", "3")
    await server.wait_ready(20)
    await asyncio.to_thread(_get_until_closed, f"{server.base_url}/die")
    failure = await server.failure("load")
    assert (failure.phase, failure.exit_code) == ("load", 3)
    assert failure.evidence == "RuntimeError: told to die"
    assert by_variable(MARK).get(server.record.env[MARK], []) == []
    assert (await server.stop()).exit_code == 3


def _get_until_closed(url: str) -> None:
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=10)


async def test_secrets_are_masked_in_the_log_and_the_record(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "planted-secret-0123456789"
    monkeypatch.setenv("HF_TOKEN", secret)
    server = await launch(tmp_path, port, "--say-env", "HF_TOKEN")
    await server.wait_ready(20)
    report = await server.stop()
    for path in tmp_path.rglob("*"):
        assert secret not in path.read_text()
    assert secret not in repr(report)
    assert "the token is *** and that is that" in server.log_path.read_text()
    assert server.record.env_names == ("HF_TOKEN",)


async def test_an_answering_port_is_refused_by_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
        with pytest.raises(UsageError, match=str(port)):
            await LAUNCHER.check(config(port))
        with pytest.raises(LaunchError, match=str(port)) as error:
            await launch(tmp_path, port)
    assert error.value.failure.kind == "port_taken"


async def test_an_early_exit_does_not_wait_for_the_limit(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--exit", "1", "--say", "ValueError: a reason nobody knows")
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(600)
    failure = error.value.failure
    assert (failure.kind, failure.exit_code) == ("unknown", 1)
    assert failure.advice == f"It ended with exit status 1. The whole log: {tmp_path / 'server.log'}"
    assert failure.evidence == "ValueError: a reason nobody knows"


async def test_a_silent_exit_is_named_as_one(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--exit", "0")
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(600)
    assert error.value.failure.kind == "silent_exit"


async def test_never_healthy_says_what_it_saw_last(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--never-healthy")
    with pytest.raises(LaunchError) as error:
        await server.wait_ready(1.0)
    assert error.value.failure.kind == "never_healthy"
    assert "503" in error.value.failure.evidence
    await server.stop()


async def test_another_model_than_asked_for_is_not_ready(tmp_path: Path, port: int) -> None:
    server = await launch(tmp_path, port, "--served-model-name", "other")
    with pytest.raises(LaunchError, match="serves other, not m"):
        await server.wait_ready(20)
    await server.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_with_its_owner(tmp_path: Path, port: int, number: signal.Signals) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, {str(FAKE.parent)!r})
from test_engine_process import launch
async def main():
    server = await launch(Path({str(tmp_path)!r}), {port}, "--stubborn-child")
    await server.wait_ready(20)
    worker = os.fork()  # keeps the pipe to the supervisor open
    if worker == 0:
        import time
        time.sleep(600)
    print(server.record.env["{MARK}"], worker, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    mark, worker = owner.stdout.readline().split()
    assert len(by_variable(MARK).get(mark, [])) == 3  # supervisor, server, child
    owner.send_signal(number)
    owner.wait()
    deadline = time.monotonic() + 20
    while by_variable(MARK).get(mark, []) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert by_variable(MARK).get(mark, []) == []
    os.kill(int(worker), signal.SIGKILL)
    owner.stdout.close()
    while Path("/proc", worker).exists():
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_supervisor_that_is_told_to_end_as_it_starts_ends_its_server(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def hit(*words: Any, **options: Any) -> subprocess.Popen[bytes]:
        process = popen(*words, **options)
        process.send_signal(number)  # before its interpreter runs
        return process

    async def ended() -> supervised.Ended:
        argv = [sys.executable, "-c", "import time; time.sleep(60)"]
        process = await supervised.SupervisedProcess.start(argv, tmp_path / "server.log", {}, ())
        return await process.gone()

    popen = subprocess.Popen
    monkeypatch.setattr(supervised.subprocess, "Popen", hit)
    assert uvloop.run(ended()) == supervised.Ended(-signal.SIGTERM, killed=False)
    assert capfd.readouterr().err == ""


async def test_a_missing_command_is_a_usage_error(port: int) -> None:
    launcher = ProcessLauncher.of_command_line("no-such-program-here serve")
    with pytest.raises(UsageError, match="no-such-program-here"):
        await launcher.check(config(port))


async def test_a_secret_among_the_arguments_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match="--api-key"):
        await LAUNCHER.check(config(port, "--api-key", "abcdefgh"))

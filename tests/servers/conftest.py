"""Real servers as processes, and `qwenbench bench` against them."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

START_S = 240.0
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Bench:
    """What `qwenbench bench` did."""

    status: int
    out: str
    points: list[dict[str, str]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


@contextmanager
def process(words: list[str], log: Path, url: str, env: Mapping[str, str] = {}) -> Iterator[str]:
    """A server's process, from its first answer to its end."""
    with log.open("wb") as out:
        server = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env})
    try:
        deadline = time.monotonic() + START_S
        while not _answers(url):
            assert server.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., Bench]:
    """`qwenbench bench --url URL ...`, with its row(s) of points.csv."""

    def run(url: str, *options: str, env: Mapping[str, str] = {}) -> Bench:
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        words = [sys.executable, "-m", "qwenbench", "bench", "--url", url, *options, "--no-report"]
        words += ["--out", str(folder.parent), "--run-id", folder.name]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **env})
        assert "Traceback" not in done.stderr, done.stderr
        table = folder / "points.csv"
        points = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
        return Bench(done.returncode, done.stdout + done.stderr, points)

    return run


def _home(name: str) -> Path:
    folder = Path(os.environ.get(name, "/nonexistent"))
    if not folder.is_dir():
        pytest.skip(f"{name} names no folder: run `make test-servers`")
    return folder


@pytest.fixture(scope="session")
def servers_home() -> Path:
    return _home("QWENBENCH_SERVERS_HOME")


@pytest.fixture(scope="session")
def vllm_home() -> Path:
    return _home("QWENBENCH_VLLM_HOME")


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def llama(servers_home: Path, logs: Path) -> Iterator[str]:
    """llama.cpp's server (llama-cpp-python) with SmolLM2 135M: real weights, real text."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    words = [str(servers_home / "llama/bin/python"), "-m", "llama_cpp.server", "--host", "127.0.0.1"]
    words += ["--port", str(port), "--model", str(servers_home / "smollm2.gguf"), "--n_ctx", "2048"]
    # by default it breaks a stream off when the next request comes
    words += ["--model_alias", "smollm2", "--n_threads", "2", "--interrupt_requests", "False"]
    with process(words, logs / "llama.log", url):
        yield url


@pytest.fixture(scope="session")
def simulator(logs: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    words = [sys.executable, "-m", "qwenbench", "simulate", "serve", "ig1/Qwen3.5-9B-NVFP4"]
    with process([*words, "--served-model-name", "m", "--port", str(port)], logs / "simulator.log", url):
        yield url


@contextmanager
def litellm_before(behind: str, model: str, servers_home: Path, logs: Path, key: str = "") -> Iterator[str]:
    """LiteLLM's proxy before a server; with a `key` it is demanded on every path."""
    port = free_port()
    config = logs / f"litellm-{port}.yaml"
    lines = ["model_list:", f"  - model_name: {model}", "    litellm_params:", f"      model: openai/{model}"]
    lines += [f"      api_base: {behind}/v1", "      api_key: none"]
    if key:
        lines += ["general_settings:", "  master_key: os.environ/PROXY_KEY"]
    config.write_text("\n".join(lines) + "\n")
    words = [str(servers_home / "litellm/bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
    url = f"http://127.0.0.1:{port}"
    env = {"PROXY_KEY": key, "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with process([*words, "--port", str(port)], logs / f"litellm-{port}.log", url, env):
        yield url


@pytest.fixture(scope="session")
def litellm(simulator: str, servers_home: Path, logs: Path) -> Iterator[str]:
    with litellm_before(simulator, "m", servers_home, logs) as url:
        yield url


@pytest.fixture(scope="session")
def transformers(vllm_home: Path, servers_home: Path, logs: Path) -> Iterator[tuple[str, str]]:
    """`transformers serve` with a tiny model of random weights: address and model."""
    command = vllm_home / "venv/bin/transformers"
    model = vllm_home / "models/tiny-qwen3"
    if not command.exists() or not model.is_dir():
        pytest.skip("`make test-vllm` has not installed transformers and its models here")
    url = f"http://127.0.0.1:{(port := free_port())}"
    words = [str(command), "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    env = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(servers_home / "accelerate")}
    with process(words, logs / "transformers.log", url, env):
        yield url, str(model)


@pytest.fixture(scope="session")
def habits() -> Iterator[str]:
    """bench/habit_server.py."""
    script = CHECKOUT / "bench" / "habit_server.py"
    with ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen([sys.executable, str(script), "0"], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(server.terminate)
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"

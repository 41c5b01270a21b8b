"""The simulated server as a process: what a client, a launcher and a scraper see of it. No GPU, no model."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from qwenbench.engine.startup_log_reader import parse_startup_log
from qwenbench.observe.metrics import parse_metrics
from qwenbench.simulator.steptime import calibration

MODEL = "ig1/Qwen3.5-9B-NVFP4"
NAME = "Qwen3.5-9B"
SEED_FLAGS = (
    *("--max-model-len", "auto", "--limit-mm-per-prompt.video", "0", "--max-cudagraph-capture-size", "64"),
    *("--max-num-seqs", "64", "--max-num-batched-tokens", "2048", "--reasoning-parser", "qwen3"),
)
OLDER = ("--sim-vllm-version", "0.20.2")
QUICK = ("--sim-time-scale", "0.1", "--enable-prompt-tokens-details")


class Simulator:
    """A started server; its log is read by a thread so that it never blocks on a full pipe."""

    def __init__(self, *flags: str) -> None:
        argv = [sys.executable, "-m", "qwenbench.simulator", "serve", MODEL, "--served-model-name", NAME]
        argv += ["--port", "0", *flags]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._seen = threading.Condition()
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                with self._seen:
                    self.lines.append(line.rstrip("\n"))
                    self._seen.notify_all()
                found = re.search(r"Starting vLLM server on http://[^:]+:(\d+)", line)
                if found:
                    self.port = int(found[1])
                if "Application startup complete" in line:
                    self._listening.set()
        self._listening.set()

    def ready(self) -> Simulator:
        assert self._listening.wait(20) and self.port, self.log
        return self

    def wait_for_line(self, text: str) -> None:
        with self._seen:
            assert self._seen.wait_for(lambda: any(text in line for line in self.lines), 20), self.log

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(20)
        self._reader.join(5)
        return code

    def call(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            payload = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, payload, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def chat(self, content: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
        status, text = self.call("POST", "/v1/chat/completions", chat_body(content, tokens, **more))
        assert status == 200, text
        return json.loads(text)

    def metrics(self) -> dict[str, float]:
        return dict(parse_metrics(self.call("GET", "/metrics")[1]).values)


def chat_body(content: str, tokens: int = 8, **more: Any) -> dict[str, Any]:
    body = {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    return body | {"min_tokens": tokens, "ignore_eos": True} | more


def events(text: str) -> list[Any]:
    """The data of an event stream; [DONE] as that text."""
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    simulator = Simulator(*SEED_FLAGS, "--gpu-memory-utilization", "0.95", *QUICK).ready()
    yield simulator
    simulator.end(signal.SIGKILL)


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[Simulator] = []

    def begin(*flags: str) -> Simulator:
        started.append(Simulator(*flags))
        return started[-1]

    yield begin
    for simulator in started:
        simulator.end(signal.SIGKILL)


def test_start_up_log_says_simulated_and_is_read_like_the_recorded_server(start: Any) -> None:
    simulator = start(*SEED_FLAGS, "--gpu-memory-utilization", "0.21546", "--sim-card", "h200", *OLDER).ready()
    assert simulator.lines[0].startswith("SIMULATED")
    read = parse_startup_log(simulator.log)
    assert read.vllm_version == "0.20.2"
    assert read.kv_cache_gib == 17.29 and read.graphs_estimated_gib == 0.11 and read.weights_gib == 10.57
    assert read.kv_cache_tokens_logged == 562_036
    assert read.capture_effective == read.capture_effective_full == 64
    assert read.attention_block_tokens == 528 and read.max_model_len_effective == 262_144
    config = parse_metrics(simulator.call("GET", "/metrics")[1]).cache_config
    assert config["num_gpu_blocks"] == "1072" and config["block_size"] == "16"
    assert simulator.end() == 0
    assert "Shutdown complete" in simulator.log and "Finished server process" in simulator.lines[-1]


def test_models_version_health(server: Simulator) -> None:
    status, text = server.call("GET", "/v1/models")
    (model,) = json.loads(text)["data"]
    assert status == 200 and model["id"] == NAME and model["root"] == MODEL and model["max_model_len"] == 262_144
    assert json.loads(server.call("GET", "/version")[1]) == {"version": "0.26.0+simulated"}
    assert server.call("GET", "/health") == (200, "")
    assert server.call("GET", "/nothing")[0] == 404
    assert server.call("GET", "/v1/chat/completions")[0] == 405


def test_stream_has_vllms_shape(server: Simulator) -> None:
    body = chat_body("Tell me.", 20, stream=True, stream_options={"include_usage": True})
    status, text = server.call("POST", "/v1/chat/completions", body)
    role, *tokens, last, done = events(text)
    assert status == 200 and done == "[DONE]"
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"] for chunk in tokens]
    assert [set(delta) for delta in deltas] == [{"reasoning"}] * 12 + [{"content"}] * 7  # </think> has no chunk
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None] * 18 + ["length"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 20
    assert last["usage"]["total_tokens"] == 20 + last["usage"]["prompt_tokens"]
    assert len({chunk["id"] for chunk in [role, *tokens, last]}) == 1


def test_without_thinking_every_token_is_a_content_chunk(server: Simulator) -> None:
    body = chat_body("Hi", 9, stream=True, chat_template_kwargs={"enable_thinking": False})
    _, *tokens, done = events(server.call("POST", "/v1/chat/completions", body)[1])
    assert done == "[DONE]"
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] for chunk in tokens) and len(tokens) == 9


def test_whole_answer_equals_the_streamed_one_and_repeats(server: Simulator) -> None:
    options = {"chat_template_kwargs": {"enable_thinking": False}}
    whole = server.chat("What is a river?", 40, **options)["choices"][0]["message"]["content"]
    again = server.chat("What is a river?", 40, **options)["choices"][0]["message"]["content"]
    _, text = server.call("POST", "/v1/chat/completions", chat_body("What is a river?", 40, stream=True, **options))
    streamed = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events(text)[:-1])
    assert whole == again == streamed
    assert whole != server.chat("What is a lake?", 40, **options)["choices"][0]["message"]["content"]
    assert len(whole.split()) > 25


def test_natural_stop_and_completions_endpoint(server: Simulator) -> None:
    answer = server.chat("Stop when you like.", max_tokens=5000, min_tokens=0, ignore_eos=False)
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert 1 <= answer["usage"]["completion_tokens"] < 5000
    body = {"model": NAME, "prompt": "Once upon a time", "max_tokens": 6, "ignore_eos": True, "stream": True}
    status, text = server.call("POST", "/v1/completions", body)
    *chunks, done = events(text)
    assert status == 200 and done == "[DONE]" and len(chunks) == 6
    assert all(chunk["object"] == "text_completion" and chunk["choices"][0]["text"] for chunk in chunks)


def test_continuous_usage_and_token_ids(server: Simulator) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat_body("Count.", 5, stream=True, stream_options=options, return_token_ids=True)
    role, *tokens, last, _ = events(server.call("POST", "/v1/chat/completions", body)[1])
    assert role["usage"]["completion_tokens"] == 0
    assert len(role["prompt_token_ids"]) == last["usage"]["prompt_tokens"]
    counted = [chunk["usage"]["completion_tokens"] for chunk in tokens]
    assert counted == [1, 2, 3, 5]  # token 4 ends the thinking
    assert all(len(chunk["choices"][0]["token_ids"]) == 1 for chunk in tokens)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON decode error"),
        (b"[1]", 400, "valid dictionary"),
        ({"model": NAME}, 400, "Field required"),
        ({"model": "other", "messages": [{"role": "user", "content": "x"}]}, 404, "The model `other` does not exist."),
        (chat_body("x", 300_000), 400, "max_tokens=300000 cannot be greater than max_model_len=262144."),
        (chat_body("x " * 200, 262_100), 400, "This model's maximum context length is 262144 tokens. However, you"),
        (chat_body("x", 0), 400, "max_tokens must be at least 1, got 0."),
        (chat_body("x", 3, min_tokens=5), 400, "min_tokens must be less than or equal to max_tokens=3, got 5."),
        (chat_body("x", cache_salt=""), 400, "Parameter 'cache_salt' must be a non-empty string if provided."),
        (chat_body("x", max_tokens="many"), 400, "valid integer"),
    ],
)
def test_what_vllm_refuses_is_refused_with_its_words(server: Simulator, body: Any, status: int, words: str) -> None:
    got, text = server.call("POST", "/v1/chat/completions", body)
    assert got == status
    error = json.loads(text)["error"]
    assert words in error["message"] and error["code"] == status


def test_tokenize_counts_what_usage_counts(server: Simulator) -> None:
    content = "Größe, 42 Zebras — 東京の天気は? \n\tdef f(x): return x**2"
    _, text = server.call("POST", "/tokenize", {"model": NAME, "messages": [{"role": "user", "content": content}]})
    counted = json.loads(text)
    assert counted["count"] == len(counted["tokens"]) == server.chat(content, 1)["usage"]["prompt_tokens"]


def test_counters_agree_with_usage(server: Simulator) -> None:
    before = server.metrics()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: server.chat(f"Number {n}. " + "word " * 50 * n, 10 + n), range(8)))
    after = server.metrics()
    for counter, key in (("generation_tokens_total", "completion_tokens"), ("prompt_tokens_total", "prompt_tokens")):
        assert after[counter] - before[counter] == sum(answer["usage"][key] for answer in answers)
    assert after["running"] == after["waiting"] == 0 and after["kv_cache_usage"] == 0
    assert after["server_late_mean_ms"] > 0 and after["vram_used_mib"] > 20_000 and after["energy_j"] > 0


def test_aborted_stream_leaves_the_engine(server: Simulator) -> None:
    body = json.dumps(chat_body("Long.", 200_000, stream=True)).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        while b"reasoning" not in client.recv(65536):
            pass
        assert server.metrics()["running"] == 1
    for _ in range(100):
        if server.metrics()["running"] == 0:
            break
    text = server.call("GET", "/metrics")[1]
    assert re.search(r'finished_reason="abort",model_name="[^"]+"} 1\.0', text) and server.metrics()["running"] == 0


def test_pipelined_requests_and_chunked_bodies_are_answered_in_turn(server: Simulator) -> None:
    body = json.dumps(chat_body("Hi", 2)).encode()
    half = len(body) // 2
    chunked = b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:])
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
            + chunked
            + b"GET /version HTTP/1.1\r\nconnection: close\r\n\r\n"
        )
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.index(b"chat.completion") < answer.index(b"0.26.0+simulated")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_prefix_cache_is_found_by_the_same_salt_only(start: Any) -> None:
    simulator = start(*QUICK, "--enable-prefix-caching", "--max-num-seqs", "4").ready()
    prompt = "The same long story again. " * 400

    def cached(salt: str | None) -> int:
        more = {"cache_salt": salt} if salt else {}
        return int(simulator.chat(prompt, 2, **more)["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached("a"), cached("a"), cached("b"), cached(None), cached("b")] == [0, 2112, 0, 0, 2112]
    metrics = simulator.metrics()
    assert metrics["prefix_hits_total"] == 2 * 2112
    assert metrics["prefix_queries_total"] == metrics["prompt_tokens_total"]


def test_too_few_blocks_preempt_and_everything_still_ends(start: Any) -> None:
    flags = ("--num-gpu-blocks-override", "17", "--max-model-len", "4000", "--max-num-seqs", "8")
    simulator = start(*QUICK, *flags).ready()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: simulator.chat("tell " * 480 + str(n), 90), range(8)))
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [90] * 8
    assert simulator.metrics()["preemptions_total"] > 0


def test_api_key_is_asked_for_and_never_printed(start: Any) -> None:
    simulator = start("--api-key", "s3cret-value", *QUICK).ready()
    assert simulator.call("GET", "/v1/models")[0] == 401
    assert simulator.call("GET", "/v1/models", headers={"Authorization": "Bearer s3cret-value"})[0] == 200
    assert simulator.call("GET", "/health")[0] == 200
    simulator.end()
    assert "s3cret-value" not in simulator.log


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--sim-fail", "oom-at-start"), 1, "torch.OutOfMemoryError: CUDA out of memory"),
        (("--sim-fail", "kv-too-small"), 1, "To serve at least one request with the models's max seq len"),
        (("--sim-fail", "exit-silently"), 0, "Model loading took"),
        (("--gpu-memory-utilization", "0.995"), 1, "is less than desired GPU memory utilization (0.995"),
        (("--gpu-memory-utilization", "0.5", "--max-model-len", "200k"), 1, "the estimated maximum model length is"),
        (("--gpu-memory-utilization", "0.3", "--max-model-len", "auto"), 1, "No available memory for the cache blocks"),
        (("--sim-card", "gtx-9000"), 2, "unknown card"),
        (("--nonsense-flag", "3"), 2, "unrecognized arguments: --nonsense-flag"),
    ],
)
def test_starts_that_fail(start: Any, flags: tuple[str, ...], code: int, words: str) -> None:
    simulator = start(*flags)
    assert simulator.process.wait(20) == code
    simulator.end()
    assert words in simulator.log and simulator.port == 0


def test_the_lines_of_a_newer_version_are_read_as_its_logs_are(start: Any) -> None:
    flags = ("--sim-card", "h100", "--gpu-memory-utilization", "0.37658", "--sim-warm")
    simulator = start(*SEED_FLAGS, *flags, "--no-async-scheduling").ready()
    read = parse_startup_log(simulator.log)
    assert read.vllm_version == "0.26.0" and read.weights_gib == 10.57 and read.graphs_actual_gib == 0.14
    assert read.kv_cache_gib == pytest.approx(16.98, abs=0.03)  # the table of cards has 0.07 GiB less than that H100
    for text in (
        "Asynchronous scheduling is disabled.",
        "Using FlashInfer for top-p & top-k sampling.",
        "Directly load AOT compilation from path",
        "Using MarlinNvFp4LinearKernel",
    ):
        assert text in simulator.log
    assert "saved AOT compiled function" not in simulator.log
    labels = parse_metrics(simulator.call("GET", "/metrics")[1]).cache_config
    assert labels["block_size"] == "528" and int(labels["kv_cache_size_tokens"]) == read.kv_cache_tokens_logged


def test_the_slow_sampler_is_told_at_its_first_use_and_a_drafter_counts(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "0")
    flags = ("--speculative-config", '{"method":"mtp","num_speculative_tokens":3}', "--sim-acceptance", "0.7")
    simulator = start(*QUICK, *flags, "--sim-spread", "--sim-jit-stall", "5").ready()
    assert "FlashInfer top-p/top-k sampling disabled" in simulator.log and "_topk_topp_kernel" not in simulator.log
    body = chat_body("Tell me.", 60, stream=True, top_p=0.9, chat_template_kwargs={"enable_thinking": False})
    began = time.monotonic()
    chunks = events(simulator.call("POST", "/v1/chat/completions", body)[1])[1:-1]
    assert time.monotonic() - began > 5 * 0.1, "the compilation holds the first request up"
    assert len(chunks) < 50  # several tokens came in one chunk
    simulator.wait_for_line("JIT compilation during inference: _topk_topp_kernel")
    text = simulator.call("GET", "/metrics")[1]
    drafts, accepted = (
        float(re.search(rf"^vllm:spec_decode_{name}_total{{.*}} (.*)$", text, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("num_drafts", "num_accepted_tokens")
    )
    assert drafts == len(chunks) - 1 and accepted == 60 - 1 - drafts
    whole = simulator.chat("Tell me.", 60, chat_template_kwargs={"enable_thinking": False})
    streamed = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert whole["choices"][0]["message"]["content"] == streamed


def test_a_start_takes_the_seconds_that_are_asked_for(start: Any) -> None:
    began = time.monotonic()
    simulator = start("--sim-startup-s", "1.2").ready()
    assert time.monotonic() - began >= 1.2
    read = parse_startup_log(simulator.log)
    assert read.compile_s is not None and read.profile_s is not None and read.compile_s + read.profile_s < 1.2


def test_a_model_whose_shape_is_not_known_is_refused() -> None:
    argv = [sys.executable, "-m", "qwenbench.simulator", "serve", "Qwen/Qwen3-8B"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and "'Qwen/Qwen3-8B' is not known" in done.stderr and "Traceback" not in done.stderr


def test_port_that_is_taken(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        simulator = start("--port", str(other.getsockname()[1]))
        assert simulator.process.wait(20) == 2
    simulator.end()
    assert "Address already in use" in simulator.log


def test_a_hanging_start_ends_at_sigterm_without_ever_answering(start: Any) -> None:
    simulator = start("--sim-fail", "hang-at-start")
    simulator.wait_for_line("Setting attention block size")
    simulator.wait_for_line("Padding mamba page size")
    assert simulator.port == 0 and simulator.process.poll() is None
    assert simulator.end() == 0


def test_sigterm_under_load_ends_at_once(start: Any) -> None:
    simulator = start(*QUICK).ready()
    body = json.dumps(chat_body("Long.", 200_000, stream=True)).encode()
    with socket.create_connection(("127.0.0.1", simulator.port)) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert simulator.end() == 0
    assert "Application shutdown complete" in simulator.log and "Traceback" not in simulator.log


def test_real_start_up_takes_its_phases(start: Any) -> None:
    began = time.monotonic()
    start("--sim-startup", "real", "--sim-warm", "--sim-time-scale", "0.02").ready()
    phases = calibration()["startup"]["warm"]
    assert time.monotonic() - began >= 0.02 * sum(phases.values())
    simulator = start("--sim-warm").ready()  # at once, with the same figures in its log
    assert f"torch.compile took {phases['compile_s']:.2f} s in total" in simulator.log


@pytest.mark.parametrize("kind", ["crash-first-request", "die-under-load"])
def test_engine_death_looks_like_the_recorded_one(start: Any, kind: str) -> None:
    simulator = start("--sim-fail", kind, *QUICK).ready()
    with ThreadPoolExecutor(4) as pool:
        bodies = [chat_body(f"Request {number}", 500, stream=True) for number in range(4)]
        answers = list(pool.map(lambda body: simulator.call("POST", "/v1/chat/completions", body), bodies))
    for status, text in answers:
        assert status == 200 or kind == "crash-first-request"
        assert "EngineCore encountered an issue" in text and '"usage"' not in text
    assert simulator.call("GET", "/health")[0] == 503
    assert simulator.call("GET", "/metrics")[0] == simulator.call("GET", "/v1/models")[0] == 200
    assert simulator.call("POST", "/v1/chat/completions", chat_body("x"))[0] == 500
    assert simulator.process.wait(20) == 0  # by itself, with exit status 0 as recorded
    simulator.end()
    assert simulator.log.index("EngineCore encountered a fatal error") < simulator.log.index("[shutdown] EngineCore")


def test_qwenbench_simulate_is_the_same_server() -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    argv = [sys.executable, "-c", "from qwenbench.cli.main import main; main()", "simulate", MODEL]
    done = subprocess.run(
        [*argv, "--sim-fail", "exit-silently"], capture_output=True, text=True, timeout=30, env=environment, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("SIMULATED")

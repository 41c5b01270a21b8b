"""Failures are told from real text; unknown text is shown and never guessed at."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.engine.failures import DeathWatch, explain, never_healthy
from qwenbench.engine.log_sink import LogReader

DATA = Path(__file__).parents[2] / "data" / "failures"

CASES = {
    "docker-gpus-no-driver": ("no_nvidia_runtime", "could not select device driver", "nvidia-ctk"),
    "docker-runtime-20.10": ("no_nvidia_runtime", "Unknown runtime specified nvidia", "nvidia-ctk"),
    "docker-runtime-26.1": ("no_nvidia_runtime", "invalid runtime name: nvidia", "nvidia-ctk"),
    "docker-port-container": ("port_taken", "port is already allocated", "--port"),
    "docker-port-process": ("port_taken", "address already in use", "--port"),
    "docker-image-no-network": ("image_missing", "dial tcp: lookup", "--image"),
    "docker-pull-never": ("image_missing", "No such image: vllm/vllm-openai:v0.18.0-cu130", "docker pull"),
    "docker-pull-unknown-tag": ("image_missing", "manifest unknown", "--image"),
    "docker-name-taken": ("name_taken", '"/qwen" is already in use', "doctor"),
    "docker-entrypoint-missing": ("entrypoint", '"nosuch": executable file not found', "--image"),
    "docker-entrypoint-missing-init": ("entrypoint", "exec nosuch failed", "--image"),
    "docker-entrypoint-permission": ("entrypoint", "permission denied", "--image"),
    "docker-nvidia-hook": ("nvidia_runtime_broken", "libnvidia-ml.so.1", "nvidia-smi"),
    "docker-driver-too-old": ("driver_too_old", "unsatisfied condition: cuda>=13.0", "driver"),
    "docker-no-engine": ("no_engine", "Cannot connect to the Docker daemon", "systemctl start docker"),
    "docker-permission-20.10": ("docker_permission", "permission denied while trying", "usermod -aG docker"),
    "docker-permission-28": ("docker_permission", "permission denied while trying", "usermod -aG docker"),
    "docker-no-space": ("no_space", "no space left on device", "docker system df"),
    "docker-unknown": ("docker_refused", "something that nobody has seen before", ""),
    "hub-gated": ("gated_model", "401 Client Error", "HF_TOKEN"),
    "hub-not-found": ("model_not_found", "404 Client Error", "--model"),
    "recorded-cpu-0.32-model-not-found": ("model_not_found", "", "--model"),
    "recorded-cpu-0.32-unknown-flag": ("unknown_flag", "unrecognized arguments: --calculate-kv-scales", "--vllm-arg"),
    "recorded-cpu-0.32-model-too-short": ("model_too_short", "max_model_len (9999999)", "--max-model-len"),
    "vllm-unknown-flag-value": ("unknown_flag", "invalid choice: 'fp9'", "--vary"),
    "vllm-gpu-memory-taken": ("gpu_memory_taken", "Free memory on device cuda:0 (22.17/31.36 GiB)", "nvidia-smi"),
    "vllm-kv-too-small-0.18": ("kv_cache_too_small", "estimated maximum model length is 163840", "--max-model-len"),
    "vllm-auto-fit": ("kv_cache_too_small", "Cannot auto-fit max_model_len", "--gpu-memory-utilization"),
    "recorded-cpu-0.32-kv-too-small": ("kv_cache_too_small", "To serve at least one request", "--max-model-len"),
    "vllm-mamba-blocks": (
        "mamba_blocks",
        "max_num_seqs (256) exceeds available Mamba cache blocks (191)",
        "--max-num-seqs",
    ),
    "vllm-oom-capture": (
        "oom_graph_capture",
        "RuntimeError: CUDA error: out of memory",
        "--max-cudagraph-capture-size",
    ),
    "vllm-oom-load-weights": ("oom_start", "Tried to allocate 1.74 GiB", "--gpu-memory-utilization"),
    "vllm-oom-first-request": ("oom_first_request", "Triton Error [CUDA]: out of memory", "0.02 to 0.05"),
    "vllm-oom-load": ("oom_load", "Tried to allocate 488.00 MiB", "--max-num-seqs"),
    "vllm-driver-too-old": ("driver_too_old", "found version 12040", "driver"),
    "recorded-cpu-0.32-port-in-use": ("port_taken", "ddress already in use", "--port"),
}


def text(name: str) -> str:
    return (DATA / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", CASES)
def test_known_failures(name: str) -> None:
    kind, evidence, advice = CASES[name]
    failure = explain(text(name), 1)
    assert failure.kind == kind
    assert evidence in failure.evidence
    assert "\n" not in failure.evidence
    assert advice in failure.advice
    assert bool(failure.advice) == (kind != "docker_refused")


def test_every_text_is_tested() -> None:
    told_elsewhere = {"recorded-cpu-0.28-crash-under-load", "recorded-cpu-0.28-ordinary-stop"}
    assert {path.stem for path in DATA.glob("*.txt")} == set(CASES) | told_elsewhere


def test_an_engine_that_dies_under_load_with_exit_code_0() -> None:
    failure = explain(text("recorded-cpu-0.28-crash-under-load"), 0, phase="load")
    assert failure.kind == "engine_died"
    assert failure.evidence == "RuntimeError: chunk_gated_delta_rule_cpu: initial_state dtype mismatch"
    assert failure.to_json() == {
        "class": "engine_died",
        "evidence": failure.evidence,
        "advice": "",
        "exit_code": 0,
        "phase": "load",
    }


@pytest.mark.parametrize(
    ("name", "died"), [("recorded-cpu-0.28-crash-under-load", True), ("recorded-cpu-0.28-ordinary-stop", False)]
)
def test_death_watch_tells_a_death_from_a_stop(tmp_path: Path, name: str, died: bool) -> None:
    log = tmp_path / "server.log"
    watch = DeathWatch(LogReader(log))
    assert not watch.died()
    with log.open("a") as file:
        for line in text(name).splitlines(keepends=True):
            file.write(line)
            file.flush()
            watch.died()
    assert watch.died() is died


@pytest.mark.parametrize("code", [-9, 137])
def test_killed_by_the_host(code: int) -> None:
    assert explain("INFO loading\n", code, oom_killed=True).kind == "oom_killed"
    by_somebody = explain("INFO loading weights\n", code)
    assert (by_somebody.kind, by_somebody.advice) == ("killed", "")
    assert "loading weights" in by_somebody.evidence


def test_a_child_killed_for_memory_leaves_exit_code_0() -> None:
    assert explain("INFO loading\n", 0, oom_killed=True).kind == "oom_killed"


def test_without_a_word() -> None:
    failure = explain("", 3)
    assert failure.kind == "silent_exit"
    assert "3" in failure.evidence


def test_unknown_text_is_shown_without_advice() -> None:
    failure = explain("INFO starting\nValueError: the moon is full\nnanobind: leaked 3 types!\n", 1)
    assert (failure.kind, failure.evidence, failure.advice) == ("unknown", "ValueError: the moon is full", "")
    shown = explain("one\ntwo\nthree\n", 1)
    assert (shown.kind, shown.evidence) == ("unknown", "one\ntwo\nthree")


def test_of_a_validation_error_the_reason_is_shown() -> None:
    text = "x.ValidationError: 1 validation error for CacheConfig\n  Value error, no such thing [type=value_error]\n"
    assert explain(text, 1).evidence == "Value error, no such thing [type=value_error]"


def test_never_healthy_tells_the_last_line() -> None:
    failure = never_healthy(30, "no connection", ["(EngineCore pid=7) INFO 11-23 08:15:17 [x.py:1] Loading weights"])
    assert failure.kind == "never_healthy"
    assert failure.evidence == "not ready after 30 s (no connection); its last line: Loading weights"


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret-0123456789")
    assert "planted" not in explain("ValueError: bad token planted-secret-0123456789\n", 1).evidence


@given(st.text(), st.none() | st.integers(-64, 255), st.booleans())
def test_any_text_has_an_answer(log: str, code: int | None, oom: bool) -> None:
    failure = explain(log, code, oom_killed=oom)
    assert failure.kind
    assert failure.evidence
    assert len(failure.evidence) <= 600

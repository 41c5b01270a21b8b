"""Failures are told from real text; unknown text is shown and never guessed at."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.engine import failure_rules
from qwenbench.engine.failures import DeathWatch, explain, never_healthy
from qwenbench.engine.log_lines import LogReader

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
    "vllm-negative-kv": ("no_kv_memory", "No available memory for the cache blocks", "--gpu-memory-utilization"),
    "nccl-shared-memory": ("shared_memory_too_small", "failed to extend /dev/shm", "--shm-size"),
    "hub-no-such-repository": ("model_not_found", "RepositoryNotFoundError", "--model"),
    "ray-host-memory": ("host_out_of_memory", "node running low on memory", "RAY_memory_monitor_refresh_ms=0"),
    "vllm-oom-accelerator-error": (
        "oom_start",
        "torch.AcceleratorError: CUDA error: out of memory",
        "expandable_segments",
    ),
    "vllm-oom-driver-error": ("oom_start", "CUDA driver error: out of memory", "expandable_segments:False"),
    "vllm-oom-after-capture": ("oom_warm_up", "Tried to allocate 486.00 MiB", "--max-num-seqs"),
    "vllm-oom-sampler": ("oom_sampler_warm_up", "warming up sampler with 256", "--max-num-seqs"),
    "triton-c-compiler": ("no_c_compiler", "RuntimeError: Failed to find C compiler", "gcc"),
    "triton-python-headers": ("python_headers", "Python.h", "python3-dev"),
    "triton-ptxas-sm121a": ("triton_ptxas_too_old", "PTXASError", "TRITON_PTXAS_PATH"),
    "triton-out-of-resources": ("kernel_shared_memory", "Hardware limit: 65536", "--image"),
    "cuda-error-804": ("driver_too_old", "RuntimeError: Unexpected error from cudaGetDeviceCount()", "driver"),
    "compose-error-804": ("driver_too_old", "RuntimeError: Unexpected error from cudaGetDeviceCount()", "driver"),
    "cuda-ptx-toolchain": ("driver_too_old", "PTX was compiled with an unsupported toolchain", "driver"),
    "cuda-illegal-memory-access": ("illegal_memory_access", "torch.AcceleratorError", "--attention-backend"),
    "cuda-launch-failure": ("gpu_fault", "unspecified launch failure", "dmesg"),
    "cutlass-error-internal": ("kernel_not_for_card", "Error Internal", "VLLM_DISABLED_KERNELS"),
    "flashinfer-sm120": ("flashinfer_toolkit", "FlashInfer requires GPUs with sm75", "12.9"),
    "flashinfer-no-nvcc": ("flashinfer_toolkit", "Could not find nvcc", "VLLM_USE_FLASHINFER_SAMPLER=0"),
    "flashinfer-ninja": ("flashinfer_toolkit", "/usr/local/cuda-12.8/bin/nvcc: not found", "CUDA_HOME"),
    "harmony-vocabulary": ("harmony_vocabulary", "openai_harmony.HarmonyError", "TIKTOKEN_ENCODINGS_BASE"),
    "safetensors-incomplete": ("broken_weights", "MetadataIncompleteBuffer", "download"),
    "transformers-model-type": ("model_too_new", "Value error, The checkpoint you are trying to load", "--image"),
    "transformers-tokenizers-backend": ("model_too_new", "TokenizersBackend", "--image"),
    "vllm-json-argument": ("json_argument", "vllm serve: error: argument --speculative-config", "quote"),
    "vllm-mamba-align-block": ("mamba_align_block", "block_size (2096) must be <=", "--max-num-batched-tokens"),
    "vllm-weight-name": ("weights_do_not_fit_model", "layers.0.mlp.down_proj.g_idx", "checkpoint"),
    "vllm-no-module-or-parameter": ("weights_do_not_fit_model", "embed_tokens", "checkpoint"),
    "vllm-attention-backend": ("attention_backend", "kv_cache_dtype not supported", "--attention-backend"),
    "vllm-no-attention-backend": ("attention_backend", "No valid attention backend found", "--attention-backend"),
    "vllm-rpc-timeout": ("workers_hung", "TimeoutError: RPC call to sample_tokens timed out.", "NCCL_P2P_DISABLE=1"),
    "vllm-wsl-uva": ("wsl_no_uva", "RuntimeError: UVA is not available", "VLLM_WSL2_ENABLE_PIN_MEMORY=1"),
    "vllm-uuid-in-visible-devices": ("devices_by_uuid", "ValueError: invalid literal for int()", "indices"),
    "vllm-undefined-symbol": ("broken_install", "undefined symbol", "environment of its own"),
    "vllm-quantization-capability": ("quantization_unsupported", "Minimum capability: 75", "NVFP4"),
    "vllm-core-died-silently": ("engine_died_silently", "Failed core proc(s): {}", "dmesg"),
    "recorded-cpu-0.32-killed-under-load": ("engine_died_silently", "engine core exited unexpectedly", "dmesg"),
    "recorded-cpu-0.32-killed-in-another-order": ("engine_died_silently", "engine core exited unexpectedly", "dmesg"),
    "recorded-h200-0.26-stale-compile-cache": (
        "compile_cache_stale",
        "AttributeError: 'NoneType' object has no attribute 'size'",
        "VLLM_DISABLE_COMPILE_CACHE=1",
    ),
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
    assert not failure.evidence.startswith("raise ")


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
    ("name", "died"),
    [
        ("recorded-cpu-0.28-crash-under-load", True),
        ("recorded-cpu-0.28-ordinary-stop", False),
        ("recorded-cpu-0.32-killed-under-load", True),
        ("recorded-cpu-0.32-killed-in-another-order", True),
    ],
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
    assert by_somebody.kind == "killed"
    assert "dmesg" in by_somebody.advice
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


PHASES = {
    "vllm-uuid-in-visible-devices": "start",
    "flashinfer-no-nvcc": "start",
    "vllm-negative-kv": "profiling",
    "vllm-oom-capture": "graph_capture",
    "vllm-oom-after-capture": "sampler_warm_up",
    "cuda-illegal-memory-access": "load",
}


@pytest.mark.parametrize("name", PHASES)
def test_a_failed_start_is_placed_by_how_far_the_log_came(name: str) -> None:
    assert explain(text(name), 1).phase == PHASES[name]


WRAPPERS = {
    "docker compose": "vllm-1  | {}",
    "docker logs -t": "2026-08-03T17:46:20.123456789Z {}",
    "the kubelet": "2026-08-03T17:46:20.123456789+02:00 stderr F {}",
    "kubectl --prefix": "[pod/vllm-0/server] {}",
    "journald": "Aug 03 17:46:20 host docker[1234]: {}",
    "a supervisor": "[2026-02-25 16:17:27] [/bin/sh]: {}",
    "colours": "\x1b[36m{}\x1b[0m",
    "torch": "[rank0]: {}",
    "a worker within": "(RayWorkerProc pid=900, ip=10.99.0.2) {}",
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["cuda-error-804", "flashinfer-sm120", "vllm-json-argument", "vllm-oom-load-weights"])
def test_what_a_collector_puts_around_a_line_hides_nothing(name: str, wrapper: str) -> None:
    wrapped = "\n".join(WRAPPERS[wrapper].format(line) for line in text(name).splitlines())
    bare = explain(text(name), 1)
    assert (explain(wrapped, 1).kind, explain(wrapped, 1).evidence) == (bare.kind, bare.evidence)


def test_a_failure_that_nobody_knows_shows_its_innermost_error_its_exit_status_and_the_log() -> None:
    log = text("vllm-uuid-in-visible-devices").replace("invalid literal for int() with base 10: 'GPU-", "odd: 'GPU-")
    failure = explain(log, 1, log_path=Path("/runs/a/server.log"))
    assert failure.kind == "unknown"
    assert failure.evidence.startswith("ValueError: odd: 'GPU-1fb0"), "neither the subprocess nor pydantic's report"
    assert failure.advice == "It ended with exit status 1. The whole log: /runs/a/server.log"


def test_neither_info_lines_nor_requests_nor_code_in_a_traceback_are_evidence() -> None:
    log = """(APIServer pid=1) INFO 11-26 08:31:10 [launcher.py:50] Route: /v1/out of memory, Methods: POST
(APIServer pid=1) WARNING 11-26 08:31:10 [utils.py:1] This can cause `OSError: [Errno 24] Too many open files`
(APIServer pid=1) INFO:     127.0.0.1:1 - "GET /no space left on device HTTP/1.1" 404 Not Found
Traceback (most recent call last):
  File "/x/y.py", line 1, in f
    raise RuntimeError("Failed to find C compiler")
ValueError: the moon is full
"""
    assert (explain(log, 1).kind, explain(log, 1).evidence) == ("unknown", "ValueError: the moon is full")


def test_an_error_that_was_handled_is_not_the_cause() -> None:
    log = """(EngineCore pid=9) ERROR 11-26 08:00:00 [hub.py:1] requests.exceptions.HTTPError: 429 Client Error
(EngineCore pid=9) INFO 11-26 08:00:09 [gpu_model_runner.py:1] Model loading took 10.57 GiB memory and 2.0 seconds
(EngineCore pid=9) ERROR 11-26 08:00:10 [core.py:1] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-26 08:00:10 [core.py:1] ValueError: the moon is full
"""
    assert (explain(log, 1).kind, explain(log, 1).evidence) == ("engine_died", "ValueError: the moon is full")


@pytest.mark.parametrize(("code", "name"), [(-11, "SIGSEGV"), (139, "SIGSEGV"), (-6, "SIGABRT"), (135, "SIGBUS")])
def test_a_crash_in_native_code_is_told_by_its_signal(code: int, name: str) -> None:
    failure = explain("INFO 11-26 08:00:09 [x.py:1] Loading weights\n", code)
    assert failure.kind == "crashed"
    assert name in failure.evidence
    assert "Loading weights" in failure.evidence


@pytest.mark.parametrize("log", ["", "Traceback (most recent call last):\n", "INFO 11-26 08:00:09 [x.py:1] Loading\n"])
@pytest.mark.parametrize(("code", "name"), [(-15, "SIGTERM"), (143, "SIGTERM"), (-2, "SIGINT"), (130, "SIGINT")])
def test_a_server_that_somebody_ended_is_told_by_the_signal(code: int, name: str, log: str) -> None:
    failure = explain(log, code)
    assert failure.kind == "terminated"
    assert name in failure.evidence
    assert "Traceback" not in failure.evidence


@pytest.mark.parametrize("code", [1, -2, 130])
def test_ctrl_c_during_the_interpreters_start_is_no_error_of_the_server(code: int) -> None:
    log = """Traceback (most recent call last):
  File "<frozen importlib._bootstrap_external>", line 1437, in _path_importer_cache
KeyError: '/srv/src'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "<frozen zipimport>", line 88, in __init__
KeyboardInterrupt
"""
    failure = explain(log, code)
    assert failure.kind == "terminated"
    assert "SIGINT" in failure.evidence
    assert explain(log.replace("KeyboardInterrupt", "ValueError: bad"), 1).kind == "unknown"


def test_an_engine_killed_at_start_is_told_as_killed() -> None:
    log = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. " \
        "Failed core proc(s): {'EngineCore': -9}\n"  # fmt: skip
    assert explain(log, 1).kind == "killed"


def test_every_rule_has_a_text_or_is_a_variant_of_one() -> None:
    """A rule that no text in tests/data/failures shows is listed here, so that none comes in unseen."""
    unseen = {kind for kind, _ in RULE_LINES}
    shown = {kind for kind, _, _ in CASES.values()}
    table = {rule.kind for rule in (*failure_rules.rules("causes"), *failure_rules.rules("consequences"))}
    assert table - shown <= unseen


RULE_LINES = [
    ("bad_token", "huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Invalid user token."),
    ("batched_tokens", "ValueError: max_num_batched_tokens (32) must be greater than or equal to max_num_seqs (64)."),
    ("cache_not_writable", "PermissionError: [Errno 13] Permission denied: '/root/.cache/vllm'"),
    ("cpu_too_old", "Illegal instruction (core dumped)"),
    ("driver_mismatch", "pynvml.NVMLError_LibRmVersionMismatch: Driver/library version mismatch"),
    (
        "dtype_unsupported",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your "
        "Tesla T4 GPU has compute capability 7.5.",
    ),
    (
        "fabric_not_ready",
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
    ),
    (
        "fork_after_cuda",
        "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing",
    ),
    ("hub_rate_limit", "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url"),
    ("hub_unreachable", "OSError: We couldn't connect to 'https://huggingface.co' to load the files"),
    ("memory_changed", "AssertionError: Error in memory profiling. Initial free memory 30.1 GiB, current 31.0 GiB."),
    ("nccl", "torch.distributed.DistBackendError: NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error"),
    ("no_gpu", "RuntimeError: CUDA error: invalid device ordinal"),
    ("no_weights", "RuntimeError: Cannot find any model weights with `/models/m`"),
    (
        "parallel_size",
        "ValueError: Total number of attention heads (28) must be divisible by tensor parallel size (3).",
    ),
    ("thread_limit", "RuntimeError: can't start new thread"),
    ("too_many_files", "OSError: [Errno 24] Too many open files"),
    ("trust_remote_code", "ValueError: Please pass the argument `trust_remote_code=True` to allow custom code."),
    ("address_not_here", "OSError: [Errno 99] Cannot assign requested address"),
    ("address_not_here", "socket.gaierror: [Errno -2] Name or service not known"),
    ("broken_install", "ImportError: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.32' not found (required by x)"),
    ("broken_model_files", "OSError: Can't load tokenizer for 'org/model'. If you were trying to load it from"),
    ("broken_model_files", "  Value error, No model architectures are specified [type=value_error, input_value=x]"),
    ("compile_failed", "torch._inductor.exc.InductorError: AssertionError: "),
    ("crashed", "!!!!!!! Segfault encountered !!!!!!!"),
    ("drafter", "  Value error, num_speculative_tokens:3 must be divisible by n_predict=2 [type=value_error]"),
    ("files_unreadable", "OSError: [Errno 5] Input/output error"),
    ("gpu_busy", "torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    ("hub_unreachable", "RuntimeError: Data processing error: CAS service error : Request failed after 5 retries"),
    ("illegal_memory_access", "CUDA error: operation failed due to a previous error during capture"),
    ("kernel_library", "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ("lora_rank", "ValueError: LoRA rank 64 is greater than max_lora_rank 16."),
    ("model_too_new", "AttributeError: 'Qwen3Config' object has no attribute 'rope_theta'"),
    ("no_gpu", "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory"),
    ("oom_start", 'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "/pytorch/c10/cuda/CUDACachingAllocator.'),
    ("same_card_twice", "NCCL WARN Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000"),
    ("setting_refused", "  Value error, This model does not support `--runner pooling`. [type=value_error]"),
    ("setting_refused", "NotImplementedError: Hybrid KV cache manager is not supported with KV transfer"),
    ("unknown_flag", "  Input should be 'auto', 'bfloat16' or 'fp8' [type=literal_error, input_value='nvfp4']"),
]
"""As vLLM, its libraries and the hub's client print them; (vllm#26161, #31940, #29639 and others)."""


@pytest.mark.parametrize(("kind", "line"), RULE_LINES)
def test_rules_told_by_one_line(kind: str, line: str) -> None:
    failure = explain(f"(EngineCore pid=9) ERROR 11-26 08:00:10 [core.py:1] {line}\n", 1)
    assert failure.kind == kind
    assert failure.advice


def test_of_an_exception_without_words_the_code_is_shown() -> None:
    """vllm#19361, #12899: nothing but the code says which weights do not fit."""
    raised = '  File "linear.py", line 589, in weight_loader\n    assert param_data.shape == loaded_weight.shape\n'
    failure = explain(f"Traceback (most recent call last):\n{raised}           ^^^^^^\nAssertionError\n", 1)
    assert failure.evidence == "AssertionError: assert param_data.shape == loaded_weight.shape"
    assert failure.kind == "weights_do_not_fit_model"


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

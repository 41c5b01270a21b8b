"""What a start-up log tells beyond the plain figures: evidence before versions, workers, wrappers, settings, phases."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.engine.speed_settings import speed_settings
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import parse_startup_log

DATA = Path(__file__).parents[2] / "data" / "memory"
RECORDED = gzip.decompress((DATA / "h200-vllm-0.20.2/cap64-seq64.log.gz").read_bytes()).decode()


def sizes(version: str, tokens: str, length: str, concurrency: str) -> StartupLog:
    return parse_startup_log(
        f"INFO  █▄█▀ █  version {version} \n"
        f"INFO GPU KV cache size: {tokens} tokens\n"
        f"INFO Maximum concurrency for {length} tokens per request: {concurrency}x\n"
    )


@pytest.mark.parametrize(
    ("version", "tokens", "length", "concurrency", "formula"),
    [
        # 0.20.0 printed the older one, whatever the next releases do
        ("0.20.0", "1,754,352", "262,144", "25.36", "blocks_per_group"),
        ("0.20.1rc1.dev16+g1234567", "67,728", "180,000", "1.06", "blocks_per_group"),
        ("0.1.dev1+gabcdef", "374,847", "204,800", "1.83", "max_concurrency"),
        ("0.17.2rc1.dev3", "562,036", "262,144", "2.14", "max_concurrency"),
        ("0.33.0", "141,504", "262,144", "2.14", "blocks_per_group"),
        # a model of one group prints the same by both: the version decides
        ("0.19.1", "65,536", "32,768", "2.00", "blocks_per_group"),
        ("0.20.2", "65,536", "32,768", "2.00", "max_concurrency"),
    ],
)
def test_the_printed_numbers_outrank_the_version(
    version: str, tokens: str, length: str, concurrency: str, formula: str
) -> None:
    assert sizes(version, tokens, length, concurrency).kv_cache_tokens_formula == formula


@pytest.mark.parametrize(
    ("version", "formula"),
    [("0.19.1", "blocks_per_group"), ("0.20.0", "blocks_per_group"), ("0.20.0.dev7", "blocks_per_group"),
     ("0.20.2", "max_concurrency"), ("0.31.0rc2.dev5", "max_concurrency"), ("0.1.dev1+gabcdef", None)],
)  # fmt: skip
def test_the_version_decides_where_the_log_ends_early(version: str, formula: str | None) -> None:
    log = parse_startup_log(f"INFO  █▄█▀ █  version {version} \nINFO GPU KV cache size: 141,504 tokens\n")
    assert log.kv_cache_tokens_formula == formula


@pytest.mark.parametrize(
    ("lines", "backend"),
    [
        ("[cuda.py:351] Using FLASH_ATTN attention backend out of potential backends: ('FLASH_ATTN', 'TRITON_ATTN')\n"
         "INFO 01-27 00:31:44 [mxfp4.py:165] Using Triton backend\n", "FLASH_ATTN"),
        ("[cuda.py:318] Using AttentionBackendEnum.TRITON_ATTN backend.\n"
         "INFO 06-14 04:57:13 [fp8.py:419] Using MARLIN Fp8 MoE backend out of potential backends: ['AITER'].\n",
         "TRITON_ATTN"),
        ("[unquantized.py:103] Using TRITON backend for Unquantized MoE\n"
         "INFO 01-01 00:00:00 [cuda.py:366] Using Flash Attention backend on V1 engine.\n", "Flash Attention"),
        ("[fp8.py:128] Using Triton backend for FP8 MoE\nINFO 01-01 00:00:00 [cuda.py:423] Using backend "
         "AttentionBackendEnum.FLASH_ATTN for vit attention\n", None),
        ("[cuda.py:368] Using FLASHINFER attention backend out of potential backends: ['FLASHINFER'].\n"
         "INFO 01-01 00:00:00 [cuda.py:368] Using FLASH_ATTN attention backend out of potential backends: [].\n",
         "FLASHINFER"),  # the second is the drafter's
    ],
)  # fmt: skip
def test_the_attention_backend_comes_from_lines_about_attention(lines: str, backend: str | None) -> None:
    assert parse_startup_log(f"INFO 01-27 00:31:44 {lines}").attention_backend == backend


@pytest.mark.parametrize(
    "name",
    ["(RayWorkerProc pid={}, ip=10.0.0.{})", "(RayWorkerWrapper pid={})", "(VllmWorker rank={} pid=7{})",
     "(Worker_TP{} pid=5{})", "(VllmWorker TP{} pid=5{})"],
)  # fmt: skip
def test_workers_of_one_name_are_kept_apart_and_the_tightest_counts(name: str) -> None:
    log = parse_startup_log(
        "".join(
            f"{name.format(worker, worker)} INFO 04-08 03:51:40 [gpu_worker.py:270] "
            f"Available KV cache memory: {gib} GiB\n"
            for worker, gib in ((1, "18.25"), (2, "17.10"), (3, "52.91"))
        )
    )
    assert log.kv_cache_gib == 17.10
    assert sorted(worker.kv_cache_gib or 0 for worker in log.workers) == [17.10, 18.25, 52.91]
    assert len({worker.name for worker in log.workers}) == 3


def test_memory_in_use_is_read_where_only_one_worker_prints_what_is_available() -> None:
    usage = (
        "(Worker_TP{0}_EP{0} pid=11{0}) INFO 09-04 11:00:17 [gpu_worker.py:855] Free memory on device "
        "(91.64/94.97 GiB) on startup. Desired GPU memory utilization is (0.91, 86.42 GiB). Actual usage is 64.{1} GiB "
        "for consumed memory (weights + non-torch), 4.19 GiB for peak activation, and 0.25 GiB for CUDAGraph memory. "
        "Current kv cache memory in use is {2} GiB.\n"
    )
    log = parse_startup_log(
        "(Worker_TP0_EP0 pid=110) INFO 09-04 11:00:12 [gpu_worker.py:624] Available KV cache memory: 17.79 GiB\n"
        + usage.format(0, "44", "17.79") + usage.format(1, "50", "17.73") + usage.format(2, "19", "18.04")
    )  # fmt: skip
    assert log.kv_cache_gib == 17.73
    assert [worker.kv_cache_gib for worker in log.workers] == [17.79, 17.73, 18.04]
    assert (log.consumed_gib, log.activations_gib, log.weights_gib, log.cuda_total_gib) == (64.50, 4.19, None, 94.97)


def test_negative_memory_keeps_its_sign_and_the_engine_is_known_to_be_dead() -> None:
    log = parse_startup_log(
        "(EngineCore_0 pid=5839) INFO 08-20 18:04:22 [gpu_worker.py:276] Available KV cache memory: -2.14 GiB\n"
        "(EngineCore_0 pid=5839) ERROR 08-20 18:04:22 [core.py:700] EngineCore failed to start.\n"
    )
    assert (log.kv_cache_gib, log.died) == (-2.14, True)


def test_an_engine_that_was_told_to_stop_did_not_die() -> None:
    stop = "INFO [launcher.py:110] Shutting down FastAPI HTTP server.\nERROR AsyncLLM output_handler: EngineDeadError\n"
    assert not parse_startup_log(RECORDED + stop).died
    killed = "ERROR [core_client.py:7] [shutdown] MPClient: engine core exited unexpectedly\n"
    assert parse_startup_log(RECORDED + killed).died


def test_seconds_of_parts_are_summed_and_those_of_workers_are_not() -> None:
    parts = "".join(
        f"(Worker_TP{rank} pid={rank}) INFO 06-21 23:53:36 [monitor.py:53] torch.compile took {seconds} s in total\n"
        f"(Worker_TP{rank} pid={rank}) INFO 06-21 23:53:37 [monitor.py:81] Initial profiling/warmup run took 0.30 s\n"
        for rank, seconds in ((0, 8.41), (1, 8.2), (0, 0.24), (1, 0.2))
    )
    log = parse_startup_log(parts)
    assert (log.compile_s, log.profile_s) == (8.65, 0.6)
    running = "".join(f"INFO [monitor.py:34] torch.compile takes {s} s in total\n" for s in (4.51, 6.02))
    assert parse_startup_log(running).compile_s == 6.02  # up to 0.17 the sum so far
    done = "INFO [core.py:302] init engine (profile, create kv cache) took 41.10 s (compilation: 8.70 s)\n"
    assert parse_startup_log(parts + done).compile_s == 8.7


@pytest.mark.parametrize(
    ("line", "blocks"),
    [
        ("INFO 10-02 09:00:00 [loggers.py:142] Engine 000: vllm cache_config_info with initialization after "
         "num_gpu_blocks is: 4567\n", 4567),
        ("INFO 01-02 09:00:00 [executor_base.py:111] # cuda blocks: 27898, # CPU blocks: 2048\n", 27_898),
        ("INFO 10-02 09:00:00 [loggers.py:142] after num_gpu_blocks is: 456", None),  # cut off: any digits may follow
    ],
)  # fmt: skip
def test_blocks_where_a_version_tells_them(line: str, blocks: int | None) -> None:
    assert parse_startup_log(line).kv_cache_blocks == blocks


def test_capped_captures_and_the_length_that_the_concurrency_is_for() -> None:
    log = parse_startup_log(
        "(EngineCore pid=1) INFO 01-01 00:00:00 [core.py:109] Initializing a V1 LLM engine (v0.18.1) with config: "
        "model='m', device_config=cuda, enforce_eager=False, {'cudagraph_mode': <CUDAGraphMode.FULL_AND_PIECEWISE: "
        "(2, 1)>, 'cudagraph_capture_sizes': [1, 2, 4, 96, 136, 256]}\n"
        "INFO [gpu_model_runner.py:1] Profiling CUDA graph memory: PIECEWISE=6 (largest=256), FULL=6 (largest=256)\n"
        "WARNING 01-01 00:00:00 [compilation.py:1] Capping cudagraph capture sizes from max 256 to 136 to fit Mamba "
        "cache blocks (141 blocks available).\n"
        "INFO [model.py:1] Using max model len 262144\n"
        "INFO GPU KV cache size: 27,440 tokens\nINFO Maximum concurrency for 32,768 tokens per request: 1.01x\n"
    )
    assert (log.capture_effective, log.capture_effective_full, log.capture_sizes) == (136, 136, (1, 2, 4, 96, 136))
    assert log.max_model_len_effective == 32_768
    assert not log.ready


def test_a_drafters_length_is_not_the_models() -> None:
    text = "INFO [model.py:1] Using max model len 262144\nINFO [model.py:1] Using max model len 2048\n"
    assert parse_startup_log(text).max_model_len_effective == 262_144


def test_arguments_are_read_past_what_is_no_literal() -> None:
    log = parse_startup_log(
        "INFO [utils.py:1] non-default args: {'model': 'a, b', 'compilation_config': CompilationConfig(mode=<M.X: 3>, "
        "sizes=[1, 2]), 'gpu_memory_utilization': 0.9, 'speculative_config': {'method': 'mtp'}, 'max_model_len': -1}\n"
    )
    assert log.requested == {
        "model": "a, b", "gpu_memory_utilization": 0.9, "speculative_config": {"method": "mtp"}, "max_model_len": -1,
    }  # fmt: skip


WRAPPERS: dict[str, Callable[[str], str]] = {
    "plain": lambda line: line,
    "docker compose": lambda line: f"vllm-1  | {line}",
    "kubectl": lambda line: f"[pod/vllm-7c9/vllm] 2026-11-26T02:42:01.372Z {line}",
    "cri": lambda line: f"2026-11-26T02:42:01.372123456Z stderr F {line}",
    "journald": lambda line: f"Aug 23 22:59:58 dgx qwen3.8-27b.sh[890342]: {line}",
    "syslog": lambda line: "Aug 23 22:59:58 dgx vllm[1]: #033[1;36m" + line.replace(") ", ")#033[0;0m ", 1),
    "colours": lambda line: "\x1b[1;36m" + line.replace(") ", ")\x1b[0;0m ", 1),
    "docker json": lambda line: json.dumps({"log": line + "\n", "stream": "stderr", "time": "2026-11-26T02:42:01Z"}),
}


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=WRAPPERS)
def test_any_log_collectors_wrapping_reads_as_the_plain_log(wrapper: Callable[..., Any]) -> None:
    lines = RECORDED.splitlines()
    assert parse_startup_log([wrapper(line) for line in lines]) == parse_startup_log(lines)


@given(st.lists(st.sampled_from(sorted(WRAPPERS)), min_size=1, max_size=8), st.integers(0, 7))
def test_wrappers_may_change_from_line_to_line(wrappers: list[str], offset: int) -> None:
    lines = [line for line in RECORDED.splitlines() if "GiB" in line or "tokens" in line]
    mixed = [WRAPPERS[wrappers[(i + offset) % len(wrappers)]](line) for i, line in enumerate(lines)]
    assert parse_startup_log(mixed) == parse_startup_log(lines)


def test_a_restart_with_new_processes_replaces_the_first_start_even_without_a_banner() -> None:
    second = "\n".join(
        line.replace("pid=738", "pid=999").replace("17.29", "16.01")
        for line in RECORDED.splitlines()
        if "version 0" not in line
    )
    assert parse_startup_log(RECORDED + second + "\n").kv_cache_gib == 16.01
    assert parse_startup_log(RECORDED + second + "\n").vllm_version == "0.20.2"


@pytest.mark.parametrize(
    ("line", "sampler", "advice"),
    [
        ("INFO [topk_topp_sampler.py:55] Using FlashInfer for top-p & top-k sampling.", "flashinfer", None),
        ("INFO [topk_topp_sampler.py:39] FlashInfer top-p/top-k sampling disabled via VLLM_USE_FLASHINFER_SAMPLER=0.",
         "off: VLLM_USE_FLASHINFER_SAMPLER=0", "unset VLLM_USE_FLASHINFER_SAMPLER"),
        ("WARNING 01-01 00:00:00 [topk_topp_sampler.py:157] FlashInfer top-p/top-k sampling unavailable: SM 12.x "
         "requires CUDA >= 12.9; falling back. Set VLLM_USE_FLASHINFER_SAMPLER=0 to silence.",
         "unavailable: SM 12.x requires CUDA >= 12.9", "CUDA 12.9"),
        ("WARNING 05-09 22:20:21 [topk_topp_sampler.py:69] FlashInfer is not available. Falling back to the "
         "PyTorch-native implementation of top-p & top-k sampling. For the best performance, install FlashInfer.",
         "unavailable: FlashInfer is not available", "sampler"),
    ],
)  # fmt: skip
def test_the_sampler_and_what_its_loss_costs(line: str, sampler: str, advice: str | None) -> None:
    log = parse_startup_log(line + "\n")
    assert log.sampler == sampler
    settings = {setting.name: setting for setting in speed_settings(log)}
    if advice is None:
        assert settings == {}
    else:
        assert advice in settings["sampler"].advice
        assert settings["sampler"].cost is not None and "14.0" in settings["sampler"].cost


def test_settings_that_cost_speed_are_named_with_their_cost() -> None:
    log = parse_startup_log(
        "INFO [utils.py:1] non-default args: {'max_num_batched_tokens': 1024, 'async_scheduling': False}\n"
        "INFO 01-01 00:00:00 [vllm.py:1109] Asynchronous scheduling is disabled.\n"
        "(EngineCore pid=1) INFO 01-01 00:00:00 [core.py:1] Initializing a V1 LLM engine (v0.26.0) with config: "
        "model='m', device_config=cuda, enforce_eager=True, enable_prefix_caching=False\n"
        "WARNING 01-01 00:00:00 [jit_monitor.py:135] Triton kernel JIT compilation during inference: "
        "_topk_topp_kernel. This causes a latency spike; consider extending warmup.\n"
        "WARNING 01-01 00:00:00 [fused_moe.py:1] Using default MoE config. Performance might be sub-optimal! Config "
        "file not found at x.json\n"
    )
    found = speed_settings(log)
    assert [setting.name for setting in found] == [
        "async-scheduling", "eager", "batched-tokens", "prefix-caching", "jit", "moe-config",
    ]  # fmt: skip
    assert all(setting.source for setting in found)
    assert found[3].cost is None  # nobody measured it here
    assert "_topk_topp_kernel" in found[4].state


@pytest.mark.parametrize(("version", "told"), [("0.20.2", ["sampler"]), ("0.26.0", [])])
def test_vllm_020_leaves_flashinfers_sampler_off_without_a_word(version: str, told: list[str]) -> None:
    log = parse_startup_log(
        f"(EngineCore pid=1) INFO 01-01 00:00:00 [core.py:1] Initializing a V1 LLM engine (v{version}) with config: "
        "model='m', device_config=cuda, enable_prefix_caching=True\n"
        "(APIServer pid=1) INFO:     Application startup complete.\n"
    )
    found = speed_settings(log)
    assert [setting.name for setting in found] == told
    assert all("VLLM_USE_FLASHINFER_SAMPLER=1" in setting.advice for setting in found)


def test_a_server_with_all_defaults_has_none() -> None:
    log = parse_startup_log(
        "INFO 01-01 00:00:00 [vllm.py:1109] Asynchronous scheduling is enabled.\n"
        "INFO [topk_topp_sampler.py:55] Using FlashInfer for top-p & top-k sampling.\n"
    )
    assert speed_settings(log) == ()


def test_phases_of_a_cold_and_a_warm_start() -> None:
    cold = parse_startup_log(RECORDED)
    assert cold.compile_cache == "cold"
    assert (cold.load_s, cold.compile_s, cold.profile_s) == (2.095357, 42.88, 70.05)
    assert cold.setup_s is not None and cold.total_s is not None and cold.other_s is not None
    assert cold.total_s > cold.setup_s + 42.88 + 70.05
    loaded = "INFO [decorators.py:305] Directly load AOT compilation from path /root/.cache/x\n"
    assert parse_startup_log(loaded).compile_cache == "warm"
    compiled = "INFO [backends.py:391] Compiling a graph for compile range (1, 2048) takes 33.12 s\n"
    assert parse_startup_log(loaded + compiled).compile_cache == "cold"
    assert parse_startup_log("INFO nothing\n").compile_cache is None


GRAPH_TABLE = """(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] **CUDAGraph Config Settings:**
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1]
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] - Mode: FULL_AND_PIECEWISE
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] | Unpadded Tokens | Padded Tokens | Num Paddings | Runtime Mode | Count |
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] |-----------------|---------------|--------------|--------------|-------|
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] | 60              | 64            | 4            | FULL         | 120   |
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] | 96              | 96            | 0            | NONE         | 30    |
(EngineCore pid=9) INFO 11-26 10:00:10 [loggers.py:1] | 2048            | 2048          | 0            | NONE         | 7     |
"""  # noqa: E501  # as printed


def test_steps_outside_the_graphs_are_measured_where_the_server_counts_them() -> None:
    args = "INFO 11-26 09:59:00 [utils.py:1] non-default args: {'max_num_seqs': 128, 'cudagraph_metrics': True}\n"
    log = parse_startup_log(args + GRAPH_TABLE + GRAPH_TABLE)
    assert log.graph_steps == {(60, "FULL"): 240, (96, "NONE"): 60, (2048, "NONE"): 14}
    found = next(setting for setting in speed_settings(log) if setting.name == "graph-miss")
    assert "60 of 300 steps of at most 128 tokens" in found.state, "a prompt's step is no decode step"
    inside = parse_startup_log(args.replace("128", "64") + GRAPH_TABLE)
    assert "graph-miss" not in [setting.name for setting in speed_settings(inside)]
    assert parse_startup_log("INFO | a | table | of | something | else |\n").graph_steps == {}

"""The start-up log reader on recorded servers, on pieces of their logs and on made-up variants."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import StartupLogReader, parse_startup_log, read_named_log

DATA = Path(__file__).parents[2] / "data" / "memory"
H200 = "h200-vllm-0.20.2"


def read(name: str) -> str:
    return gzip.decompress((DATA / name).read_bytes()).decode()


@pytest.mark.parametrize(
    ("name", "kv_gib", "estimated", "actual", "tokens", "concurrency", "capture"),
    [
        ("cap16-seq16", 17.32, 0.08, 0.08, 563_085, 2.15, 16),
        ("cap32-seq32", 17.31, 0.09, 0.09, 563_085, 2.15, 32),
        ("cap64-seq64", 17.29, 0.11, 0.14, 562_036, 2.14, 64),
        ("cap64-seq256", 17.29, 0.11, 0.14, 562_036, 2.14, 64),
        ("cap64-seq64-noest", 17.4, 0.11, 0.14, 565_706, 2.16, 64),
        ("cap64-seq64-video", 17.29, 0.11, 0.14, 562_036, 2.14, 64),
    ],
)
def test_recorded_gpu_logs(
    name: str, kv_gib: float, estimated: float, actual: float, tokens: int, concurrency: float, capture: int
) -> None:
    log = parse_startup_log(read(f"{H200}/{name}.log.gz"))
    assert log.vllm_version == "0.20.2"
    assert log.weights_gib == 10.57
    assert log.kv_cache_gib == kv_gib
    assert (log.graphs_estimated_gib, log.graphs_actual_gib) == (estimated, actual)
    assert log.graphs_estimate_applied is (name != "cap64-seq64-noest")
    assert (log.kv_cache_tokens_logged, log.max_concurrency_logged) == (tokens, concurrency)
    assert log.kv_cache_tokens_formula == "max_concurrency"
    assert (log.capture_effective, log.capture_effective_full) == (capture, capture)
    assert log.attention_block_tokens == 528
    assert log.max_model_len_effective == 262_144
    assert log.attention_backend == "FLASH_ATTN"
    assert log.quantization_backend == "MarlinNvFp4LinearKernel"
    assert log.ready
    assert log.requested["gpu_memory_utilization"] == 0.21546
    assert log.activations_gib is None
    assert log.max_num_batched_tokens == 2048


def test_seconds_of_a_start() -> None:
    log = parse_startup_log(read(f"{H200}/cap64-seq64.log.gz"))
    assert (log.compile_s, log.profile_s, log.capture_s, log.init_s) == (42.88, 70.05, 3.0, 134.55)
    assert log.kv_to_ready_s == 12.0


def test_a_start_that_was_cut_off_keeps_what_was_said_and_the_ignored_flag() -> None:
    log = parse_startup_log(read(f"{H200}/cap64-seq64-fp8kv.log.gz"))
    assert log.attention_block_tokens == 1056
    assert log.kv_cache_gib is None
    assert log.kv_cache_tokens_logged is None
    assert not log.ready
    assert any("Disabling calculate_kv_scales" in warning for warning in log.warnings)


@pytest.mark.parametrize("run", ["qwen35", "qwen3-preempting", "qwen35-crash"])
def test_facts_of_the_cpu_servers(run: str) -> None:
    facts = json.loads((DATA / "cpu-vllm-0.28.0" / "facts.json").read_text())[run]
    log = parse_startup_log(read(f"cpu-vllm-0.28.0/{run}.log.gz"))
    assert log.vllm_version == "0.28.0"
    assert log.kv_cache_gib == facts["kv_cache_gib_logged"]
    assert log.kv_cache_tokens_logged == facts["kv_cache_tokens_logged"]
    assert log.max_concurrency_logged == facts["max_concurrency_logged"]
    assert log.max_concurrency_tokens == facts["max_concurrency_for_tokens_logged"]
    assert log.attention_block_tokens == facts["attention_block_tokens_logged"]
    assert log.kv_cache_blocks_profiled == facts["num_gpu_blocks_before_override"]
    assert log.kv_cache_blocks == facts["num_gpu_blocks_override"]
    assert log.enable_prefix_caching == facts["enable_prefix_caching"]
    assert log.requested["kv_cache_memory_bytes"] == facts["kv_cache_bytes"]
    assert log.max_model_len_effective == facts["max_model_len"]
    # A CPU has no CUDA graphs to miss: no capture size, rather than 0.
    assert log.capture_effective is None


def test_032_prints_cpu_and_drops_prefixes() -> None:
    log = parse_startup_log(read("cpu-vllm-0.32.0/qwen35-compiled.log.gz"))
    assert (log.kv_cache_tokens_logged, log.max_concurrency_logged) == (1_412_473, 172.42)
    assert log.profile_s == 0.28
    assert log.mamba_cache_mode == "align"
    assert log.max_num_batched_tokens == 2048  # not asked for: the engine's own words


def test_step_budget_as_the_scheduler_says_it() -> None:
    asked = "INFO non-default args: {'max_num_batched_tokens': 32}\n"
    said = "INFO [scheduler.py:307] Chunked prefill is enabled with max_num_batched_tokens=32.\n"
    for text in (asked, said, asked + said):
        assert parse_startup_log(text).max_num_batched_tokens == 32


LINES_018 = (
    "(APIServer pid=1) INFO 03-01 10:00:00 [utils.py:302]   █▄█▀ █     █  version 0.18.0\n"
    "\x1b[0;36m(EngineCore_DP0 pid=9)\x1b[0;0m \x1b[1mINFO\x1b[0m 03-01 10:00:30 [x.py:1] "
    "Model loading took 10.43 GiB memory and 12.1 seconds\n"
    "(EngineCore_DP0 pid=9) INFO 03-01 10:01:00 [x.py:1] Setting attention block size to 528 tokens to ensure\n"
    "(EngineCore_DP0 pid=9) INFO 03-01 10:01:30 [x.py:1] Available KV cache memory: 13.55 GiB\n"
    "(EngineCore_DP0 pid=9) WARNING 03-01 10:01:30 [x.py:1] Capping cudagraph capture sizes from max 512 to 210 "
    "to fit Mamba cache blocks\n"
    "(EngineCore_DP0 pid=9) INFO 03-01 10:01:31 [x.py:1] Auto-fit max_model_len: reduced from 262144 to 110880 to "
    "fit in available GPU memory (13.55 GiB)\n"
    "(EngineCore_DP0 pid=9) INFO 03-01 10:01:31 [x.py:1] GPU KV cache size: 110,880 tokens\n"
    "(EngineCore_DP0 pid=9) INFO 03-01 10:01:31 [x.py:1] Maximum concurrency for 110,880 tokens per request: 3.94x\n"
)


def test_018_two_line_form_with_colours() -> None:
    log = parse_startup_log(LINES_018)
    assert log.weights_gib == 10.43
    assert log.kv_cache_tokens_logged == 110_880
    assert log.kv_cache_tokens_formula == "blocks_per_group"
    assert log.max_model_len_effective == 110_880
    assert log.warnings == ("Capping cudagraph capture sizes from max 512 to 210 to fit Mamba cache blocks",)


def test_formula_without_a_version_follows_from_the_two_numbers() -> None:
    headless = "".join(LINES_018.splitlines(keepends=True)[1:])
    assert parse_startup_log(headless).vllm_version is None
    assert parse_startup_log(headless).kv_cache_tokens_formula == "blocks_per_group"
    newer = "KV cache size: 562,036 tokens, Maximum concurrency for 262,144 tokens per request: 2.14x\n"
    assert parse_startup_log(newer).kv_cache_tokens_formula == "max_concurrency"


def test_a_build_without_pools_prefix_says_host() -> None:
    log = parse_startup_log("GPU + host KV cache size: 1,000 tokens, Maximum concurrency for 100 tokens per "
                            "request: 10.00x\n")  # fmt: skip
    assert (log.kv_cache_tokens_logged, log.max_concurrency_logged) == (1000, 10.0)


LINES_019 = (
    "INFO non-default args: {'model': 'Qwen/Qwen3.5-9B'}\n"
    "(EngineCore pid=9) INFO 04-07 02:46:18 [k.py:829] Overriding num_gpu_blocks=0 with num_gpu_blocks_override=512\n"
    "(EngineCore pid=9) INFO 04-07 02:46:18 [g.py:1] Profiling CUDA graph memory: PIECEWISE=51 (largest=512)\n"
    "(EngineCore pid=9) INFO 04-07 02:46:21 [g.py:1] Estimated CUDA graph memory: -0.87 GiB total\n"
    "(EngineCore pid=9) INFO 04-07 02:46:21 [g.py:1] Available KV cache memory: 20.27 GiB\n"
    "(EngineCore pid=9) INFO 04-07 02:46:21 [g.py:1] In v0.19, CUDA graph memory profiling will be enabled by default "
    "(VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1), which more accurately accounts for it.\n"
)


def test_018_and_019_profile_graphs_with_a_small_cache_of_their_own() -> None:
    """Forms of public logs of 0.18 and 0.19: the 512 blocks are the profiler's, and the estimate does not count."""
    log = parse_startup_log(LINES_019)
    assert (log.kv_cache_blocks, log.kv_cache_blocks_profiled) == (None, None)
    assert log.graphs_estimate_applied is False
    assert log.graphs_estimated_gib == -0.87
    # A kind of graph that the profiler does not name is not captured.
    assert (log.capture_effective, log.capture_effective_full) == (512, 0)
    asked = LINES_019 + "INFO [k.py:1] Overriding num_gpu_blocks=1258 with num_gpu_blocks_override=16\n"
    assert (parse_startup_log(asked).kv_cache_blocks, parse_startup_log(asked).kv_cache_blocks_profiled) == (16, 1258)


def test_two_workers_and_the_smallest() -> None:
    log = parse_startup_log(
        "(Worker_TP0 pid=104) INFO [g.py:1] Model loading took 5.30 GiB memory and 2 seconds\n"
        "(Worker_TP1 pid=105) INFO [g.py:1] Model loading took 5.29 GiB memory and 2 seconds\n"
        "(EngineCore pid=90) (Worker_TP0 pid=104) INFO [g.py:1] Available KV cache memory: 19.92 GiB\n"
        "vllm-1  | (Worker_TP1 pid=105) INFO [g.py:1] Available KV cache memory: 19.44 GiB\n"
    )
    assert [(worker.name, worker.kv_cache_gib) for worker in log.workers] == [
        ("Worker_TP0", 19.92),
        ("Worker_TP1", 19.44),
    ]
    assert (log.kv_cache_gib, log.weights_gib) == (19.44, 5.30)


def test_newer_summary_gives_activations_and_both_totals() -> None:
    log = parse_startup_log(
        "INFO Free memory on device (31.0/31.36 GiB) on startup. Desired GPU memory utilization is "
        "(0.95, 29.79 GiB). Actual usage is 10.57 GiB for consumed memory (weights + non-torch), 1.9 GiB for peak "
        "activation, and 0.14 GiB for CUDAGraph memory. Replace gpu_memory_utilization\n"
    )
    assert (log.cuda_total_gib, log.budget_gib, log.activations_gib) == (31.36, 29.79, 1.9)


def test_a_restart_in_the_same_file_replaces_the_first_start() -> None:
    first = read(f"{H200}/cap64-seq64-noest.log.gz")
    log = parse_startup_log(first + read(f"{H200}/cap64-seq64-fp8kv.log.gz"))
    assert log.attention_block_tokens == 1056
    assert log.kv_cache_gib is None


def test_full_graphs_are_counted_where_the_profile_line_is_missing() -> None:
    text = read(f"{H200}/cap64-seq64.log.gz")
    without = "".join(line for line in text.splitlines(keepends=True) if "Profiling CUDA graph" not in line)
    log = parse_startup_log(without)
    assert (log.capture_effective, log.capture_effective_full) == (64, 64)


def test_other_texts_give_nothing() -> None:
    for text in ("", "\x00\xff\n", "llama_kv_cache: size = 544 MiB\nmain: server is listening\n"):
        assert parse_startup_log(text) == StartupLog()
        assert not parse_startup_log(text).recognised


WHOLE = read(f"{H200}/cap64-seq64.log.gz")
TELLING = sorted(
    {
        line
        for line in (WHOLE + LINES_018).splitlines()
        if len(line) < 500 and parse_startup_log(line + "\n") != StartupLog()
    }
)


@pytest.mark.parametrize("line", TELLING, ids=lambda line: line[-40:])
def test_a_line_cut_anywhere_never_gives_a_wrong_number(line: str) -> None:
    """A log that is still growing ends in the middle of a line: its values are the whole line's, or none."""
    whole = parse_startup_log(line + "\n")
    for length in range(len(line)):
        log = parse_startup_log(line[:length])
        for name in StartupLog.__dataclass_fields__:
            value = getattr(log, name)
            if isinstance(value, int | float | str) and not isinstance(value, bool):
                assert value == getattr(whole, name), (name, line[:length])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_pieces_give_the_same_as_the_whole(cuts: Any) -> None:
    reader = StartupLogReader()
    edges = [0, *sorted(cuts), len(WHOLE)]
    for start, end in itertools.pairwise(edges):
        reader.feed(WHOLE[start:end])
        reader.result()
    assert reader.result() == parse_startup_log(WHOLE)
    assert parse_startup_log(WHOLE.splitlines()) == parse_startup_log(WHOLE)


def test_a_log_is_read_line_by_line_and_another_program_s_not_to_its_end(tmp_path: Path) -> None:
    log, path = read(f"{H200}/cap16-seq16.log.gz"), tmp_path / "server.log"
    path.write_text("x" * 10_000_000 + "\n" + log)
    assert read_named_log(path, "LOG") == parse_startup_log(log)
    path.write_text("a: 1\n" * 30_000 + log)
    assert not read_named_log(path, "LOG").recognised


@pytest.mark.parametrize("digits", ["9" * 25, "9" * 5000, "1,2" * 2000])
def test_a_number_that_nothing_can_have_tells_nothing(digits: str) -> None:
    log = parse_startup_log(f"INFO GPU KV cache size: {digits} tokens\nINFO Available KV cache memory: {digits} GiB\n")
    assert not log.recognised


def test_an_empty_place_in_a_list_of_captures() -> None:
    line = read(f"{H200}/cap16-seq16.log.gz").replace("'cudagraph_capture_sizes': [", "'cudagraph_capture_sizes': [,, ")
    assert parse_startup_log(line).capture_sizes == parse_startup_log(read(f"{H200}/cap16-seq16.log.gz")).capture_sizes

"""The memory plan against the recorded servers, and VRAM under load."""

from pathlib import Path

import numpy as np
import pytest

from qwenbench.capacity.cards import find_card
from qwenbench.errors import UsageError
from qwenbench.simulator.memory import MemoryPlan, plan_memory, served_shape
from qwenbench.simulator.meters import VramGauge
from qwenbench.simulator.options import parse
from qwenbench.simulator.steptime import calibration

FIGURES = calibration()["memory"]
MODEL = "ig1/Qwen3.5-9B-NVFP4"
RECORDED = f"{MODEL} --max-model-len auto --gpu-memory-utilization 0.21546"


def plan(line: str, card: str = "h200") -> MemoryPlan:
    options = parse(line.split())
    return plan_memory(options, find_card(card), FIGURES, served_shape(options.model))


@pytest.mark.parametrize(
    ("capture", "seqs", "kv_gib", "blocks", "ready_mib", "peak_at", "peak_mib"),
    [
        (16, 16, 17.32, 1074, 30269, 16, 30911),
        (32, 32, 17.31, 1074, 30365, 32, 31175),
        (64, 64, 17.29, 1072, 30527, 64, 31803),
        (64, 256, 17.29, 1072, 31267, 214, 50803),
    ],
)
def test_recorded_servers(
    capture: int, seqs: int, kv_gib: float, blocks: int, ready_mib: int, peak_at: int, peak_mib: int
) -> None:
    memory = plan(f"{RECORDED} --max-cudagraph-capture-size {capture} --max-num-seqs {seqs}")
    assert round(memory.kv_cache_gib, 2) == kv_gib
    assert memory.num_blocks == blocks
    assert memory.tokens_logged == {1072: 562_036, 1074: 563_085}[blocks]
    assert memory.ready_mib == pytest.approx(ready_mib, rel=0.01)
    gauge = VramGauge(memory, find_card("h200"), FIGURES["overshoot_mib"])
    gauge.saw(peak_at)
    assert gauge.used_mib == pytest.approx(peak_mib, rel=0.01)


def test_recorded_server_that_does_not_count_the_graphs() -> None:
    line = f"{RECORDED} --max-cudagraph-capture-size 64 --max-num-seqs 64"
    options = parse(line.split(), {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0"})
    memory = plan_memory(options, find_card("h200"), FIGURES, served_shape(MODEL))
    assert round(memory.kv_cache_gib, 2) == 17.4 and memory.tokens_logged == 565_706


def test_vram_never_falls_and_never_passes_the_card() -> None:
    memory, card = plan(f"{MODEL} --max-num-seqs 256 --gpu-memory-utilization 0.95", "rtx-5090"), find_card("rtx-5090")
    gauge = VramGauge(memory, card, FIGURES["overshoot_mib"])
    seen = []
    for running in (1, 64, 8, 200, 1):
        gauge.saw(running)
        seen.append(gauge.used_mib)
    assert seen == sorted(seen) and seen[-1] == card.nvml_mib


def test_fp8_cache_holds_twice_the_tokens_in_a_block() -> None:
    plain, fp8 = plan(RECORDED), plan(RECORDED + " --kv-cache-dtype fp8")
    assert fp8.layout.block_tokens == 2 * plain.layout.block_tokens and fp8.num_blocks == plain.num_blocks


def test_auto_length_shrinks_to_what_fits() -> None:
    small = plan(f"{MODEL} --max-model-len auto --gpu-memory-utilization 0.5", "rtx-5090")
    assert 0 < small.max_model_len < 262_144
    assert small.max_concurrency >= 1
    again = plan(f"{MODEL} --max-model-len {small.max_model_len + 1} --gpu-memory-utilization 0.5", "rtx-5090")
    assert again.max_concurrency < 1


def test_overrides() -> None:
    assert plan(RECORDED + " --num-gpu-blocks-override 40").num_blocks == 40
    assert plan(RECORDED + " --kv-cache-memory-bytes 1G").kv_cache_gib == 1.0
    assert plan(RECORDED + " --enable-prefix-caching").layout.state_blocks == 6


@pytest.mark.parametrize(("capture", "graphs_gib"), [(16, 0.08), (32, 0.09), (64, 0.14), (512, 0.40), (1024, 0.61)])
def test_recorded_graphs(capture: int, graphs_gib: float) -> None:
    memory = plan(f"{RECORDED} --max-cudagraph-capture-size {capture} --max-num-seqs {min(capture, 64)}")
    assert memory.graphs_actual_gib == pytest.approx(graphs_gib, abs=0.016)


def test_a_drafter_in_the_model_takes_a_layer_and_states() -> None:
    memory = plan(f"{MODEL} --gpu-memory-utilization 0.2133 --spec-method mtp --spec-tokens 3")
    assert memory.layout.block_tokens == 544 and memory.layout.bytes_per_block == 544 * 4096 * 9  # recorded: 902 blocks
    assert memory.num_blocks == pytest.approx(902, rel=0.02)


def test_more_batched_tokens_cost_no_cache_as_recorded() -> None:
    assert plan(RECORDED + " --max-num-batched-tokens 8192").num_blocks == plan(RECORDED).num_blocks


def test_a_model_that_is_not_known_is_refused_and_a_folder_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Qwen/Qwen3-8B.* is not known"):
        served_shape("Qwen/Qwen3-8B")
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096, '
        '"head_dim": 128, "intermediate_size": 12288, "vocab_size": 151936, "max_position_embeddings": 40960}'
    )
    shape = served_shape(str(tmp_path))
    assert shape.max_position == 40_960 and shape.weights_gib is not None
    memory = plan_memory(parse([str(tmp_path)]), find_card("h200"), FIGURES, shape)
    assert memory.model_length == 40_960 and memory.weights_gib == shape.weights_gib and memory.layout.state_blocks == 0


def test_a_context_beyond_the_models_is_refused_in_vllms_words() -> None:
    with pytest.raises(UsageError, match="greater than the derived max_model_len"):
        plan(f"{MODEL} --max-model-len 300000")


@pytest.mark.parametrize("running", [1, 7, 16, 100, 300, 5000])
def test_the_overshoot_lies_on_the_measured_line(running: int) -> None:
    gauge = VramGauge(plan(RECORDED), find_card("h200"), FIGURES["overshoot_mib"])
    before = gauge.used_mib
    gauge.saw(running)
    assert gauge.used_mib - before == pytest.approx(np.interp(running, *np.array(FIGURES["overshoot_mib"]).T))

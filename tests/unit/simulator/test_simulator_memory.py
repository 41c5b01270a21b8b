"""The memory plan against the recorded servers, and VRAM under load."""

import pytest

from qwenbench.capacity.cards import find_card
from qwenbench.simulator.memory import VramGauge, plan_memory
from qwenbench.simulator.options import parse
from qwenbench.simulator.steptime import calibration

FIGURES = calibration()["memory"]
RECORDED = "M --max-model-len auto --gpu-memory-utilization 0.21546"


def plan(line: str, card: str = "h200"):
    return plan_memory(parse(line.split()), find_card(card), FIGURES)


@pytest.mark.parametrize(
    ("capture", "seqs", "kv_gib", "blocks", "ready_mib", "peak_at", "peak_mib"),
    [
        (16, 16, 17.32, 1074, 30269, 16, 30911),
        (32, 32, 17.31, 1074, 30365, 32, 31175),
        (64, 64, 17.29, 1072, 30527, 64, 31803),
        (64, 256, 17.29, 1072, 31267, 214, 50803),
    ],
)
def test_recorded_servers(capture, seqs, kv_gib, blocks, ready_mib, peak_at, peak_mib):
    memory = plan(f"{RECORDED} --max-cudagraph-capture-size {capture} --max-num-seqs {seqs}")
    assert round(memory.kv_cache_gib, 2) == kv_gib
    assert memory.num_blocks == blocks
    assert memory.tokens_logged == {1072: 562_036, 1074: 563_085}[blocks]
    assert memory.ready_mib == pytest.approx(ready_mib, rel=0.01)
    gauge = VramGauge(memory, find_card("h200"), FIGURES["overshoot_mib"])
    gauge.saw(peak_at)
    assert gauge.used_mib == pytest.approx(peak_mib, rel=0.01)


def test_recorded_server_that_does_not_count_the_graphs():
    line = f"{RECORDED} --max-cudagraph-capture-size 64 --max-num-seqs 64"
    options = parse(line.split(), {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "0"})
    memory = plan_memory(options, find_card("h200"), FIGURES)
    assert round(memory.kv_cache_gib, 2) == 17.4 and memory.tokens_logged == 565_706


def test_vram_never_falls_and_never_passes_the_card():
    memory, card = plan("M --max-num-seqs 256 --gpu-memory-utilization 0.95", "rtx-5090"), find_card("rtx-5090")
    gauge = VramGauge(memory, card, FIGURES["overshoot_mib"])
    seen = []
    for running in (1, 64, 8, 200, 1):
        gauge.saw(running)
        seen.append(gauge.used_mib)
    assert seen == sorted(seen) and seen[-1] == card.nvml_mib


def test_fp8_cache_holds_twice_the_tokens_in_a_block():
    plain, fp8 = plan(RECORDED), plan(RECORDED + " --kv-cache-dtype fp8")
    assert fp8.block_tokens == 2 * plain.block_tokens and fp8.num_blocks == plain.num_blocks


def test_auto_length_shrinks_to_what_fits():
    small = plan("M --max-model-len auto --gpu-memory-utilization 0.5", "rtx-5090")
    assert 0 < small.max_model_len < 262_144
    assert small.max_concurrency >= 1
    again = plan(f"M --max-model-len {small.max_model_len + 1} --gpu-memory-utilization 0.5", "rtx-5090")
    assert again.max_concurrency < 1


def test_overrides():
    assert plan(RECORDED + " --num-gpu-blocks-override 40").num_blocks == 40
    assert plan(RECORDED + " --kv-cache-memory-bytes 1G").kv_cache_gib == 1.0
    assert plan(RECORDED + " --enable-prefix-caching").state_blocks == 6

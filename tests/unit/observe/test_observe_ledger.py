"""The memory ledger against recorded servers: blocks, tokens, budget, rest, NVML."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from qwenbench.capacity.kv import kv_layout
from qwenbench.capacity.model_shape import SEED_SHAPE, ModelShape
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import parse_startup_log
from qwenbench.observe.ledger import MemoryLedger, build_ledger, compare_starts
from qwenbench.observe.nvml import VramPhases, vram_phases

DATA = Path(__file__).parents[2] / "data" / "memory"
H200 = "h200-vllm-0.20.2"

CONTRACT_KEYS = (
    "vllm_version budget_gib weights_gib activations_gib graphs_estimated_gib graphs_actual_gib kv_cache_gib rest_gib "
    "kv_cache_blocks attention_block_tokens kv_cache_tokens kv_cache_tokens_logged kv_cache_tokens_formula "
    "max_concurrency_logged capture_effective capture_effective_full max_model_len_effective attention_backend "
    "quantization_backend compile_s profile_s capture_s init_s vram_before_mib vram_ready_mib vram_peak_mib "
    "vram_after_mib warnings"
).split()
LATER_KEYS = (
    "non_torch_gib workers speculative_tokens sampler async_scheduling speed_settings setup_s load_s startup_log_s "
    "compile_cache died graph_steps"
).split()


def read(name: str) -> str:
    return gzip.decompress((DATA / name).read_bytes()).decode()


def startup(name: str) -> StartupLog:
    return parse_startup_log(read(f"{name}.log.gz"))


def labels(name: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', read(name)))


def test_keys_are_exactly_the_contract() -> None:
    data = build_ledger(StartupLog()).to_json()
    assert list(data) == CONTRACT_KEYS + LATER_KEYS
    assert data.pop("warnings") == []
    assert set(data.values()) == {None}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("cap16-seq16", 1074), ("cap32-seq32", 1074), ("cap64-seq64", 1072), ("cap64-seq64-noest", 1079)],
)
def test_blocks_from_the_log_alone_equal_those_of_the_metrics(name: str, blocks: int) -> None:
    log = startup(f"{H200}/{name}")
    layout = kv_layout(SEED_SHAPE)
    alone = build_ledger(log, layout=layout)
    with_labels = build_ledger(log, layout=layout, cache_config=labels(f"{H200}/{name}.metrics0.txt.gz"))
    assert alone.kv_cache_blocks == with_labels.kv_cache_blocks == blocks
    # The label says 16 on this version; the log's figure wins.
    assert with_labels.attention_block_tokens == 528
    assert alone.kv_cache_tokens == 262_144


def test_blocks_stay_unknown_without_a_layout_or_with_a_foreign_one() -> None:
    log = startup(f"{H200}/cap64-seq64")
    assert build_ledger(log).kv_cache_blocks is None
    assert build_ledger(log).kv_cache_tokens is None
    tiny = ModelShape.from_hf_config(json.loads((DATA / "tiny-qwen3.config.json").read_text()))
    assert build_ledger(log, layout=kv_layout(tiny)).kv_cache_blocks is None


def test_budget_rest_and_its_sign() -> None:
    log = startup(f"{H200}/cap64-seq64")
    ledger = build_ledger(log, cuda_total_gib=139.80)
    assert ledger.budget_gib == pytest.approx(30.1213, abs=1e-4)
    assert ledger.rest_gib == pytest.approx(30.1213 - 10.57 - 0.11 - 17.29, abs=1e-4)
    # The estimate that was switched off takes nothing from the budget.
    noest = build_ledger(startup(f"{H200}/cap64-seq64-noest"), cuda_total_gib=139.80)
    assert noest.rest_gib == pytest.approx(ledger.rest_gib, abs=0.011)
    too_small = build_ledger(log, cuda_total_gib=139.80, utilization=0.2)
    assert too_small.rest_gib is not None and too_small.rest_gib < 0
    assert build_ledger(log).rest_gib is None


def test_printed_activations_of_0_26_leave_the_graphs_estimate_beside_them() -> None:
    """29.82 - 10.57 weights - 0.24 non-torch - 1.92 activations - 16.98 KV cache = 0.11: the estimate."""
    log = StartupLog(
        weights_gib=10.57, non_torch_gib=0.24, activations_gib=1.92, graphs_estimated_gib=0.11,
        graphs_estimate_applied=True, kv_cache_gib=16.98, budget_gib=29.82,
    )  # fmt: skip
    assert not log.activations_hold_graphs
    assert build_ledger(log).rest_gib == pytest.approx(0.24, abs=0.011)
    # published: 110.06 - 55.99 consumed - 3.78 activations - 50.29 KV cache = 0, with an estimate of 1.94
    newer = StartupLog(
        weights_gib=55.0, consumed_gib=55.99, activations_gib=3.78, graphs_estimated_gib=1.94,
        graphs_estimate_applied=True, kv_cache_gib=50.29, budget_gib=110.06,
    )  # fmt: skip
    assert newer.activations_hold_graphs


def test_printed_activations_hold_the_graphs_estimate_already() -> None:
    """vLLM 0.32 adds the estimate that it applied to the peak activation that it prints."""
    log = StartupLog(
        weights_gib=10.0, activations_gib=2.0, graphs_estimated_gib=0.5, graphs_estimate_applied=True,
        kv_cache_gib=15.0, budget_gib=28.0,
    )  # fmt: skip
    assert build_ledger(log).rest_gib == 1.0


@pytest.mark.parametrize(
    ("name", "ready", "peak"),
    [
        ("cap64-seq64", 30_527.875, 31_803.875),
        ("cap64-seq256", 31_267.875, 50_803.875),
        ("cap16-seq16", 30_269.875, 30_911.875),
    ],
)
def test_vram_phases_from_the_recorded_series(name: str, ready: float, peak: float) -> None:
    rows = json.loads(read(f"{H200}/{name}.nvml.json.gz"))
    log = startup(f"{H200}/{name}")
    phases = vram_phases(
        [(row[0], row[1] / 2**20) for row in rows],
        kv_cache_gib=log.kv_cache_gib,
        kv_to_ready_s=log.kv_to_ready_s,
    )
    assert phases.before_mib == 615.0625
    assert phases.ready_mib == ready
    assert phases.peak_mib == peak
    assert phases.after_mib == 618.3125


def test_vram_over_budget_of_the_256_stream_run() -> None:
    ledger = build_ledger(
        startup(f"{H200}/cap64-seq256"),
        cuda_total_gib=139.80,
        vram=VramPhases(before_mib=615.06, ready_mib=31_267.875, peak_mib=50_803.875),
    )
    assert ledger.vram_over_budget_mib is not None
    assert 19_300 < ledger.vram_over_budget_mib < 19_500
    assert ledger.nvml_minus_parts_mib is not None
    assert 1_500 < ledger.nvml_minus_parts_mib < 2_500


def test_a_series_without_the_jump_leaves_ready_unknown() -> None:
    flat = [(0.0, 600.0), (1.0, 610.0), (2.0, 620.0)]
    phases = vram_phases(flat, kv_cache_gib=17.29, kv_to_ready_s=10.0)
    assert (phases.ready_mib, phases.after_mib, phases.peak_mib) == (None, None, 620.0)
    assert vram_phases([]).before_mib is None


@pytest.mark.parametrize("run", ["qwen35", "qwen3-preempting", "qwen35-crash"])
def test_facts_of_the_cpu_servers(run: str) -> None:
    facts = json.loads((DATA / "cpu-vllm-0.28.0" / "facts.json").read_text())[run]
    shape = ModelShape.from_hf_config(json.loads((DATA / f"{facts['model']}.config.json").read_text()))
    config = labels(f"cpu-vllm-0.28.0/{run}.metrics0.txt.gz")
    layout = kv_layout(
        shape,
        base_block_tokens=128,
        state_dtype=config["mamba_ssm_cache_dtype"],
        mamba_cache_mode=config["mamba_cache_mode"],
    )
    assert layout.blocks_per_request(facts["max_model_len"]) == facts["blocks_per_max_len_request"]
    log = startup(f"cpu-vllm-0.28.0/{run}")
    ledger = build_ledger(log, cache_config=config, layout=layout)
    assert ledger.kv_cache_blocks == facts["num_gpu_blocks"]
    assert ledger.attention_block_tokens == facts["attention_block_tokens"]
    assert ledger.budget_gib is None
    alone = build_ledger(log, layout=layout)
    assert alone.kv_cache_blocks == facts["num_gpu_blocks"]


def test_json_flattens_the_log_and_the_phases_that_the_ledger_holds() -> None:
    log = startup(f"{H200}/cap64-seq64")
    ledger = build_ledger(log, vram=VramPhases(peak_mib=1.0))
    assert ledger.startup is log
    data = ledger.to_json()
    assert (data["vram_peak_mib"], data["kv_cache_gib"], data["compile_s"]) == (1.0, 17.29, log.compile_s)


class TestColdAndWarm:
    """vLLM may charge compiling as activations: cold and warm starts are told apart."""

    def start(self, cache: str, kv: float, activations: float, capture: int = 64) -> MemoryLedger:
        log = StartupLog(
            vllm_version="0.26.0", requested={"max_cudagraph_capture_size": capture}, kv_cache_gib=kv,
            activations_gib=activations, compiled_from_cache=cache == "warm",
        )  # fmt: skip
        return build_ledger(log)

    def test_a_first_start_that_held_less_is_told(self) -> None:
        said = compare_starts([("first", self.start("cold", 16.1, 2.8)), ("again", self.start("warm", 16.98, 1.92))])
        assert len(said) == 1
        assert "54122" in said[0]
        assert "2.80 and 1.92" in said[0]

    def test_the_same_cache_is_told_as_well(self) -> None:
        said = compare_starts([("first", self.start("cold", 16.98, 1.92)), ("again", self.start("warm", 16.98, 1.92))])
        assert "was not charged" in said[0]

    def test_other_settings_and_two_warm_starts_say_nothing(self) -> None:
        assert not compare_starts(
            [("a", self.start("cold", 16.1, 2.8)), ("b", self.start("warm", 16.9, 1.9, capture=512))]
        )
        assert not compare_starts([("a", self.start("warm", 16.1, 2.8)), ("b", self.start("warm", 16.9, 1.9))])

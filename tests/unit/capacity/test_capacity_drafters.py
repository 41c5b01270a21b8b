"""Drafters: their layers, states and look-ahead, exact on recorded and published servers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.configuration import layout_of_server
from qwenbench.capacity.graphs import capture_sizes, sequences_captured
from qwenbench.capacity.kv import (
    Drafter,
    blocks_for_gib,
    blocks_range_for_printed_gib,
    kv_cache_tokens,
    kv_layout,
    parse_drafter,
    printed_tokens,
    requests_that_fit,
)
from qwenbench.capacity.model_shape import SEED_SHAPE, ModelShape, known_shape
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import parse_startup_log
from qwenbench.errors import UsageError
from qwenbench.observe.ledger import build_ledger

RECORDED = Path(__file__).parents[2] / "data" / "memory" / "vllm-0.26.0"
MTP3 = Drafter("mtp", 3)


def recorded(name: str) -> StartupLog:
    return parse_startup_log(gzip.decompress((RECORDED / f"{name}.log.gz").read_bytes()).decode())


@pytest.mark.parametrize(
    ("name", "block", "blocks", "tokens"),
    [
        ("mtp3", 544, 902, 478_651),
        ("b8192", 528, 1054, 552_599),
        ("fp8kv", 1056, 1052, 1_094_347),
        ("base-52gib", 528, 2470, 1_294_991),
    ],
)
def test_recorded_servers_of_026_without_a_block_count(name: str, block: int, blocks: int, tokens: int) -> None:
    log = recorded(name)
    layout = layout_of_server(SEED_SHAPE, log)
    assert layout.block_tokens == block
    assert log.kv_cache_tokens_logged == tokens
    low, high = blocks_range_for_printed_gib(log.kv_cache_gib or 0.0, layout)
    fitting = [n for n in range(low, high + 1) if printed_tokens("0.26.0", n, layout, 262_144) == tokens]
    assert fitting == [blocks]


def test_a_drafter_at_a_larger_budget() -> None:
    layout = kv_layout(SEED_SHAPE, drafter=MTP3)
    low, high = blocks_range_for_printed_gib(39.68, layout)
    assert [n for n in range(low, high + 1) if printed_tokens("0.26.0", n, layout, 262_144) == 1_127_113] == [2124]


@pytest.mark.parametrize(
    ("model", "mode", "cards", "gib", "tokens", "concurrency"),
    [
        ("Qwen3.6-27B", "none", 2, 14.68, 841_541, 3.21),
        ("Qwen3.6-27B", "align", 2, 10.85, 612_157, 2.34),
        ("Qwen3.8-27B", "align", 2, 12.52, 705_884, 2.69),
        ("Qwen3.8-27B", "align", 2, 15.52, 875_765, 3.34),
        ("Qwen3.6-27B", "align", 2, 11.05, 623_873, 2.38),  # two RTX 3090, club-3090 issue 642
        ("Qwen3.6-27B", "align", 2, 5.33, 300_220, 1.15),  # two RTX 3090, club-3090 pull request 594
    ],
)
def test_published_servers_with_mtp_of_three(
    model: str, mode: str, cards: int, gib: float, tokens: int, concurrency: float
) -> None:
    shape = known_shape(model)
    assert shape is not None
    layout = kv_layout(shape, "fp8", mamba_cache_mode=mode, drafter=MTP3, tensor_parallel=cards)
    assert layout.layers_per_group == 17, "the drafter's layer stands with the model's sixteen"
    low, high = blocks_range_for_printed_gib(gib, layout)
    found = [n for n in range(low, high + 1) if printed_tokens("0.26.0", n, layout, 262_144) == tokens]
    assert len(found) == 1
    assert found[0] / layout.blocks_per_request(262_144) == pytest.approx(concurrency, abs=0.006)


def test_fifteen_requests_ran_at_once_in_sixty_three_blocks() -> None:
    layout = kv_layout(SEED_SHAPE, mamba_cache_mode="align", drafter=None)
    one_block = layout.block_tokens
    assert layout.blocks_held(one_block) == 4
    assert layout.blocks_per_request(one_block) == 7, "vLLM's own bound counts two states a group"
    assert requests_that_fit(63, layout, one_block) == 15


@pytest.mark.parametrize(
    ("model", "more", "gib", "tokens", "length", "concurrency", "blocks"),
    [
        ("qwen3.8-27b-fp8", "'tensor_parallel_size': 2, 'enable_prefix_caching': True, ", 12.52, "705,884", 262_144,
         2.69, 482),
        ("qwen3.8-27b-nvfp4", "'tensor_parallel_size': 2, 'enable_prefix_caching': True, ", 15.52, "875,765", 262_144,
         3.34, 598),
        ("qwen3.6-27b-nvfp4", "'tensor_parallel_size': 2, ", 14.68, "841,541", 262_144, 3.21, 565),
        ("qwen3.6-35b-a3b-nvfp4", "'enable_prefix_caching': True, ", 5.98, "567,978", 131_072, 4.33, 299),
    ],
)  # fmt: skip
def test_an_excerpt_of_a_published_log_without_the_engines_own_line(
    model: str, more: str, gib: float, tokens: str, length: int, concurrency: float, blocks: int
) -> None:
    drafter = "" if "a3b" in model else ", 'speculative_config': {'method': 'mtp', 'num_speculative_tokens': 3}"
    worker = "Worker_TP0 pid=168" if "tensor" in more else "EngineCore pid=107"
    log = parse_startup_log(
        "(APIServer pid=1) INFO 08-15 12:47:10 [api_utils.py:273] non-default args: "
        f"{{'model': '/m/{model}', 'max_model_len': {length}, {more}'kv_cache_dtype': 'fp8'{drafter}}}\n"
        f"({worker}) INFO 08-15 12:49:29 [gpu_worker.py:538] Available KV cache memory: {gib} GiB\n"
        f"(EngineCore pid=152) INFO 08-15 12:49:29 [kv_cache_utils.py:2146] GPU KV cache size: {tokens} tokens\n"
        "(EngineCore pid=152) INFO 08-15 12:49:29 [kv_cache_utils.py:2147] Maximum concurrency for "
        f"{length:,} tokens per request: {concurrency}x\n"
    )
    shape = known_shape(model)
    assert shape is not None
    assert log.speculative_tokens == (3 if drafter else None)
    assert build_ledger(log, layout=layout_of_server(shape, log)).kv_cache_blocks == blocks


class TestSpeculativeConfig:
    """--speculative-config, as people write it and as logs repeat it."""

    @pytest.mark.parametrize(
        ("given", "drafter"),
        [
            ('{"method":"mtp","num_speculative_tokens":3}', Drafter("mtp", 3)),
            ('{"method":"qwen3_5_mtp","num_speculative_tokens":1}', Drafter("mtp", 1)),
            ('{"method":"mtp"}', Drafter("mtp", 1)),
            ({"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3}, Drafter("ngram", 4)),
            ({"method": "eagle3", "model": "/m/eagle", "num_speculative_tokens": 2}, Drafter("eagle", 2, "/m/eagle")),
            ({"method": "dflash", "model": "/m/d"}, Drafter("dflash", 15, "/m/d")),
            ({"model": "org/small-DFlash", "num_speculative_tokens": 7}, Drafter("dflash", 7, "org/small-DFlash")),
            ({"model": "org/small", "num_speculative_tokens": 5}, Drafter("draft_model", 5, "org/small")),
            ({}, None),
            (None, None),
        ],
    )
    def test_is_understood(self, given: object, drafter: Drafter | None) -> None:
        assert parse_drafter(given) == drafter  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("{method: mtp}", "no JSON"),
            ("[1]", "no JSON object"),
            ('{"method":"telepathy","num_speculative_tokens":2}', "telepathy"),
            ('{"method":"ngram"}', "num_speculative_tokens"),
            ('{"method":"mtp","num_speculative_tokens":0}', "num_speculative_tokens"),
        ],
    )
    def test_what_is_wrong_with_it_is_named(self, given: str, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            parse_drafter(given)

    def test_a_drafter_whose_layers_are_not_known_is_said(self) -> None:
        with pytest.raises(UsageError, match=r"own config\.json"):
            kv_layout(SEED_SHAPE, drafter=Drafter("dflash", 7, "/m/d"))

    def test_its_own_config_adds_its_layers(self) -> None:
        own = ModelShape.from_hf_config(
            {"num_hidden_layers": 2, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 256,
             "hidden_size": 4096, "dtype": "bfloat16"}, "drafter",
        )  # fmt: skip
        layout = kv_layout(SEED_SHAPE, drafter=Drafter("dflash", 3, "/m/d"), drafter_shape=own)
        assert layout.layers_per_group == 10
        assert layout.lookahead_tokens == 4


@given(st.integers(1, 12), st.sampled_from(["none", "align"]), st.floats(2, 60))
def test_more_drafted_tokens_never_leave_more_room(tokens: int, mode: str, gib: float) -> None:
    def longest(drafter: Drafter) -> int:
        layout = kv_layout(SEED_SHAPE, mamba_cache_mode=mode, drafter=drafter)
        return kv_cache_tokens(blocks_for_gib(gib, layout), layout, 262_144)

    # a block is a whole number of 16 tokens: its rounding is all that may go the other way
    slack = 2 * kv_layout(SEED_SHAPE, drafter=Drafter("mtp", tokens + 1)).block_tokens
    assert longest(Drafter("mtp", tokens + 1)) <= longest(Drafter("mtp", tokens)) + slack


@given(st.integers(1, 8), st.integers(1, 200_000))
def test_an_ngram_drafter_costs_states_but_no_layer(tokens: int, length: int) -> None:
    plain, drafted = kv_layout(SEED_SHAPE), kv_layout(SEED_SHAPE, drafter=Drafter("ngram", tokens))
    assert drafted.layers_per_group == plain.layers_per_group
    assert drafted.lookahead_tokens == 0
    assert drafted.state_blocks == plain.state_blocks + 3 * tokens


@given(st.integers(1, 600), st.integers(1, 8))
def test_graphs_cover_whole_sequences(capture: int, tokens: int) -> None:
    rows = 1 + tokens
    sizes = capture_sizes(capture, rows)
    assert all(size % rows == 0 for size in sizes)
    assert sequences_captured(capture, rows) * rows <= capture


def test_capture_64_holds_sixteen_sequences_of_mtp_three() -> None:
    log = recorded("mtp3")
    assert log.speculative_tokens == 3
    assert sequences_captured(64, MTP3.rows_per_sequence) == 16


def test_a_drafters_speculative_config_is_read_back_from_its_log() -> None:
    asked = recorded("mtp3").requested["speculative_config"]
    assert parse_drafter(asked if isinstance(asked, dict) else json.loads(str(asked))) == MTP3

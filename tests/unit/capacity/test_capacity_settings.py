"""vLLM's own spellings of what memory depends on: in `plan`, in a sweep's flags and in logs."""

from __future__ import annotations

import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.kv import Drafter
from qwenbench.capacity.settings import (
    Settings,
    default_capture,
    default_utilization,
    parse_bytes,
    settings_of_config,
    settings_of_flags,
)
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.flags import parse_flags
from qwenbench.errors import UsageError


def settings(line: str, **env: str) -> Settings:
    return settings_of_flags(parse_flags(shlex.split(line)), env)


@pytest.mark.parametrize(
    ("line", "attribute", "value"),
    [
        ("-tp 2", "tensor_parallel", 2),
        ("--tensor-parallel-size=4", "tensor_parallel", 4),
        ("--tensor_parallel_size 4", "tensor_parallel", 4),
        ("--some-switch -tp 2", "tensor_parallel", 2),
        ("-pp 3", "pipeline_parallel", 3),
        ("--capture 128", "capture", 128),
        ("--max-cudagraph-capture-size 128", "capture", 128),
        ("--cuda-graph-sizes 1,2,64", "capture", 64),
        ("--cudagraph-capture-sizes 1,2,96", "capture", 96),
        ("-cc '{\"max_cudagraph_capture_size\": 32}'", "capture", 32),
        ("-cc.max_cudagraph_capture_size 48", "capture", 48),
        ("--compilation-config '{\"cudagraph_capture_sizes\": [1, 8]}'", "capture", 8),
        ("-O3 --max-num-seqs 4", "max_num_seqs", 4),
        ("--enforce-eager --capture 64", "capture", 0),
        ("--compilation-config.cudagraph_mode NONE", "capture", 0),
        ("--max-model-len 32k", "max_model_len", 32_000),
        ("--max-model-len 32K", "max_model_len", 32_768),
        ("--max-model-len auto", "auto_model_len", True),
        ("--max-model-len -1", "auto_model_len", True),
        ("--max-num-batched-tokens 8K", "batched_tokens", 8192),
        ("--language-model-only", "text_only", True),
        ('--limit-mm-per-prompt \'{"image": 0, "video": 0}\'', "text_only", True),
        ("--limit-mm-per-prompt.image 0 --limit-mm-per-prompt.video 0", "text_only", True),
        ("--limit-mm-per-prompt image=0,video=0", "text_only", True),
        ('--limit-mm-per-prompt \'{"image": 0, "video": 1}\'', "text_only", False),
        ('--limit-mm-per-prompt \'{"image": {"count": 0}, "video": {"count": 0}}\'', "text_only", True),
        ("--no-enable-prefix-caching", "prefix_caching", False),
        ("--enable-prefix-caching", "prefix_caching", True),
        ("--kv-cache-memory-bytes 2g", "kv_cache_bytes", 2_000_000_000),
        ("--kv-cache-memory 2G", "kv_cache_bytes", 2 << 30),
        ("--mamba-ssm-cache-dtype float16", "state_dtype", "float16"),
        ("--dtype half", "dtype", "float16"),
        ("--num-gpu-blocks-override 500", "blocks_override", 500),
        ('--speculative-config \'{"method":"mtp","num_speculative_tokens":2}\'', "drafter", Drafter("mtp", 2)),
        ("-sc.method mtp -sc.num_speculative_tokens 2", "drafter", Drafter("mtp", 2)),
        ("--spec-method ngram --spec-tokens 5", "drafter", Drafter("ngram", 5)),
    ],
)
def test_spellings(line: str, attribute: str, value: object) -> None:
    assert getattr(settings(line), attribute) == value


def test_the_graphs_estimate_follows_its_variable() -> None:
    assert settings("").estimate_graphs
    assert not settings("", VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS="0").estimate_graphs


def test_extra_arguments_come_last_as_on_the_command_line() -> None:
    config = ServerConfig(flags={"max-num-seqs": "64"}, extra_args=("--max-num-seqs", "32", "-tp", "2"))
    assert settings_of_config(config).max_num_seqs == 32
    assert settings_of_config(config).tensor_parallel == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--gpu-memory-utilization much", "much is no number"),
        ("--speculative-config {broken", "no JSON"),
        ("--limit-mm-per-prompt {image}", "no JSON"),
    ],
)
def test_what_cannot_be_read_is_named(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        settings(line)


def test_defaults_by_version_and_card() -> None:
    assert default_utilization("0.20.2") == 0.90
    assert default_utilization("0.24.0") == 0.92
    assert default_capture(256, 8192) == 512
    assert default_capture(16, 2048) == 32
    assert default_capture(16, 2048, rows_per_sequence=4) == 128


@given(st.integers(1, 1 << 40))
def test_a_plain_number_of_bytes_is_itself(size: int) -> None:
    assert parse_bytes(str(size)) == size


@given(st.dictionaries(st.sampled_from(["image", "video"]), st.integers(0, 3)))
def test_json_and_dotted_keys_say_the_same(limits: dict[str, int]) -> None:
    as_json = parse_flags(["--limit-mm-per-prompt", json.dumps(limits)] if limits else [])
    dotted = parse_flags(
        [part for key, value in limits.items() for part in (f"--limit-mm-per-prompt.{key}", str(value))]
    )
    assert settings_of_flags(as_json) == settings_of_flags(dotted)

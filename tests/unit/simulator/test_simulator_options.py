"""vLLM's command line: what is taken, what is ignored, what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.engine.config import ServerConfig
from qwenbench.errors import UsageError
from qwenbench.simulator.options import parse

SEED = """serve ig1/Qwen3.5-9B-NVFP4 --served-model-name Qwen3.5-9B --max-num-seqs 64 --max-cudagraph-capture-size 64
--gpu-memory-utilization 0.95 --max-num-batched-tokens 2048 --max-model-len auto --reasoning-parser qwen3
--enable-auto-tool-choice --tool-call-parser qwen3_coder --limit-mm-per-prompt.video 0 --kv-cache-dtype fp8_e4m3
--calculate-kv-scales --host 0.0.0.0 --port 8001 --no-enable-prefix-caching --api-key k1 k2"""


def test_the_seeds_line_is_understood() -> None:
    options = parse(SEED.split())
    assert options.model == "ig1/Qwen3.5-9B-NVFP4" and options.served_model_names == ("Qwen3.5-9B",)
    assert (options.max_num_seqs, options.max_cudagraph_capture_size, options.max_model_len) == (64, 64, -1)
    assert options.reasoning_parser == "qwen3" and options.kv_cache_dtype == "fp8_e4m3"
    assert options.host == "0.0.0.0" and options.port == 8001 and not options.enable_prefix_caching
    assert options.api_keys == ("k1", "k2") and "k1" not in repr(options)
    assert options.ignored["limit-mm-per-prompt"] == ".video 0" and options.ignored["calculate-kv-scales"] is None


def test_what_the_launcher_prints_is_what_is_understood() -> None:
    config = ServerConfig(flags={"max-num-seqs": "16", "enforce-eager": None, "max-model-len": "32k"})
    options = parse(["serve", config.model, *config.vllm_args()])
    assert options.max_num_seqs == 16 and options.enforce_eager and options.max_model_len == 32_000
    assert options.served_model_names == (config.served_model_name,)


@pytest.mark.parametrize(
    ("line", "sizes"),
    [
        ("M --max-cudagraph-capture-size 16", (1, 2, 4, 8, 16)),
        ("M --max-cudagraph-capture-size 3", (1, 2)),
        ("M --max-num-seqs 4", (1, 2, 4, 8)),
        ("M --cudagraph-capture-sizes 7 3", (3, 7)),
        ("M --enforce-eager", ()),
    ],
)
def test_capture_sizes(
    line: str, sizes: tuple[int, int, int, int] | tuple[int, int] | tuple[()] | tuple[int, int, int, int, int]
) -> None:
    assert parse(line.split()).capture_sizes == sizes


def test_recorded_numbers_of_graphs() -> None:
    for limit, number in ((16, 5), (32, 7), (64, 11)):
        assert len(parse(["M", f"--max-cudagraph-capture-size={limit}"]).capture_sizes) == number
    assert parse(["M", "--max-num-seqs", "1024"]).capture_sizes[-1] == 512


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("serve", "no model"),
        ("M --max-num-seqs", "expected one argument"),
        ("M --max-num-seqs x", "invalid int value: 'x'"),
        ("M --max-num-seqs 0", "greater than or equal to 1"),
        ("M --max-num-seqs -3", "greater than or equal to 1"),
        ("M --max-cudagraph-capture-size 0", "greater than or equal to 1"),
        ("M --gpu-memory-utilization 1.5", "less than or equal to 1"),
        ("M --gpu-memory-utilization 0", "greater than 0"),
        ("M --gpu-memory-utilization a", "invalid float value"),
        ("M --max-model-len 0", "positive"),
        ("M --max-model-len soon", "invalid human_readable_int_or_auto value"),
        ("M --max-num-seqs 64 --max-num-batched-tokens 32", "must be greater than or equal to max_num_seqs"),
        ("M --port 70000", "port: Input should be less than or equal to 65535"),
        ("M --max-num-sequences 3", "unrecognized arguments: --max-num-sequences"),
        ("M N", "unrecognized arguments: N"),
        ("M --sim-acceptance 1.5", "acceptance: Input should be less than or equal to 1"),
        ("M --speculative-config {", "invalid loads value"),
        ("M --speculative-config [1]", "valid dictionary"),
        ("M --spec-method mtp --spec-tokens many", "invalid int value"),
        ("M --sim-fail always", "invalid choice"),
        ("M --sim-startup slow", "invalid choice"),
        ("M --sim-time-scale 0", "time_scale: Input should be greater than 0"),
    ],
)
def test_what_vllm_refuses(line: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(line.split())


@pytest.mark.parametrize(
    "line",
    [
        'M --speculative-config {"method":"mtp","num_speculative_tokens":3}',
        "M --speculative-config.method mtp --speculative_config.num_speculative_tokens=3",
        "M --spec-method mtp --spec-tokens 3",
    ],
)
def test_a_drafter_is_understood_however_it_is_given(line: str) -> None:
    options = parse(line.split())
    assert (options.speculative_method, options.speculative_tokens) == ("mtp", 3) and not options.ignored


def test_what_the_environment_and_its_flags_say_about_speed() -> None:
    assert parse(["M"]).flashinfer_sampler and parse(["M"]).async_scheduling
    assert not parse(["M"], {"VLLM_USE_FLASHINFER_SAMPLER": "0"}).flashinfer_sampler
    old = ["M", "--sim-vllm-version", "0.20.2"]
    assert not parse(old).flashinfer_sampler, "0.20.2 leaves it off unless asked"
    assert parse(old, {"VLLM_USE_FLASHINFER_SAMPLER": "1"}).flashinfer_sampler
    assert not parse(["M", "--no-async-scheduling"]).async_scheduling


def test_a_key_may_come_from_the_environment() -> None:
    assert parse(["M"], {"VLLM_API_KEY": "k"}).api_keys == ("k",)


@given(st.lists(st.text(max_size=12), max_size=6))
def test_any_words_end_in_options_or_one_error(words: Any) -> None:
    try:
        parse(words)
    except UsageError as error:
        assert str(error)

"""Configurations that cannot start, against eight starts of the real CPU engine (vLLM 0.32.0)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenbench.capacity.configuration import cannot_start as settings_cannot_start
from qwenbench.capacity.configuration import plan_config
from qwenbench.capacity.kv import kv_cache_tokens, kv_layout, printed_tokens
from qwenbench.capacity.model_shape import SEED_SHAPE, ModelShape
from qwenbench.capacity.predict import Prediction
from qwenbench.capacity.settings import parse_bytes, settings_of_config
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import parse_startup_log

DATA = Path(__file__).parents[2] / "data" / "memory"
CASES = json.loads((DATA / "cpu-doomed" / "cases.json").read_text())


def cannot_start(config: ServerConfig, **facts: Any) -> str | None:
    return settings_cannot_start(settings_of_config(config), **facts)


def shape(model: str) -> ModelShape:
    return ModelShape.from_hf_config(json.loads((DATA / f"{model}.config.json").read_text()), model)


def config(arguments: list[str]) -> ServerConfig:
    flags = dict(zip((name.removeprefix("--") for name in arguments[::2]), arguments[1::2], strict=True))
    return ServerConfig(flags={"enforce-eager": None, **flags})


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_verdicts_agree_with_the_real_engine(case: dict[str, Any]) -> None:
    plan = plan_config(config(case["args"]), shape(case["model"]), version="0.32.0", on_gpu=False)
    assert (plan.cannot_start is None) == (case["outcome"] == "ready")


def test_the_arithmetic_is_in_the_sentence() -> None:
    case = next(case for case in CASES if case["name"] == "q35-13")
    reason = plan_config(config(case["args"]), shape("tiny-qwen35"), version="0.32.0", on_gpu=False).cannot_start
    assert "4,096 tokens needs 13 blocks of 640 tokens, 6 of them states and vLLM's null block" in reason
    assert "the cache holds 13 (--num-gpu-blocks-override 13)" in reason


@pytest.mark.parametrize(
    ("name", "longest"), [("q3-8", 896), ("q35-13", 3840), ("q3-bytes", 16_256), ("q35-auto-8", 640)]
)
def test_longest_request_agrees_with_the_engines_own_estimate(name: str, longest: int) -> None:
    case = next(case for case in CASES if case["name"] == name)
    asked = config(case["args"])
    layout = plan_config(asked, shape(case["model"]), version="0.32.0", on_gpu=False).layout
    blocks = asked.int_flag("num-gpu-blocks-override") or (32 << 20) // layout.bytes_per_block
    assert kv_cache_tokens(blocks, layout, 32_768) == longest
    assert str(longest) in (case["error"] or " ".join(case["lines"]))


@pytest.mark.parametrize("case", [case for case in CASES if case["num_gpu_blocks"]], ids=lambda case: case["name"])
def test_what_the_started_ones_printed(case: dict[str, Any]) -> None:
    log = parse_startup_log("\n".join(case["lines"]) + "\n")
    layout = plan_config(config(case["args"]), shape(case["model"]), version="0.32.0", on_gpu=False).layout
    length = log.max_concurrency_tokens
    assert length is not None
    assert printed_tokens("0.32.0", case["num_gpu_blocks"], layout, length) == log.kv_cache_tokens_logged


def test_the_block_size_comes_from_the_probe_where_there_is_one() -> None:
    """0.28 keeps the states in bfloat16 (384 tokens a block); a log of 640 tokens says that this server did not."""
    asked = config(["--num-gpu-blocks-override", "13", "--max-model-len", "4096"])
    tiny = shape("tiny-qwen35")
    assert plan_config(asked, tiny, version="0.28.0", on_gpu=False).layout.block_tokens == 384
    seen = StartupLog(attention_block_tokens=640, kv_cache_dtype="auto")
    assert plan_config(asked, tiny, version="0.28.0", on_gpu=False, probe=seen).layout.block_tokens == 640


def test_older_versions_are_not_held_to_newer_rules() -> None:
    """The null block's place in the check and the Mamba check were read in 0.32: up to 0.20 a start is tried."""
    layout = kv_layout(shape("tiny-qwen35"), state_dtype="float32", mamba_cache_mode="align", base_block_tokens=128)
    few = ServerConfig(flags={"num-gpu-blocks-override": "13", "max-model-len": "4096", "max-num-seqs": "64"})
    assert cannot_start(few, layout=layout, version="0.20.2") is None
    assert "null block" in (cannot_start(few, layout=layout, version="0.32.0") or "")
    roomy = ServerConfig(flags={"num-gpu-blocks-override": "40", "max-model-len": "4096", "max-num-seqs": "64"})
    assert "--max-num-seqs 64 exceeds the 40 blocks" in (cannot_start(roomy, layout=layout, version="0.33.0") or "")
    assert cannot_start(roomy, layout=layout, version="0.18.0") is None
    assert cannot_start(roomy, layout=layout, version="0.33.0", on_gpu=False) is None


def test_a_prediction_dooms_only_at_its_optimistic_end() -> None:
    def predicted(low: float, high: float) -> Prediction:
        return Prediction(10.57, 0.1, (low + high) / 2, low, high, 1, 1, 1, None, "startup", "why")

    layout = kv_layout(SEED_SHAPE)
    whole = ServerConfig(flags={"max-model-len": "262144"})  # 500 blocks = 8.06 GiB
    assert cannot_start(whole, layout=layout, prediction=predicted(5.0, 9.0), version="0.20.2") is None
    reason = cannot_start(whole, layout=layout, prediction=predicted(5.0, 7.0), version="0.20.2")
    assert "500 blocks" in reason and "434" in reason
    automatic = ServerConfig(flags={"max-model-len": "auto"})
    assert cannot_start(automatic, layout=layout, prediction=predicted(5.0, 7.0), version="0.20.2") is None


@pytest.mark.parametrize(
    ("text", "size"), [("67108864", 1 << 26), ("64M", 1 << 26), ("1.5g", 1_500_000_000), ("2K", 2048), ("lots", None)]
)
def test_sizes_as_vllm_takes_them(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size


def test_a_utilisation_that_is_no_share() -> None:
    assert "within (0, 1]" in (cannot_start(ServerConfig(flags={"gpu-memory-utilization": "1.5"})) or "")

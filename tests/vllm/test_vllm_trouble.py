"""A real vLLM with very few KV blocks, a prompt that is too long for it, and a configuration that cannot start."""

from __future__ import annotations

import json

import pyarrow.compute as pc
import pytest
from real_vllm import Sweep, Vllm, sweep

CONTEXT = 1024
FEW_BLOCKS = 16

CROWD = """
name: crowd
input_tokens: 250-300
output_tokens: 250
"""
TOO_LONG = """
name: too-long
prompts: too-long.jsonl
output_tokens: 16
"""


@pytest.fixture(scope="module")
def trouble(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("trouble")
    (folder / "crowd.yaml").write_text(CROWD)
    (folder / "too-long.yaml").write_text(TOO_LONG)
    rows = [
        {"id": "short", "turns": [{"user": "Count to ten."}]},
        {"id": "long", "turns": [{"user": "Count all of these words: " + "word " * 2 * CONTEXT}]},
    ]
    (folder / "too-long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return sweep(
        vllm,
        folder / "results",
        "tiny-qwen3",
        *("--max-num-seqs", "6", "--vary", f"max-model-len={CONTEXT},9999999"),
        *(f"--vllm-arg=--num-gpu-blocks-override={FEW_BLOCKS}", "--vllm-arg=--kv-cache-memory-bytes=64M"),
        *("--scenario", f"{folder}/crowd.yaml,{folder}/too-long.yaml"),
        *("--concurrency", "12", "--requests", "12", "--port", "28020"),
    )


def test_few_blocks_show_preemptions(trouble: Sweep) -> None:
    crowd = trouble.run.points[trouble.run.points["scenario"] == "crowd"].iloc[0]
    assert crowd["requests_ok"] == 12
    assert crowd["kv_cache_blocks"] == FEW_BLOCKS
    assert crowd["preemptions"] > 0
    assert crowd["kv_cache_usage_peak"] > 0.9
    assert crowd["bound"] == "kv"


def test_a_prompt_that_is_too_long_is_an_error_row(trouble: Sweep) -> None:
    point = trouble.run.points[trouble.run.points["scenario"] == "too-long"].iloc[0]
    assert (point["requests_ok"], point["requests_failed"]) == (6, 6)
    files = list((trouble.run.path / "requests").glob("*too-long*.parquet"))
    assert len(files) == 1
    requests = trouble.run.requests(files[0].stem)
    assert requests is not None
    long = requests.filter(pc.equal(requests["prompt_id"], "long"))
    assert set(long["error"].to_pylist()) == {"http_status"}
    assert set(long["status"].to_pylist()) == {400}
    assert all(str(CONTEXT) in detail for detail in long["error_detail"].to_pylist())
    assert "word word" not in str(long["error_detail"].to_pylist())  # no prompt text in the records
    short = requests.filter(pc.equal(requests["prompt_id"], "short"))
    assert short["error"].null_count == short.num_rows


def test_a_configuration_that_cannot_start_is_recorded_and_the_sweep_goes_on(trouble: Sweep) -> None:
    assert trouble.status == 1
    (failure,) = trouble.run.failures.values()
    assert failure["phase"] in ("plan", "start")  # the model's own config.json may show beforehand that it cannot start
    assert "9999999" in failure["evidence"].replace(",", "")  # our own sentence groups the digits, vLLM's does not
    assert failure["evidence"] in trouble.output.replace("\n", " ")
    assert len(trouble.run.points) == 2


def test_nothing_is_left_running(trouble: Sweep, vllm: Vllm) -> None:
    assert trouble.run.launches
    assert vllm.processes() == []

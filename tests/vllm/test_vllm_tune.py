"""`qwenbench tune` over a real vLLM: in a space of eight it finds what the grid finds, in fewer launches.

The grid is the search's own run gone on with: what the search launched is measured already, the rest is launched once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from real_vllm import Sweep, Vllm, sweep

SPACE = (
    *("--max-num-seqs", "1,2,4,8", "--vary", "max-num-batched-tokens=256,1024"),
    *("--vllm-arg=--kv-cache-memory-bytes=64M", "--no-prefill-cost", "--no-natural-stop-check"),
    *("--scenario", "synthetic", "--input-tokens", "16", "--output-tokens", "16"),
    # a CPU that sorts 150,000 logits a token for top-p spends its time there, and no batch helps
    *("--profile", "none", "--extra-body", '{"temperature": 0}'),
)
USERS = 8
"""Prompts are short, so decoding decides: who lets fewer than the users run, as six of the eight do, is far behind."""
LAUNCHES = 5
NEAR = 0.3
"""Share by which the found one may lie below the grid's best: launches of one configuration differ by as much on a busy
machine. Of the eight 63, 73, 101, 118, 193, 327, 401 and 510 tok/s were seen: two are that near."""


@pytest.fixture(scope="module")
def runs(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Sweep]:
    out: Path = tmp_path_factory.mktemp("results")
    goal = ("--users", str(USERS), "--slo", "ttft_p50=60s", "--max-launches", str(LAUNCHES), "--port", "28070")
    tune = sweep(vllm, out, "tiny-qwen3", *SPACE, *goal, "--no-report", command="tune", run_id="tune")
    grid = sweep(vllm, out, "tiny-qwen3", "--resume", str(out / "tune"), "--no-report", run_id="tune")
    return tune, grid


def test_the_search_finds_what_the_grid_finds_in_fewer_launches(runs: tuple[Sweep, Sweep]) -> None:
    tune, grid = runs
    assert tune.status == 0, tune.output
    assert grid.status == 0, grid.output
    outcome = tune.run.meta["search"]["outcome"]
    measured = grid.run.points.groupby("config_id")["output_tokens_per_s"].mean()
    assert len(measured) == 8
    found = outcome["config_id"]
    print(measured, found, outcome["value"], [(one["config_id"], one["value"]) for one in outcome["path"]], sep="\n")
    assert len(outcome["path"]) <= LAUNCHES
    assert measured[found] >= (1 - NEAR) * measured.max()
    assert outcome["verdict"] == "shown"
    assert f"{found}: " in tune.output and "of the best that was tried, at 95 %" in tune.output
    assert not tune.run.simulated

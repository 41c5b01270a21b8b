"""`qwenbench tune` over a real vLLM: in a space of eight it finds what the grid finds, in fewer launches."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_vllm import Sweep, Vllm, sweep

SPACE = (
    *("--max-num-seqs", "1,2,4,8", "--vary", "max-num-batched-tokens=256,1024"),
    *("--vllm-arg=--kv-cache-memory-bytes=64M", "--scenario", "math", "--output-tokens", "16-32"),
)
USERS = 4
NEAR = 0.15
"""Share by which the found one may lie below the grid's best: two launches of one configuration differ by as much."""


@pytest.fixture(scope="module")
def runs(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, Sweep]:
    out: Path = tmp_path_factory.mktemp("results")
    grid = sweep(
        vllm, out, "tiny-qwen3", *SPACE, "--concurrency", str(USERS), "--port", "28060", "--no-report", run_id="grid"
    )
    goal = ("--users", str(USERS), "--slo", "ttft_p50=60s", "--max-launches", "5", "--port", "28070")
    return grid, sweep(vllm, out, "tiny-qwen3", *SPACE, *goal, command="tune", run_id="tune")


def test_the_search_finds_what_the_grid_finds_in_fewer_launches(runs: tuple[Sweep, Sweep]) -> None:
    grid, tune = runs
    assert grid.status == 0, grid.output
    assert tune.status == 0, tune.output
    outcome = tune.run.meta["search"]["outcome"]
    measured = grid.run.points.set_index("config_id")["output_tokens_per_s"]
    assert len(measured) == 8
    found = outcome["config_id"]
    print(measured, found, outcome["value"], [(one["config_id"], one["value"]) for one in outcome["path"]], sep="\n")
    assert len(outcome["path"]) <= 5
    assert measured[found] >= (1 - NEAR) * measured.max()
    assert outcome["verdict"] == "shown"
    assert f"{found}: " in tune.output and "of the best that was tried, at 95 %" in tune.output
    assert not tune.run.simulated

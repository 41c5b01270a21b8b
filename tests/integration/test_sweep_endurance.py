"""--prefill-cost, --ladder and --soak on a whole sweep."""

from __future__ import annotations

from pathlib import Path

from sweep_runs import points, record, sweep


def test_what_is_asked_besides_the_load_points(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = sweep(
        run, "--capture", "16", "--concurrency", "2", "--prefill-cost", "--ladder", "--soak", "0.03",
        "--vllm-arg=--max-model-len=8192",
    )  # fmt: skip
    assert ended.status in (0, 1), ended.err
    assert len(points(run)) == 1, "none of it is a load point"
    folder = run / "servers" / "cap16-seq16"
    cost = record(folder / "prefill.json")
    assert len(cost["lengths"]) >= 4
    assert cost["sentence"] in ended.err
    rungs = record(folder / "ladder.json")["rungs"]
    assert [(rung["prompt_tokens"], rung["together"]) for rung in rungs] == [
        (1024, 1), (4096, 1), (7365, 1), (1024, 2), (4096, 2), (7365, 2),
    ]  # fmt: skip
    assert all(rung["ok"] for rung in rungs), rungs
    assert all(0.5 < rung["counted_tokens"] / rung["prompt_tokens"] < 1.1 for rung in rungs)
    assert "ladder: prompts up to 7,365 tokens (two at a time) were answered" in ended.err
    soak = record(folder / "soak.json")
    assert soak["requests"] > 0
    assert [growth["mib_per_hour"] for growth in soak["growth"]] == [None] * len(soak["growth"])
    assert "too short a time to tell" in ended.err


def test_a_simulated_server_is_not_asked_what_its_own_formula_says(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = sweep(run, "--capture", "16", "--concurrency", "2")
    assert ended.status in (0, 1), ended.err
    assert not (run / "servers" / "cap16-seq16" / "prefill.json").exists()

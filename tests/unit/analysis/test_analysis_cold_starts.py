"""A cold start that held less than the restart is named, and the restart's capacity is what is told."""

from __future__ import annotations

import json
from pathlib import Path

from analysis_runs import plant, row

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.recommend import recommend
from qwenbench.analysis.run import load_run
from qwenbench.analysis.spread import start_differences


def test_a_cold_start_that_held_less_is_named_and_the_restart_counts(tmp_path: Path) -> None:
    rows = [row("cap64", 8, repeat, output_tokens_per_s=100.0, kv_cache_gib=kv, kv_cache_tokens=tokens)
            for repeat, kv, tokens in ((1, 14.1, 200_000), (2, 16.98, 262_144))]  # fmt: skip
    run = plant(tmp_path / "run", rows)
    server = run.path / "servers" / "cap64"
    (server / "relaunch-2").mkdir()
    for folder, kind, kv, peak in ((server, "cold", 14.1, 4.0), (server / "relaunch-2", "warm", 16.98, 1.1)):
        ledger = {"compile_cache": kind, "kv_cache_gib": kv, "activations_gib": peak}
        (folder / "memory.json").write_text(json.dumps(ledger))
    run = load_run(run.path)
    (found,) = start_differences(run)
    assert (found.cold_launch, found.warm_launch, found.cold_kv_gib, found.warm_kv_gib) == (1, 2, 14.1, 16.98)
    answer = recommend(run, Question(users=8))
    assert answer.expected["kv_cache_gib"].value == 16.98
    assert any("launch 1 compiled and held 14.10 GiB" in note for note in answer.notes)
    (server / "relaunch-2" / "memory.json").write_text(json.dumps({"compile_cache": "warm", "kv_cache_gib": 14.1}))
    assert start_differences(load_run(run.path)) == []

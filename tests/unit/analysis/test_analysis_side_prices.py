"""Prices of profiles, break-even of drafters, cold starts that held less: from planted runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import launch_of, plant, row

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.recommend import recommend
from qwenbench.analysis.side_prices import drafter_prices, pays_up_to, profile_prices, start_differences


def test_a_profile_is_held_against_none_in_the_same_launch(tmp_path: Path) -> None:
    """Recorded with FlashInfer's sampler off: ITL p50 6.0 ms without sampling fields, 9.0 with thinking-coding."""
    rows = [
        row("cap64", 16, profile="none", itl_ms_p50=6.0, output_tokens_per_s=1217.0),
        row("cap64", 16, profile="thinking-coding", itl_ms_p50=9.0, output_tokens_per_s=996.0),
        row("cap64", 64, profile="thinking-coding", itl_ms_p50=14.0),
    ]
    prices = {price.metric: price for price in profile_prices(plant(tmp_path / "run", rows))}
    assert set(prices) == {"itl_p50", "output_tokens_per_s"}  # TTFT is not known; 64 streams have no counterpart
    itl = prices["itl_p50"]
    assert (itl.profile, itl.load, itl.none, itl.value) == ("thinking-coding", "16 streams", 6.0, 9.0)
    assert itl.change == pytest.approx(0.5)
    assert itl.low is not None and itl.high is not None and 0 < itl.low < 0.5 < itl.high  # beyond 10 % between points
    tokens = prices["output_tokens_per_s"]
    assert tokens.low is not None and tokens.high is not None and tokens.low < tokens.change < tokens.high
    assert profile_prices(plant(tmp_path / "other", rows[1:])) == []


def test_repeats_give_a_profile_its_own_interval(tmp_path: Path) -> None:
    rows = [row("cap64", 16, repeat, profile=profile, itl_ms_p50=value + repeat / 100, launch=1)
            for profile, value in (("none", 6.0), ("thinking-coding", 9.0)) for repeat in (1, 2, 3)]  # fmt: skip
    (price,) = profile_prices(plant(tmp_path / "run", rows))
    assert price.low is not None and price.high is not None
    assert price.high - price.low < 0.03


def plant_drafter(folder: Path, rows: list[dict[str, Any]]) -> Any:
    plant(folder, rows)
    for config, drafter in (("off", None), ("mtp3", '{"method": "mtp", "num_speculative_tokens": 3}')):
        launch = launch_of("cap64")
        if drafter:
            launch["server"]["flags"]["speculative-config"] = drafter
        (folder / "servers" / config / "launch.json").write_text(json.dumps(launch))
    from qwenbench.analysis.run import load_run

    return load_run(folder)


def test_a_drafter_pays_where_it_gives_more_than_its_step_costs(tmp_path: Path) -> None:
    """Recorded on an H200: a step takes 9.8 / 19.8 / 67.6 ms with MTP of 3 for 4.4 / 8.0 / 11.8 without."""
    steps = {1: (4.4, 9.8), 16: (8.0, 19.8), 64: (11.8, 67.6)}
    rows = [row("off", n, itl_ms_p50=off) for n, (off, _) in steps.items()]
    rows += [row("mtp3", n, itl_ms_p50=on) for n, (_, on) in steps.items()]
    prices = drafter_prices(plant_drafter(tmp_path / "run", rows))
    assert [(price.concurrency, round(price.needed, 1), price.pays) for price in prices] == [
        (1, 2.2, None), (16, 2.5, None), (64, 5.7, None),
    ]  # fmt: skip
    assert pays_up_to(prices) is None


@pytest.mark.parametrize(("lengths", "up_to"), [((2.6, 2.6, 2.6), 16), ((1.0, 1.0, 1.0), 0), ((3.0, 2.0, 6.0), 1)])
def test_a_drafter_pays_up_to_so_many_streams(tmp_path: Path, lengths: tuple[float, ...], up_to: int) -> None:
    steps = {1: (4.4, 9.8), 16: (8.0, 19.8), 64: (11.8, 67.6)}
    rows = [row("off", n, itl_ms_p50=off) for n, (off, _) in steps.items()]
    rows += [row("mtp3", n, itl_ms_p50=on, acceptance_length=length)
             for (n, (_, on)), length in zip(steps.items(), lengths, strict=True)]  # fmt: skip
    assert pays_up_to(drafter_prices(plant_drafter(tmp_path / "run", rows))) == up_to


def test_other_settings_that_differ_are_no_drafters_price(tmp_path: Path) -> None:
    rows = [row("cap16", 8, itl_ms_p50=5.0), row("cap64", 8, itl_ms_p50=5.0)]
    assert drafter_prices(plant(tmp_path / "run", rows)) == []


def test_a_cold_start_that_held_less_is_named_and_the_restart_counts(tmp_path: Path) -> None:
    rows = [row("cap64", 8, repeat, output_tokens_per_s=100.0, kv_cache_gib=kv, kv_cache_tokens=tokens)
            for repeat, kv, tokens in ((1, 14.1, 200_000), (2, 16.98, 262_144))]  # fmt: skip
    run = plant(tmp_path / "run", rows)
    server = run.path / "servers" / "cap64"
    (server / "relaunch-2").mkdir()
    for folder, kind, kv, peak in ((server, "cold", 14.1, 4.0), (server / "relaunch-2", "warm", 16.98, 1.1)):
        ledger = {"compile_cache": kind, "kv_cache_gib": kv, "activations_gib": peak}
        (folder / "memory.json").write_text(json.dumps(ledger))
    from qwenbench.analysis.run import load_run

    run = load_run(run.path)
    (found,) = start_differences(run)
    assert (found.cold_launch, found.warm_launch, found.cold_kv_gib, found.warm_kv_gib) == (1, 2, 14.1, 16.98)
    answer = recommend(run, Question(users=8))
    assert answer.expected["kv_cache_gib"].value == 16.98
    assert any("launch 1 compiled and held 14.10 GiB" in note for note in answer.notes)
    (server / "relaunch-2" / "memory.json").write_text(json.dumps({"compile_cache": "warm", "kv_cache_gib": 14.1}))
    assert start_differences(load_run(run.path)) == []

"""A campaign over engine versions, and runs of several machines side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from analysis_runs import plant, repeats

from qwenbench.analysis.compare import compare, parse_gate
from qwenbench.analysis.machines import cards_words, machine_of
from qwenbench.analysis.releases import Release, over_releases
from qwenbench.analysis.run import load_runs
from qwenbench.errors import UsageError
from qwenbench.report.comparison import comparison_blocks
from qwenbench.report.page import build_releases_page
from qwenbench.report.releases import releases_blocks, verdict
from qwenbench.report.text_writers import to_markdown

STEADY = [100.0, 101.0, 99.0]
GATE = parse_gate("output_tokens_per_s:-5%")


def release(folder: Path, name: str, rates: list[float], **more: Any) -> Release:
    rows = repeats("cap16", 8, output_tokens_per_s=rates) + repeats("cap16", 32, output_tokens_per_s=STEADY)
    return Release(name, plant(folder / name, [row | more for row in rows], versions={"vllm": name}))


def test_the_first_release_at_which_a_figure_changed_is_named(tmp_path: Path) -> None:
    slower = [80.0, 81.0, 79.0]
    found = over_releases(
        [release(tmp_path, name, rates) for name, rates in
         (("0.30", STEADY), ("0.31", [100.5, 99.5, 100.0]), ("0.32", slower), ("0.33", slower))], GATE
    )  # fmt: skip
    assert found.first_changed is not None and found.first_changed.name == "0.32"
    (changed,) = found.changed
    assert changed.change.concurrency == 8 and changed.first == 2
    assert changed.verdicts == ("", "no difference shown", "worse", "worse")
    assert changed.change.change == pytest.approx(-0.2) and changed.change.high is not None
    assert [estimate.value for estimate in changed.values] == [100.0, 100.0, 80.0, 80.0]
    assert verdict(found).startswith("First change at 0.32 (against 0.30): output tokens/s worse by 20.0%")
    assert found.comparison is not None and found.comparison.gate is not None
    assert found.comparison.gate.outcome == "broken"
    told = to_markdown(releases_blocks(found))
    assert "| 0.32 (worse) |" in told and "First changed" in told
    page = build_releases_page(found)
    assert "0.30 → 0.31 → 0.32 → 0.33" in page and "<svg" in page
    assert found.to_json()["first_changed"] == "0.32"


def test_equal_releases_say_no_change_and_pass_the_gate(tmp_path: Path) -> None:
    found = over_releases([release(tmp_path, name, STEADY) for name in ("a", "b")], GATE)
    assert found.first_changed is None and found.changed == ()
    assert verdict(found).startswith("No change shown from a to b")
    assert found.comparison is not None and found.comparison.gate is not None and found.comparison.gate.passed


def test_one_repeat_is_undecided_and_not_unchanged(tmp_path: Path) -> None:
    releases = [
        Release(name, plant(tmp_path / name, repeats("cap16", 8, output_tokens_per_s=[rate])))
        for name, rate in (("a", 100.0), ("b", 50.0))
    ]
    assert verdict(over_releases(releases)).startswith("Undecided")


def test_a_release_that_fails_is_told_and_the_others_are_compared(tmp_path: Path) -> None:
    failure = {"cap16": {"class": "oom", "evidence": "CUDA out of memory"}}
    broken = Release("0.31", plant(tmp_path / "0.31", [], failures=failure))
    found = over_releases(
        [release(tmp_path, "0.30", STEADY), broken, release(tmp_path, "0.32", STEADY)],
        refused={"0.33": "no such image"},
    )
    assert [one.name for one in found.compared] == ["0.30", "0.32"]
    assert set(found.failed) == {"0.31", "0.33"}
    told = to_markdown(releases_blocks(found))
    assert "CUDA out of memory" in told and "no such image" in told
    alone = over_releases([broken])
    assert verdict(alone).startswith("Nothing to compare")


def test_a_change_of_what_a_configuration_holds_is_told(tmp_path: Path) -> None:
    found = over_releases(
        [release(tmp_path, "a", STEADY, kv_cache_blocks=1072), release(tmp_path, "b", STEADY, kv_cache_blocks=1000)]
    )
    assert "b: cap16 holds 1,000 KV blocks, before 1,072" in to_markdown(releases_blocks(found))


HARDWARE = {
    "cpu": "AMD Ryzen 9 7950X 16-Core Processor", "cpus": 32, "platform": "linux",
    "gpus": [{"name": "NVIDIA GeForce RTX 5090"}], "card": "rtx-5090",
}  # fmt: skip


def test_a_machine_is_its_cards_its_processor_and_its_cores() -> None:
    assert machine_of(HARDWARE, "docker") == "RTX 5090, AMD Ryzen 9 7950X x 32"
    assert machine_of(HARDWARE | {"cpus": 8}, "docker") != machine_of(HARDWARE, "docker")
    assert machine_of(HARDWARE | {"platform": "wsl"}, "docker") == "RTX 5090, AMD Ryzen 9 7950X x 32, wsl"
    assert machine_of(HARDWARE, "sim") == "rtx-5090 (SIMULATED)", "the host does not show in simulated figures"
    assert machine_of(HARDWARE | {"gpus": []}, "url") is None, "the client's host is not the server's"
    assert machine_of({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cpus": 2}, "process") == "Intel Xeon x 2"
    assert cards_words(["NVIDIA H200", "NVIDIA H200", "NVIDIA L4"]) == "2 x H200 + L4"


def on(machine: str | None, node: str, launch: int, rate: float) -> list[dict[str, Any]]:
    rows = repeats("cap16", 8, output_tokens_per_s=[rate, rate + 1, rate - 1])
    return [row | {"machine": machine, "node": node, "launch": launch} for row in rows]


def test_like_machines_are_held_against_each_other_and_shown_side_by_side(tmp_path: Path) -> None:
    plant(tmp_path / "one", on("X", "a", 1, 100.0))
    plant(tmp_path / "both", on("X", "a", 1, 100.0) + on("Y", "b", 2, 200.0))
    comparison = compare(load_runs([tmp_path / "one", tmp_path / "both"]))
    (row,) = [row for row in comparison.rows if row.key == "output_tokens_per_s"]
    assert (row.config, row.before, row.after) == ("cap16@X", 100.0, 100.0)
    assert comparison.unmatched == ("only in both: cap16@Y, math (instruct-general), 8 streams",)
    told = to_markdown(comparison_blocks(comparison))
    assert "Measured on" in told and "| both | Y | b |" in told
    # two cards, a run each: their configurations have the same names
    plant(tmp_path / "other", on("Y", "b", 1, 200.0))
    cards = compare(load_runs([tmp_path / "one", tmp_path / "other"]))
    (row,) = [row for row in cards.rows if row.key == "output_tokens_per_s"]
    assert (row.before, row.after) == (100.0, 200.0)
    with pytest.raises(UsageError, match="no load point in common"):
        plant(tmp_path / "far", on("Z", "c", 1, 1.0) + on("W", "d", 2, 1.0))
        compare(load_runs([tmp_path / "one", tmp_path / "far"]))


def test_points_of_before_the_machine_was_kept_are_of_the_one_in_run_json(tmp_path: Path) -> None:
    machine = machine_of(HARDWARE, "docker")
    rows = on(None, "", 1, 100.0) + on(machine, "a", 2, 100.0)
    run = plant(tmp_path / "run", rows, hardware=HARDWARE, options={"launcher": "docker"})
    assert set(run.points["config_id"]) == {"cap16"}

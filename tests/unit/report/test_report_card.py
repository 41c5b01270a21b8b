"""The card: what is on the picture, that results.json says the same, and what stops it."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE

from qwenbench.analysis.run import Run, load_run
from qwenbench.cli.main import dispatch
from qwenbench.report.page_data import subject_of

Planted = Callable[..., Run]


def carded(run: Run, folder: Path, *options: str) -> tuple[str, dict[str, Any]]:
    assert dispatch(["card", str(run.path), "--out", str(folder), *options]) == 0
    return (folder / "card.svg").read_text(), json.loads((folder / "results.json").read_text())


def test_the_picture_has_configuration_version_card_and_five_figures(planted: Planted, tmp_path: Path) -> None:
    svg, results = carded(planted(repeats=3), tmp_path / "out", "--users", "64")
    words = " ".join(re.findall(r">([^<]+)</text>", svg))
    for part in ("Qwen3.5-9B-NVFP4 on a simulated RTX 5090", "vLLM 0.20.2", "--max-num-seqs 64", "at 64 streams"):
        assert part in words, part
    assert "SIMULATED" in words and results["simulated"] is True
    assert len(results["figures"]) == 5
    rate = results["figures"]["output_tokens_per_s"]
    assert f"{rate['value']:,.0f}" in words
    assert f"95 %: {rate['low']:,.0f} to {rate['high']:,.0f}" in words
    assert (
        results["figures"]["vram_peak_mib"]["unit"] == "MiB" and results["figures"]["vram_peak_mib"]["value"] > 30_000
    )
    assert results["measured"]["repeats"] == 3 and "3 repeats" in words


def test_png_is_1200_by_630(planted: Planted, tmp_path: Path) -> None:
    carded(planted(), tmp_path / "out")
    png = (tmp_path / "out" / "card.png").read_bytes()
    assert struct.unpack(">II", png[16:24]) == (1200, 630)


def test_a_measured_run_is_not_called_simulated_and_one_launch_holds_the_spread(
    planted: Planted, tmp_path: Path
) -> None:
    svg, results = carded(planted(simulated=False), tmp_path / "out")
    assert "SIMULATED" not in svg and "95 %" in svg
    assert results["figures"]["ttft_p50"]["low"] is not None


def test_one_simulated_repeat_has_no_interval(planted: Planted, tmp_path: Path) -> None:
    svg, results = carded(planted(), tmp_path / "out")
    assert "95 %" not in svg and "one repeat: no interval" in svg
    assert results["figures"]["ttft_p50"]["low"] is None


def test_a_load_between_two_measured_ones_is_called_interpolated(planted: Planted, tmp_path: Path) -> None:
    svg, results = carded(planted(), tmp_path / "out", "--users", "48")
    assert results["interpolated"] is True and "interpolated" in svg


def test_names_cannot_become_markup(planted: Planted, tmp_path: Path) -> None:
    svg, _ = carded(planted(scenarios=(HOSTILE,), run_id=HOSTILE), tmp_path / "out")
    assert "<script" not in svg and "<img" not in svg


def test_without_an_answer_there_is_no_card(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted()
    assert dispatch(["card", str(run.path), "--out", str(tmp_path / "o"), "--slo", "ttft_p99=1ms"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("hardware", "simulated", "where"),
    [
        ({"card": "rtx-5090", "gpus": []}, True, "a simulated RTX 5090"),
        ({"card": "rtx-5090", "gpus": [{"name": "NVIDIA H200"}]}, False, "an H200 kept to an RTX 5090's memory"),
        ({"gpus": [{"name": "NVIDIA GeForce RTX 5090"}]}, False, "an RTX 5090"),
        ({}, False, "an RTX 5090"),
    ],
)
def test_what_was_measured_is_named(planted: Planted, hardware: dict[str, Any], simulated: bool, where: str) -> None:
    run = planted(simulated=simulated, captures=(16,), scenarios=("math",))
    run = replace(run, meta={**load_run(run.path).meta, "hardware": hardware})
    assert subject_of(run).where == where

"""Exports: what is in the files, and what a missing browser says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from report_runs import HOSTILE

from qwenbench.analysis.run import Run, read_points
from qwenbench.cli.main import dispatch
from qwenbench.report import export, svg
from qwenbench.report.export import export_run
from qwenbench.report.summary import run_summary
from qwenbench.report.text_writers import escaped, fenced, to_markdown

Planted = Callable[..., Run]


def summary_of(run: Run) -> str:
    return to_markdown(run_summary(run))


def test_points_and_ledgers_survive_each_format(planted: Planted, tmp_path: Path) -> None:
    run = planted()
    out = tmp_path / "out"
    export_run(run, "csv", out), export_run(run, "parquet", out), export_run(run, "json", out)
    pd.testing.assert_frame_equal(read_points(out / "points.csv"), run.points)
    parquet = pd.read_parquet(out / "points.parquet")
    assert parquet["output_tokens_per_s"].tolist() == run.points["output_tokens_per_s"].tolist()
    points = json.loads((out / "points.json").read_text())["points"]
    assert len(points) == len(run.points) and points[0]["rate"] is None
    ledgers = json.loads((out / "ledgers.json").read_text())["ledgers"]
    assert ledgers["cap16-seq16"] == run.ledgers["cap16-seq16"]
    assert pd.read_csv(out / "ledgers.csv")["weights_gib"].tolist() == [8.2, 8.2, 8.2]


def test_every_export_of_a_simulated_run_says_so(planted: Planted, tmp_path: Path) -> None:
    run = planted()
    for format in ("csv", "json", "markdown"):
        for file in export_run(run, format, tmp_path / format)[0]:
            assert "simulated" in file.read_text().lower(), file


def test_a_run_without_ledgers_exports_an_empty_table(planted: Planted, tmp_path: Path) -> None:
    files, _ = export_run(planted(failed=(16, 32, 64)), "parquet", tmp_path / "out")
    assert [file.name for file in files] == ["points.parquet", "ledgers.parquet"]


def test_markdown_has_the_answer_the_tables_and_the_failures(planted: Planted) -> None:
    text = summary_of(planted(repeats=3, failed=(16,), invalid_concurrency=8))
    assert "**Deploy cap64-seq64**" in text and "docker run" in text
    assert "- cap16-seq16: oom" in text
    assert "invalid" in text and re.search(r"\([\d,]+ to [\d,]+\)", text)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {8, 14}  # configurations; four loads of three figures


def test_hostile_names_cannot_become_markup_in_markdown(planted: Planted) -> None:
    text = summary_of(planted(scenarios=(HOSTILE,), failed=(16,), failure_text=HOSTILE + " | [a](b) **x**"))
    assert "<script" not in text and "<img" not in text
    assert "\\| \\[a\\](b) \\*\\*x\\*\\*" in text


def test_escaping_keeps_one_line_and_fences_grow() -> None:
    assert escaped("a\n# b") == "a \\# b"
    assert fenced("```\nx").startswith("````\n")


@pytest.mark.parametrize(("format", "begins"), [("png", b"\x89PNG\r\n"), ("svg", b"<svg")])
def test_without_a_browser_the_trade_off_is_drawn_and_what_is_missing_is_told(
    planted: Planted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    format: str,
    begins: bytes,
) -> None:
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    assert dispatch(["export", str(planted().path), "--format", format, "--out", str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "chromium" in error
    assert [file.name for file in (tmp_path / "out").iterdir()] == [f"tradeoff.{format}"]
    assert (tmp_path / "out" / f"tradeoff.{format}").read_bytes().startswith(begins)


def test_png_without_a_font_is_refused_with_what_to_do(
    planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(svg, "_FONT_FOLDERS", ())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dispatch(["export", str(planted().path), "--format", "png", "--out", str(tmp_path / "out")]) == 2
    assert "fonts-dejavu-core" in capsys.readouterr().err


def test_bad_format_and_unwritable_folder_are_one_line(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted()
    assert dispatch(["export", str(run.path), "--format", "pdf", "--out", str(tmp_path)]) == 2
    assert "choose one of" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert dispatch(["export", str(run.path), "--format", "csv", "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_export_prints_its_files_as_json(planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["export", str(planted().path), "--format", "csv", "--out", str(tmp_path / "o"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [
        str(tmp_path / "o" / f"{n}.csv") for n in ("points", "ledgers")
    ]

"""The HTML report as text: what is in it, what must not be, and its size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_runs import HOSTILE

from qwenbench.analysis.run import Run
from qwenbench.cli.main import dispatch
from qwenbench.report.page import build_report

Planted = Callable[..., Run]


def embedded(page: str, name: str) -> Any:
    """The JSON that the page's script reads."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found.group(1))


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.S)


def test_the_page_needs_no_network(planted: Planted) -> None:
    page = build_report(planted())
    outside = without_scripts(page)
    assert not re.search(r"<(link|img|iframe|object|embed|base|script)\b", outside)
    assert set(re.findall(r'(?:href|src|action)="([^"]*)"', outside)) <= {"#answer"}
    assert "url(" not in outside and "@import" not in outside
    assert "default-src 'none'" in page


def test_only_the_two_hashed_scripts_may_run(planted: Planted) -> None:
    page = build_report(planted())
    bodies = re.findall(r"<script>(.*?)</script>", page, re.S)
    allowed = re.findall(r"'sha256-([^']+)'", page.split("</head>")[0])
    assert [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies] == allowed
    assert len(bodies) == 2


def test_hostile_names_and_logs_stay_text(planted: Planted) -> None:
    page = build_report(planted(scenarios=(HOSTILE,), failed=(16,), failure_text=HOSTILE, sampled_cells=0))
    assert "<script>window.hacked" not in page
    assert "<img" not in without_scripts(page)
    assert embedded(page, "data")["workloads"] == [HOSTILE]


def test_a_simulated_run_says_so_and_a_measured_one_does_not(planted: Planted) -> None:
    simulated, measured = build_report(planted()), build_report(planted(simulated=False))
    assert 'class="simulated"' in simulated and "SIMULATED" in without_scripts(simulated)
    assert 'class="measured"' in measured and "SIMULATED" not in without_scripts(measured)
    assert embedded(measured, "data")["subject"]["simulated"] is False


def test_failures_show_evidence_and_advice(planted: Planted) -> None:
    page = build_report(planted(failed=(16, 32, 64)))
    assert page.count("oom_graph_capture") == 3
    assert "Tried to allocate 1.96 GiB" in page and "Lower --gpu-memory-utilization" in page
    assert embedded(page, "data")["points"] == []


def test_two_hundred_points_stay_under_eight_megabytes(planted: Planted) -> None:
    page = build_report(planted(captures=(8, 16, 32, 64, 128), concurrencies=(1, 2, 4, 8, 16, 24, 32, 48, 64, 128)))
    assert len(embedded(page, "data")["points"]) == 200
    assert len(page.encode()) < 8_000_000


def test_the_command_writes_beside_the_run_or_where_it_is_told(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planted()
    assert dispatch(["report", str(run.path)]) == 0
    assert (run.path / "report.html").exists()
    assert dispatch(["report", str(run.path), "--out", str(tmp_path / "r.html"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["path"] == str(tmp_path / "r.html")
    assert dispatch(["report", str(tmp_path)]) == 2
    assert "no run there" in capsys.readouterr().err


def test_settings_that_cost_speed_are_told_once_with_what_to_do(planted: Planted) -> None:
    run = planted()
    setting = {
        "state": "eager mode",
        "cost": "a token takes longer",
        "advice": "leave --enforce-eager out",
        "source": "x",
    }
    ledgers = {name: {**ledger, "speed_settings": [setting]} for name, ledger in run.ledgers.items()}
    page = build_report(replace(run, ledgers=ledgers))
    assert page.count("leave --enforce-eager out") == 1 + page.split('id="data">')[1].count("leave --enforce-eager out")
    assert "No start-up log was read." in build_report(run)


def test_the_price_of_a_profile_stands_in_the_page_where_it_was_measured(planted: Planted) -> None:
    run = planted(scenarios=("math",), captures=(16,))
    assert "Price of a profile" not in build_report(run)
    both = pd.concat([run.points.assign(profile="none"), run.points.assign(itl_ms_p50=run.points["itl_ms_p50"] * 1.5)])
    page = build_report(replace(run, points=both.reset_index(drop=True)))
    assert "Price of a profile" in page and "+50.0 %" in page

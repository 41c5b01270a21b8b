"""What a sampling profile costs, and what a drafter has to gain to pay: tables whose answers are known by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.analysis.price import DRAFTER, break_evens, profile_costs
from qwenbench.analysis.run import Run


def run_of(*rows: dict[str, Any]) -> Run:
    empty = dict.fromkeys(COLUMN_NAMES)
    common = {"scenario": "math", "profile": "none", "load_shape": "closed", "launch": 1, "repeat": 1, "valid": True}
    points = pd.DataFrame([{**empty, **common, **row} for row in rows])
    return Run(Path("run"), {}, points, {}, {}, {}, {})


def test_a_profile_is_held_against_none_at_the_same_load() -> None:
    rows = [
        {
            "config_id": "a",
            "concurrency": 16,
            "profile": profile,
            "repeat": n,
            "itl_ms_p50": ms,
            "output_tokens_per_s": rate,
        }
        for profile, pairs in {
            "none": ((6.0, 1000.0), (6.0, 1020.0)),
            "thinking-coding": ((9.0, 800.0), (9.0, 816.0)),
        }.items()
        for n, (ms, rate) in enumerate(pairs, start=1)
    ]
    rows.append({"config_id": "a", "concurrency": 64, "profile": "thinking-coding", "itl_ms_p50": 14.0})
    itl, tokens = profile_costs(run_of(*rows))
    assert (itl.metric, itl.profile, itl.concurrency) == ("itl_p50", "thinking-coding", 16)
    assert itl.change == pytest.approx(0.5) and tokens.change == pytest.approx(-0.2)
    assert tokens.low is not None and tokens.high is not None and tokens.low < -0.2 < tokens.high


def test_one_repeat_has_no_interval_and_without_none_there_is_no_price() -> None:
    one = {"config_id": "a", "concurrency": 16, "itl_ms_p50": 6.0}
    (cost,) = profile_costs(run_of(one, {**one, "profile": "general", "itl_ms_p50": 6.6}))
    assert cost.change == pytest.approx(0.1) and cost.low is None
    assert profile_costs(run_of({**one, "profile": "general"}, {**one, "profile": "other"})) == []


def test_a_drafter_pays_where_it_gains_more_than_its_step_costs() -> None:
    """Steps of 9.8 / 19.8 / 67.6 ms at 1 / 16 / 64 streams for 4.4 / 8.0 / 11.8 without: 2.2, 2.5 and 5.7 tokens."""
    rows = []
    for level, with_it, without in ((1, 9.8, 4.4), (16, 19.8, 8.0), (64, 67.6, 11.8)):
        rows.append({"config_id": "plain", "concurrency": level, DRAFTER: None, "itl_ms_p50": without})
        drafted = {"drafted_tokens": 100, "acceptance_length": 2.6}
        rows.append({"config_id": "mtp", "concurrency": level, DRAFTER: "mtp", "itl_ms_p50": with_it, **drafted})
    found = break_evens(run_of(*rows))
    assert [round(each.needed, 1) for each in found] == [2.2, 2.5, 5.7]
    assert [each.pays for each in found] == [True, True, False]
    assert {each.without_id for each in found} == {"plain"}


def test_configurations_that_differ_in_more_are_no_pair() -> None:
    plain = {"config_id": "plain", "concurrency": 1, "capture": 16, DRAFTER: None, "itl_ms_p50": 4.4}
    other = {
        "config_id": "mtp",
        "concurrency": 1,
        "capture": 64,
        DRAFTER: "mtp",
        "itl_ms_p50": 9.8,
        "drafted_tokens": 1,
    }
    assert break_evens(run_of(plain, other)) == []

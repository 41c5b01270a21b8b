"""What a search is told of real points, and where the configurations of its space lie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.analysis.limits import parse_point_limits
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.errors import UsageError
from qwenbench.sweep import tuning
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.tuning import Quest, counts_of, default_space
from qwenbench.tune import protocol
from qwenbench.tune.search import search

LIMITS = parse_point_limits("ttft_p99=1000ms,tpot_p50=25ms")


@given(st.lists(st.floats(0, 5000) | st.just(math.nan), max_size=40))
def test_a_request_that_failed_is_within_no_limit(ttft: list[float]) -> None:
    counts = counts_of(LIMITS[:1], {"ttft": np.array(ttft)})
    assert counts == {"ttft_p99": (sum(value <= 1000 for value in ttft), len(ttft))}


def test_a_quest_comes_back_from_run_json() -> None:
    quest = Quest(32, LIMITS, protocol.Rules(launches=5))
    kept = quest.to_json()
    assert Quest.from_json(kept).to_json() == kept
    assert Quest.from_json(kept).rules.seconds == math.inf
    assert quest.goal.limits == {"ttft_p99": 0.99, "tpot_p50": 0.5}


def test_settings_lie_by_their_size_or_by_their_place() -> None:
    def configuration(capture: int, vary: dict[str, str]) -> Configuration:
        server = ServerConfig().with_flag("max-cudagraph-capture-size", str(capture))
        return Configuration(f"cap{capture}", server, vary, 0.9)

    space = [
        configuration(16, {"block-size": "16", "kv-cache-dtype": "auto"}),
        configuration(64, {"block-size": "32", "kv-cache-dtype": "fp8"}),
    ]
    assert tuning._positions(space, "capture") == [4.0, 6.0]
    assert tuning._positions(space, "block-size") == [4.0, 5.0]
    assert tuning._positions(space, "kv-cache-dtype") == [0.0, 1.0]


@pytest.mark.parametrize("users", [1, 8, 32, 100])
def test_the_default_space_holds_a_size_that_the_users_fill(users: int) -> None:
    space = default_space(SweepOptions(), users)
    assert any(users <= size < users + 8 for size in space["capture"])
    assert 2 <= len(space["capture"]) * len(space["vary"]["max-num-batched-tokens"]) <= 18
    assert default_space(SweepOptions(capture=(16,)), users) == {}


ARMS = [protocol.Arm("a", (0.0,), 100.0), protocol.Arm("b", (1.0,), 90.0)]


def steps(log: Path) -> tuning._Steps:
    goal, rules = protocol.Goal(4, {"ttft_p99": 0.99}), protocol.Rules(launches=3)
    return tuning._Steps(search(ARMS, goal, rules), log)


def answered(step: protocol.Step) -> protocol.Answer:
    if isinstance(step, protocol.Launch):
        return protocol.Launched(2.0)
    return protocol.Probed({"ttft_p99": (400, 400)}, 100.0 if step.config_id == "a" else 80.0, 5.0)


def test_the_answers_on_disk_bring_the_search_to_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    first = steps(log)
    for _ in range(4):
        assert first.step is not None
        first.answer(answered(first.step))
    again = steps(log)
    assert (again.step, again.launch) == (first.step, first.launch)
    while again.step is not None:
        again.answer(answered(again.step))
    assert again.outcome is not None and again.outcome.config_id == "a"
    assert steps(log).outcome == again.outcome


def test_the_answers_of_another_search_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    first = steps(log)
    assert first.step is not None
    first.answer(answered(first.step))
    log.write_text(log.read_text().replace('"a"', '"c"'))
    with pytest.raises(UsageError, match="another search"):
        steps(log)

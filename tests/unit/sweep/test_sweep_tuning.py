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
from qwenbench.tune.search import Search

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


def steps(log: Path, launches: int = 4) -> tuning._Steps:
    goal, rules = protocol.Goal(4, {"ttft_p99": 0.99}), protocol.Rules(launches=launches)
    return tuning._Steps(Search(ARMS, goal, rules), log)


def answered(step: protocol.Step) -> protocol.Answer:
    if isinstance(step, protocol.Launch):
        return protocol.Launched(2.0)
    return protocol.Probed({"ttft_p99": (400, 400)}, 100.0 if step.config_id == "a" else 80.0, 5.0)


def make(search: tuning._Steps, answers: int) -> None:
    """So many answers, or until the search is over."""
    while answers and (launch := search.next(0)) is not None:
        while answers and launch.key in search.search.running:
            search.answer(launch.key, answered(search.search.running[launch.key]))
            answers -= 1


def test_the_log_brings_the_search_to_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    first = steps(log)
    make(first, 5)  # a whole launch of three, and two of the next
    again = steps(log)
    assert again.search.running == first.search.running and len(again.search.running) == 1
    make(again, 99)
    outcome = again.search.outcome()
    assert (outcome.config_id, len(outcome.path)) == ("a", 3) and not again.search.running
    ended = steps(log)
    make(ended, 99)
    assert ended.search.outcome() == outcome
    more = steps(log, launches=8)
    make(more, 99)
    assert more.search.outcome().path[:3] == outcome.path and len(more.search.outcome().path) == 4


def test_the_answers_of_another_search_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "search.jsonl"
    make(steps(log), 2)
    log.write_text(log.read_text().replace('"a"', '"c"'))
    with pytest.raises(UsageError, match="another search"):
        steps(log)

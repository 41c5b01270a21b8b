"""The search against made-up servers: it finds what is there, survives what fails, and can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.tune.protocol import (
    Answer,
    Arm,
    Died,
    Goal,
    Launch,
    Launched,
    LaunchFailed,
    Outcome,
    Probe,
    Probed,
    Rules,
    Step,
)
from qwenbench.tune.search import Search
from qwenbench.tune.sequential import verdict

CAPTURES, SEQS = (16, 32, 64, 128), (16, 32, 64)
GOAL = Goal(users=32, limits={"ttft_p99": 0.99})


def tokens(capture: int, seqs: int) -> float:
    """Rises to 32 places, falls where the batch is above the captured size."""
    return 1000 * min(seqs, 32) / 32 * (0.7 if capture < min(seqs, 32) else 1.0)


def space(prior: Callable[[int, int], float | None] = tokens) -> list[Arm]:
    return [
        Arm(f"cap{capture}-seq{seqs}", (math.log2(capture), math.log2(seqs)), prior(capture, seqs))
        for capture in CAPTURES
        for seqs in SEQS
    ]


class Bench:
    """Servers that answer as `tokens` says, with noise, and fail where they are told to."""

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._noise = noise
        self.steps: list[Step] = []
        self.fails: Mapping[str, str] = {}
        self.dies: Mapping[str, str] = {}
        self.share: Callable[[str, int], float] = lambda config, load: 1.0
        self._launch = 1.0

    def answer(self, step: Step) -> Answer:
        self.steps.append(step)
        if isinstance(step, Launch):
            self._launch = math.exp(self._random.normal(0, self._noise))
            failed = self.fails.get(step.config_id)
            return LaunchFailed(failed, 60.0) if failed else Launched(60.0)
        if step.config_id in self.dies:
            return Died(self.dies[step.config_id], 5.0)
        capture, seqs = (int(part[3:]) for part in step.config_id.split("-"))
        within = sent = 0
        while not step.enough(dict.fromkeys(step.limits, (within, sent))):
            within += bool(self._random.random() < self.share(step.config_id, step.load))
            sent += 1
        value = tokens(capture, seqs) * self._launch * math.exp(self._random.normal(0, self._noise / 2))
        return Probed(dict.fromkeys(step.limits, (within, sent)), value, sent / 10)

    def run(self, arms: list[Arm], goal: Goal = GOAL, rules: Rules | None = None, seed: int = 0) -> Outcome:
        search = Search(arms, goal, rules or Rules(launch_spread=self._noise, point_spread=self._noise / 2), seed)
        self.drive(search)
        return search.outcome()

    def drive(self, search: Search, cards: int = 1) -> None:
        """Makes the launches, on several cards side by side: each card's next step in turn."""
        doing: dict[int, Launch] = {}
        while True:
            for card in range(cards):
                if card not in doing and (launch := search.next(card)) is not None:
                    search.begin(launch)
                    doing[card] = launch
            if not doing:
                return
            for card, launch in list(doing.items()):
                if search.answer(launch.key, self.answer(search.running[launch.key])) is None:
                    del doing[card]


def test_a_right_prediction_needs_few_launches_and_the_claim_is_about_what_was_tried() -> None:
    bench = Bench(noise=0.01)
    outcome = bench.run(space())
    assert outcome.config_id is not None
    assert tokens(*(int(part[3:]) for part in outcome.config_id.split("-"))) == 1000
    assert outcome.verdict == "shown" and outcome.decided and outcome.within is not None and outcome.within <= 0.03
    assert len(outcome.path) <= 8
    assert outcome.path[0].why == "predicted best" and outcome.path[-1].why == "launched again"
    again = [tried.config_id for tried in outcome.path if tried.config_id == outcome.config_id]
    assert len(again) >= 3 and outcome.drift is not None  # once to find it, twice more to be sure


@pytest.mark.parametrize("seed", range(6))
def test_a_wrong_prediction_is_survived(seed: int) -> None:
    bench = Bench(noise=0.02, seed=seed)
    outcome = bench.run(space(lambda capture, seqs: 2000 - tokens(capture, seqs)), seed=seed)
    assert outcome.config_id is not None
    assert tokens(*(int(part[3:]) for part in outcome.config_id.split("-"))) == 1000


@pytest.mark.parametrize("scale", [None, 0.2, 5.0])
def test_nothing_predicted_or_all_of_it_far_off_costs_nothing(scale: float | None) -> None:
    """A model whose shape is not known has no predictions; the best stands last in the space."""
    arms = [replace(arm, prior=scale and arm.prior and scale * arm.prior) for arm in space()]
    for seed in range(6):
        outcome = Bench(noise=0.03, seed=seed).run(arms, seed=seed)
        assert outcome.config_id is not None
        assert tokens(*(int(part[3:]) for part in outcome.config_id.split("-"))) == 1000


def test_a_small_space_of_equals_is_tried_whole_before_one_is_launched_again() -> None:
    arms = [Arm(f"cap{capture}-seq32", (math.log2(capture),)) for capture in (32, 64, 128, 256)]
    path = Bench(noise=0.1).run(arms).path
    assert {tried.config_id for tried in path[:4]} == {arm.config_id for arm in arms}


@pytest.mark.parametrize("goal", [GOAL, replace(GOAL, users=None, most=256)], ids=["tokens", "users"])
def test_few_launches_try_as_many_configurations(goal: Goal) -> None:
    for launches in (2, 3):
        bench = Bench(noise=0.05)
        bench.share = lambda config, load: 1.0 if load <= 40 else 0.5
        path = bench.run(space(), goal, Rules(launches=launches)).path
        assert len({tried.config_id for tried in path}) == launches


def test_failed_launches_and_dead_engines_are_data() -> None:
    bench = Bench()
    bench.fails = {"cap128-seq64": "out of memory", "cap128-seq32": "out of memory"}
    bench.dies = {"cap64-seq64": "the engine died"}
    outcome = bench.run(space(lambda capture, seqs: tokens(capture, seqs) + capture + seqs))
    assert outcome.config_id not in (None, *bench.fails, *bench.dies)
    assert outcome.dropped["cap128-seq64"] == "out of memory"
    assert outcome.verdict == "shown"
    assert {tried.verdict for tried in outcome.path if tried.config_id in bench.fails} == {"failed"}


def test_what_breaks_a_limit_is_never_the_answer_and_costs_few_requests() -> None:
    bench = Bench()
    bench.share = lambda config, load: 0.9 if "seq64" in config or "seq32" in config else 1.0
    outcome = bench.run(space())
    assert outcome.config_id is not None and outcome.config_id.endswith("seq16")
    assert all(reason == "its limits are broken" for reason in outcome.dropped.values())


def test_refused_configurations_are_never_launched() -> None:
    bench = Bench()
    arms = [replace(arm, refused="cannot start") if "cap128" in arm.config_id else arm for arm in space()]
    outcome = bench.run(arms)
    assert len(outcome.refused) == 3
    assert not any("cap128" in step.config_id for step in bench.steps)


def test_nothing_works() -> None:
    bench = Bench()
    bench.fails = {arm.config_id: "no" for arm in space()}
    outcome = bench.run(space())
    assert (outcome.config_id, outcome.decided, len(outcome.path)) == (None, False, 8)
    assert bench.run([replace(arm, refused="no") for arm in space()]).config_id is None
    with pytest.raises(ValueError, match="arms"):
        Search([], GOAL, Rules())


def test_it_ends_when_nothing_can_be_measured() -> None:
    """A client that is too slow makes every point invalid: other configurations will not change that."""
    bench = Bench()
    answer = bench.answer

    def nothing(step: Step) -> Answer:
        given = answer(step)
        return replace(given, value=None) if isinstance(given, Probed) else given

    bench.answer = nothing  # type: ignore[method-assign]
    outcome = bench.run(space())
    assert (outcome.config_id, len(outcome.path)) == (None, 3) and "nothing could be measured" in outcome.ended


def test_a_later_launch_without_a_valid_point_does_not_drop_what_was_measured() -> None:
    class Busy(Bench):
        def answer(self, step: Step) -> Answer:
            found = super().answer(step)
            again = step.number > 1 and isinstance(found, Probed)
            return Probed({}, None, 1.0) if again else found

    outcome = Busy().run(space(), rules=Rules(launches=4))
    assert outcome.config_id is not None and outcome.dropped == {}
    assert any(tried.value is None for tried in outcome.path), "one of them was launched again"


def test_all_configurations_answer_the_same_requests() -> None:
    bench = Bench(noise=0.02)
    bench.run(space())
    seeds = {(step.load, step.repeat): step.seed for step in bench.steps if isinstance(step, Probe)}
    assert all(step.seed == seeds[step.load, step.repeat] for step in bench.steps if isinstance(step, Probe))
    assert len(set(seeds.values())) == len(seeds)


def test_the_answer_was_launched_again_and_no_launch_is_repeated_at_once_before_the_end() -> None:
    for seed in range(5):
        outcome = Bench(noise=0.1, seed=seed).run(space(), seed=seed)
        path = [tried.config_id for tried in outcome.path]
        assert path.count(str(outcome.config_id)) >= 2
        assert all(one != other for one, other in pairwise(path[:-3]))


def test_several_cards_launch_side_by_side_and_share_what_is_learned() -> None:
    bench = Bench(noise=0.02)
    search = Search(space(), GOAL, Rules(launch_spread=0.02, point_spread=0.01), cards=2)
    bench.drive(search, cards=2)
    outcome = search.outcome()
    assert {tried.card for tried in outcome.path} == {0, 1} and len(outcome.path) <= 8
    assert tokens(*(int(part[3:]) for part in str(outcome.config_id).split("-"))) == 1000
    first = [step for step in bench.steps if isinstance(step, Launch)][:2]
    assert first[0].config_id != first[1].config_id, "the second card does not repeat the first one's launch"


def test_a_killed_search_goes_on_from_what_was_begun_and_answered() -> None:
    bench = Bench(noise=0.02)
    search, again = (Search(space(), GOAL, Rules(), seed=3) for _ in range(2))
    for _ in range(4):
        launch = search.next()
        assert launch is not None
        for one in (search, again):
            one.begin(launch)
        step: Step | None = launch
        while step is not None:
            given = bench.answer(step)
            step = search.answer(launch.key, given)
            assert again.answer(launch.key, given) == step
    assert again.next() == search.next() and again.outcome() == search.outcome()


def test_more_launches_may_be_given_to_a_search_that_has_ended() -> None:
    bench = Bench(noise=0.1)
    search = Search(space(), GOAL, Rules(launches=2))
    more = Search(space(), GOAL, Rules(launches=5))
    for _ in range(2):
        launch = search.next()
        assert launch is not None
        step: Step | None = launch
        for one in (search, more):
            one.begin(launch)
        while step is not None:
            given = bench.answer(step)
            step = search.answer(launch.key, given)
            more.answer(launch.key, given)
    assert search.next() is None and "no launches are left" in search.outcome().ended
    bench.drive(more)
    assert 3 <= len(more.outcome().path) <= 5


def test_the_most_users_within_the_limits() -> None:
    bench = Bench()
    # each configuration holds as many users as it has places
    bench.share = lambda config, load: 1.0 if load <= int(config.split("seq")[1]) else 0.5
    outcome = bench.run(space(lambda capture, seqs: float(seqs)), Goal(None, {"ttft_p99": 0.99}))
    assert outcome.config_id is not None and outcome.config_id.endswith("seq64")
    assert outcome.value == pytest.approx(64, rel=0.1)
    loads = [step.load for step in bench.steps if isinstance(step, Probe)]
    assert len(loads) < 40


def test_time_ends_it_too() -> None:
    bench = Bench()
    outcome = bench.run(space(), rules=Rules(seconds=200.0))
    assert len(outcome.path) <= 3 and outcome.config_id is not None


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_verdict_is_never_both(within: int, missed: int, needed: float) -> None:
    found = verdict(within, within + missed, needed)
    if found == "shown":
        assert within > needed * (within + missed)
    if found == "broken":
        assert within < needed * (within + missed)


def test_looking_at_every_request_is_wrong_in_at_most_one_of_twenty() -> None:
    random = np.random.default_rng(3)
    wrong = {"shown": 0, "broken": 0}
    for _ in range(200):
        within = np.cumsum(random.random(600) < 0.9)
        seen = {verdict(int(within[n]), n + 1, 0.9) for n in range(0, 600, 3)}
        for name in wrong:
            wrong[name] += name in seen
    assert max(wrong.values()) <= 16  # 8 %: 5 % and twice its standard error

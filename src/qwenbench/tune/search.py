"""The race: which configuration to launch next, when one is out, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qwenbench.tune.belief import Belief, Fate, Noise, believe, chance_ok, likeness, scaled
from qwenbench.tune.knee import knee
from qwenbench.tune.protocol import (
    Answer,
    Arm,
    Counts,
    Died,
    Goal,
    Launch,
    LaunchFailed,
    Outcome,
    Probe,
    Probed,
    Rules,
    Step,
    Tried,
    joint,
)
from qwenbench.tune.sequential import Verdict

Steps = Generator[Step, Answer, None]
Why = Literal["predicted best", "most to gain", "drawn at random", "final"]
SURE = 1.645
"""Standard deviations of a one-sided 95 % bound."""
NOTHING = "nothing could be measured of it"
UNMEASURED = 3
"""Launches in a row of which nothing could be measured, after which more would not help."""
SURELY_WORSE = 2.0
"""Standard deviations by which an arm's belief must lie below the best one's for it to be dropped unlaunched."""


def search(arms: Sequence[Arm], goal: Goal, rules: Rules, seed: int = 0) -> Generator[Step, Answer, Outcome]:
    """The whole search as steps; see the package's docstring for the protocol.

    Raises ValueError for a space without an arm, or with two arms of one name.
    """
    if not arms or len({arm.config_id for arm in arms}) < len(arms):
        raise ValueError("the space must have arms, each with a name of its own")
    race = _Race(arms, goal, rules, np.random.default_rng([seed, len(arms)]), seed)
    yield from race.explore()
    yield from race.finals()
    return race.outcome()


@dataclass(slots=True)
class _Record:
    """What is known of one arm."""

    values: list[float] = field(default_factory=list)
    """The objective of each launch, in order."""
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Limit -> requests within it and requests, over all probes at the users asked for (or at the knee)."""
    launches: int = 0
    dropped: str | None = None
    fate: Fate = "held"


class _Race:
    def __init__(self, arms: Sequence[Arm], goal: Goal, rules: Rules, random: np.random.Generator, seed: int) -> None:
        self._all = arms
        self._arms = [arm for arm in arms if arm.refused is None]
        self._goal, self._rules, self._random, self._seed = goal, rules, random, seed
        self._records = [_Record() for _ in self._arms]
        self._path: list[Tried] = []
        self._seconds = 0.0
        self._ended = "every configuration was tried or is believed to be worse"
        self._alike = (
            likeness(scaled([arm.features for arm in arms if arm.refused is None])) if self._arms else np.eye(0)
        )
        self._prior = np.array([math.log(arm.prior) if arm.prior else np.nan for arm in self._arms])

    # --- exploring

    def explore(self) -> Steps:
        """Launches of arms that were not launched yet, while one of them may be worth it."""
        while (chosen := self._next()) is not None:
            yield from self._launch(*chosen)

    def _next(self) -> tuple[int, Why] | None:
        new = [i for i, record in enumerate(self._records) if record.launches == 0 and record.dropped is None]
        if not new:
            return None
        if self._left() <= 0:
            self._ended = "no launches are left"
            return None
        if len(self._path) >= UNMEASURED and all(tried.dropped == NOTHING for tried in self._path[-UNMEASURED:]):
            self._ended = f"nothing could be measured in {UNMEASURED} launches in a row: it is the client, or the load"
            return None
        belief, worth = self._belief(), self._chance_ok()
        best = self._best()
        if best is None:
            # the best prediction that is likely to work; failures push it away from where they were
            scores = belief.mean[new] + np.log(worth[new])
            return new[int(np.argmax(scores))], "predicted best"
        may = [i for i in new if self._may_win(belief, i, best)]
        if not may:
            self._ended = "what was not tried is believed to be worse"
            return None
        gain = belief.gain(float(belief.mean[best])) * worth
        pick = max(may, key=lambda i: gain[i])
        if gain[pick] < self._rules.within / 10:
            self._ended = "no other configuration is expected to gain enough"
            return None
        if self._left() <= self._reserved(float(gain[pick])):
            self._ended = "the launches that are left go to the finalists"
            return None
        # not the first launches: those find out whether the prediction is any good
        if len(self._path) >= 2 and self._random.random() < self._rules.random_share:
            return int(self._random.choice(may)), "drawn at random"
        return pick, "most to gain"

    def _may_win(self, belief: Belief, arm: int, best: int) -> bool:
        ahead, spread = belief.behind(best, arm)
        return ahead + SURELY_WORSE * spread > math.log1p(self._rules.within)

    def _reserved(self, gain: float) -> int:
        """Launches that are kept for the finalists: for two of them, for the best one alone while more is expected of
        a new configuration than the difference that matters."""
        finalists = 1 if gain > self._rules.within else 2
        return min(finalists * self._rules.finals, self._rules.launches // 2)

    def _left(self) -> int:
        spent = self._seconds >= self._rules.seconds
        return 0 if spent else self._rules.launches - len(self._path)

    # --- finalists

    def finals(self) -> Steps:
        """The best ones again, interleaved: each as often as the rules say, unless it falls out."""
        finalists = self._finalists()
        # one that is launched often enough tells more than two that are not
        finalists = finalists[: max(1, self._left() // max(1, self._rules.finals))]
        for _ in range(self._rules.finals):
            for index in finalists:
                if self._left() <= 0:
                    self._ended = "no launches are left"
                    return
                if self._records[index].dropped is None:
                    yield from self._launch(index, "final")

    def _finalists(self) -> list[int]:
        """The best arm and the one most likely to be better after all, while that is in doubt."""
        best = self._best()
        if best is None:
            return []
        belief = self._belief()
        rivals = []
        for i in self._standing():
            ahead, spread = belief.behind(best, i)
            if i != best and ahead + SURE * spread > math.log1p(self._rules.within):
                rivals.append((ahead + SURE * spread, i))
        return [best] + [i for _, i in sorted(rivals, reverse=True)[:1]]

    # --- one launch

    def _launch(self, index: int, why: Why) -> Steps:
        arm, record = self._arms[index], self._records[index]
        record.launches += 1
        answer = yield Launch(arm.config_id, record.launches)
        self._seconds += answer.seconds
        value: float | None = None
        verdict: Verdict | Literal["failed"] = "failed"
        if isinstance(answer, LaunchFailed | Died):
            record.dropped = answer.reason
        else:
            try:
                value = yield from (self._at_users(index) if self._goal.users else self._knee(index))
                verdict = joint(self._goal.limits, record.counts)
            except _EngineDied as death:
                record.dropped = str(death)
        if value is not None:
            record.values.append(value)
        if verdict == "broken":
            record.dropped, record.fate = "its limits are broken", "broken"
        elif verdict != "failed" and value is None and record.dropped is None:
            record.dropped = NOTHING
        if record.dropped is not None and record.fate == "held":
            record.fate = "failed"
        self._path.append(Tried(arm.config_id, record.launches, why, value, verdict, record.dropped))

    def _at_users(self, index: int) -> Generator[Step, Answer, float | None]:
        users, found = self._goal.users or 1, []
        for repeat in range(1, self._rules.probes + 1):
            probed = yield from self._probe(index, users, repeat)
            self._count(index, probed.counts)
            if probed.value:
                found.append(probed.value)
            if joint(self._goal.limits, self._records[index].counts) == "broken":
                break
        return float(np.mean(found)) if found else None

    def _knee(self, index: int) -> Generator[Step, Answer, float | None]:
        """The users that it holds; the counts kept are those at that load."""
        best = self._best()
        first = self._records[best].values[-1] if best is not None else self._arms[index].prior or 8
        repeats: dict[int, int] = {}

        def holds(users: int) -> Generator[Step, Answer, bool]:
            repeats[users] = repeats.get(users, 0) + 1
            probed = yield from self._probe(index, users, repeats[users])
            state = joint(self._goal.limits, probed.counts)
            held = state != "broken" and not probed.saturated and _met(self._goal.limits, probed.counts)
            if held:
                self._records[index].counts = dict(probed.counts)
            return held

        held, _ = yield from knee(max(1, round(first)), self._goal.most_users, holds)
        return float(held) if held else None

    def _probe(self, index: int, users: int, repeat: int) -> Generator[Step, Answer, Probed]:
        record, rules = self._records[index], self._rules
        seed = int(np.random.default_rng([self._seed, users, repeat]).integers(2**31))
        answer = yield Probe(
            self._arms[index].config_id,
            record.launches,
            users,
            repeat,
            seed,
            self._goal.limits,
            max(rules.least_requests, 3 * users),
            max(rules.most_requests, 6 * users),
        )
        self._seconds += answer.seconds
        if isinstance(answer, Probed):
            return answer
        raise _EngineDied(answer.reason if isinstance(answer, Died | LaunchFailed) else "the server went away")

    def _count(self, index: int, counts: Counts) -> None:
        record = self._records[index]
        for name, (within, trials) in counts.items():
            known = record.counts.get(name, (0, 0))
            record.counts[name] = (known[0] + within, known[1] + trials)

    # --- what is known

    def _standing(self) -> list[int]:
        """Arms that were launched and are still in."""
        return [i for i, record in enumerate(self._records) if record.values and record.dropped is None]

    def _best(self, again: bool = False) -> int | None:
        """The arm believed to be the best of those launched (`again`: of the finalists, where there are any).

        Shares as large as they must be come first.
        """
        belief, standing = self._belief(), self._standing()
        if again:
            standing = [i for i in standing if self._records[i].launches > 1] or standing
        order = {"shown": 1, "open": 0, "broken": -1}
        return max(
            standing,
            key=lambda i: (self._fits(i), belief.mean[i], order[joint(self._goal.limits, self._records[i].counts)]),
            default=None,
        )

    def _fits(self, index: int) -> bool:
        """Whether every share seen so far is as large as it must be."""
        return _met(self._goal.limits, self._records[index].counts)

    def _belief(self) -> Belief:
        rules = self._rules
        measured = [(i, math.log(value)) for i, record in enumerate(self._records) for value in record.values]
        noise = Noise(rules.launch_spread, rules.point_spread, rules.probes)
        return believe(self._prior, self._alike, measured, noise, rules.prior_spread)

    def _chance_ok(self) -> np.ndarray:
        fates = [(i, record.fate) for i, record in enumerate(self._records) if record.launches]
        return chance_ok(self._alike, fates)

    # --- the end

    def outcome(self) -> Outcome:
        """What was found."""
        refused = {arm.config_id: arm.refused for arm in self._all if arm.refused is not None}
        dropped = {
            arm.config_id: record.dropped
            for arm, record in zip(self._arms, self._records, strict=True)
            if record.dropped is not None
        }
        best = self._best(again=True)
        if best is None:
            return Outcome(None, None, "open", None, False, tuple(self._path), refused, dropped, None, self._ended)
        record, belief = self._records[best], self._belief()
        behind = [0.0]
        for other in self._standing():
            if other != best:
                ahead, spread = belief.behind(best, other)
                behind.append(math.expm1(max(0.0, ahead + SURE * spread)))
        within = max(behind)
        verdict = joint(self._goal.limits, record.counts)
        return Outcome(
            config_id=self._arms[best].config_id,
            value=float(np.exp(np.mean(np.log(record.values)))),
            verdict=verdict,
            within=within,
            decided=verdict == "shown" and within <= self._rules.within,
            path=tuple(self._path),
            refused=refused,
            dropped=dropped,
            drift=self._drift(),
            ended=self._ended,
        )

    def _drift(self) -> float | None:
        """Mean change of the finalists from their first launch to their last."""
        changes = [math.log(r.values[-1] / r.values[0]) for r in self._records if len(r.values) > 1]
        return math.expm1(float(np.mean(changes))) if changes else None


class _EngineDied(Exception):
    """The engine ended under a probe's load."""


def _met(limits: Mapping[str, float], counts: Counts) -> bool:
    return all(
        within >= needed * trials for name, needed in limits.items() for within, trials in [counts.get(name, (0, 0))]
    )

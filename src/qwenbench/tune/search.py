"""The race: which configuration to launch next, when one is out, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qwenbench.tune.belief import Belief, Fate, Measured, believe, chance_ok, likeness, scaled
from qwenbench.tune.knee import knee
from qwenbench.tune.protocol import (
    Answer,
    Arm,
    Counts,
    Goal,
    Key,
    Launch,
    Launched,
    Outcome,
    Probe,
    Probed,
    Rules,
    Step,
    Tried,
    Why,
    joint,
)
from qwenbench.tune.sequential import Verdict

Probes = Generator[Probe, Answer, float | None]
SURE = 1.645
"""Standard deviations of a one-sided 95 % bound."""
NOTHING = "nothing could be measured of it"
FIRST_LOAD = 8
"""Of a knee's search where nothing is predicted, in units."""
ALIKE = 0.5
"""An arm believed to be behind by fewer standard deviations than this is as good as the best."""
UNMEASURED = 3
"""Launches in a row of which nothing could be measured, after which more would not help."""


@dataclass(slots=True)
class _Record:
    """What is known of one arm."""

    values: list[float] = field(default_factory=list)
    """The objective of each launch, in order, and"""
    cards: list[int] = field(default_factory=list)
    """where it was measured."""
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Limit -> requests within it and requests, over all probes at the users asked for (or at the knee)."""
    launches: int = 0
    dropped: str | None = None
    fate: Fate = "held"


@dataclass(slots=True)
class _Running:
    """A launch that is being made or measured."""

    launch: Launch
    step: Step
    """What it waits for."""
    probes: Probes


def _unmeasured(tried: Tried) -> bool:
    """Its server ran, and no point of it was valid."""
    return tried.value is None and tried.dropped in (None, NOTHING)


class Search:
    """The search as its state; see the package's docstring for the protocol."""

    def __init__(self, arms: Sequence[Arm], goal: Goal, rules: Rules, seed: int = 0, cards: int = 1) -> None:
        """`cards` servers run side by side. Raises ValueError for a space without an arm, or two arms of one name."""
        if not arms or len({arm.config_id for arm in arms}) < len(arms):
            raise ValueError("the space must have arms, each with a name of its own")
        self._all = arms
        self._arms = [arm for arm in arms if arm.refused is None]
        self._index = {arm.config_id: place for place, arm in enumerate(self._arms)}
        self._goal, self._rules, self._seed, self._cards = goal, rules, seed, cards
        self._records = [_Record() for _ in self._arms]
        self._running: dict[Key, _Running] = {}
        self._begun: list[int] = []
        """The arm of each launch, in order."""
        self._path: list[Tried] = []
        self._seconds = 0.0
        self._ended = "every configuration was tried or is believed to be worse"
        self._alike = likeness(scaled([arm.features for arm in self._arms])) if self._arms else np.eye(0)
        self._prior = np.array([math.log(arm.prior) if arm.prior else np.nan for arm in self._arms])

    @property
    def running(self) -> dict[Key, Step]:
        """Launches that were begun and are not over, and what each waits for."""
        return {key: running.step for key, running in self._running.items()}

    def begin(self, launch: Launch) -> None:
        """This launch, which `next` gave (or a run that goes on has begun), is being made."""
        index = self._index[launch.config_id]
        self._records[index].launches += 1
        self._begun.append(index)
        probes = self._knee(index, launch) if self._goal.users is None else self._at_users(index, launch)
        self._running[launch.key] = _Running(launch, launch, probes)

    def answer(self, key: Key, answer: Answer) -> Probe | None:
        """What came of the step that this launch waited for; returns its next one, None when the launch is over."""
        running = self._running[key]
        self._seconds += answer.seconds
        record, value = self._records[self._index[key[0]]], None
        died = None if isinstance(answer, Launched | Probed) else answer.reason
        if died is None:
            try:
                running.step = running.probes.send(answer if isinstance(answer, Probed) else None)  # type: ignore[arg-type]
                return running.step
            except StopIteration as end:
                value = end.value
        del self._running[key]
        self._conclude(record, running.launch, value, died)
        return None

    def _conclude(self, record: _Record, launch: Launch, value: float | None, died: str | None) -> None:
        """A launch is over."""
        verdict: Verdict | Literal["failed"] = "failed" if died else joint(self._goal.limits, record.counts)
        if value is not None:
            record.values.append(value)
            record.cards.append(launch.card)
        if died is not None:
            record.dropped, record.fate = died, "failed"
        elif verdict == "broken":
            record.dropped, record.fate = "its limits are broken", "broken"
        elif value is None and not record.values and record.dropped is None:
            record.dropped, record.fate = NOTHING, "failed"
        self._path.append(
            Tried(launch.config_id, launch.number, launch.why, value, verdict, record.dropped, launch.card)
        )

    # --- what to launch

    def next(self, card: int = 0) -> Launch | None:
        """The launch to make on a card that is free; None: none is worth it by what is known now."""
        chosen = self._choose()
        if chosen is None:
            return None
        index, why = chosen
        load = self._goal.users
        if load is None:
            best = self._best()
            known = self._arms[index].prior if best is None else self._records[best].values[-1]
            load = max(1, round(known / self._goal.unit)) if known else FIRST_LOAD
        return Launch(self._arms[index].config_id, self._records[index].launches + 1, why, load, card)

    def _choose(self) -> tuple[int, Why] | None:
        """The arm whose launch is expected to improve the answer most; the answer itself is launched again in the end.

        None: nothing is worth a launch, and `_ended` says why.
        """
        standing = [i for i, record in enumerate(self._records) if record.dropped is None]
        busy = {self._index[key[0]] for key in self._running}
        new = [i for i in standing if not self._records[i].launches]
        left = self._left()
        if left <= 0:
            self._ended = "the time is up" if self._time_is_up else "no launches are left"
            return None
        if len(self._path) >= UNMEASURED and all(map(_unmeasured, self._path[-UNMEASURED:])):
            self._ended = f"nothing could be measured in {UNMEASURED} launches in a row: it is the client, or the load"
            return None
        belief, worth = self._belief(pending=True), self._chance_ok()
        best = self._best()
        if best is None:
            # the best prediction that is likely to work; failures push it away from where they were
            scores = belief.mean[new] + np.log(worth[new])
            return (new[int(np.argmax(scores))], "predicted best") if new else None
        # of few launches most are for finding it, not for being sure of it
        again = 1 + min(self._rules.finals, self._rules.launches // 4) - self._records[best].launches
        if left <= again:
            return best, "launched again"
        if new and len(self._begun) % self._rules.random_every == 2:
            return self._drawn(belief, new), "drawn at random"
        if new and len(new) <= left - again and all(self._alike_to(belief, best, arm) for arm in new):
            # a figure of each tells more than a second one of those that happened to come first
            return new[int(np.argmax(belief.mean[new] + np.log(worth[new])))], "most to gain"
        # two launches of one in a row would share a drift
        others = [i for i in standing if i != self._begun[-1] and (i not in busy or self._records[i].values)]
        gain = belief.gain(self._answers(), others, self._noise) * worth[others] if others else np.zeros(1)
        if gain.max() < self._rules.within / 10:
            self._ended = "no other launch is expected to gain enough"
            return (best, "launched again") if again > 0 else None
        pick = others[int(np.argmax(gain))]
        return pick, "launched again" if self._records[pick].launches else "most to gain"

    @staticmethod
    def _alike_to(belief: Belief, best: int, arm: int) -> bool:
        ahead, spread = belief.behind(best, arm)
        return ahead > -ALIKE * spread

    def _drawn(self, belief: Belief, new: Sequence[int]) -> int:
        """One of them, each with its chance to be the best by what is believed (Thompson 1933)."""
        random = np.random.default_rng([self._seed, len(self._begun), len(self._arms)])
        draw = random.multivariate_normal(belief.mean[new], belief.covariance[np.ix_(new, new)], method="svd")
        return new[int(np.argmax(draw))]

    def _left(self) -> int:
        return 0 if self._time_is_up else self._rules.launches - len(self._begun)

    @property
    def _time_is_up(self) -> bool:
        return self._seconds >= self._rules.seconds * self._cards

    # --- one launch

    def _at_users(self, index: int, launch: Launch) -> Probes:
        found = []
        for repeat in range(1, self._rules.probes + 1):
            probed = yield from self._probe(launch, launch.load, repeat)
            self._count(index, probed.counts)
            if probed.value:
                found.append(probed.value)
            if joint(self._goal.limits, self._records[index].counts) == "broken":
                break
        return float(np.mean(found)) if found else None

    def _knee(self, index: int, launch: Launch) -> Probes:
        """The load that it holds; the counts kept are those at that load."""
        repeats: dict[int, int] = {}

        def holds(load: int) -> Generator[Probe, Answer, bool]:
            repeats[load] = repeats.get(load, 0) + 1
            probed = yield from self._probe(launch, load, repeats[load])
            state = joint(self._goal.limits, probed.counts)
            held = state != "broken" and not probed.saturated and _met(self._goal.limits, probed.counts)
            if held:
                self._records[index].counts = dict(probed.counts)
            return held

        held, _ = yield from knee(launch.load, self._goal.most, holds)
        return held * self._goal.unit if held else None

    def _probe(self, launch: Launch, load: int, repeat: int) -> Generator[Probe, Answer, Probed]:
        rules, streams = self._rules, round(load * self._goal.unit)
        seed = int(np.random.default_rng([self._seed, load, repeat]).integers(2**31))
        least, most = max(rules.least_requests, 3 * streams), max(rules.most_requests, 6 * streams)
        answer = yield Probe(launch.config_id, launch.number, load, repeat, seed, self._goal.limits, least, most)
        assert isinstance(answer, Probed)  # `answer` ends a launch that died
        return answer

    def _count(self, index: int, counts: Counts) -> None:
        record = self._records[index]
        for name, (within, trials) in counts.items():
            known = record.counts.get(name, (0, 0))
            record.counts[name] = (known[0] + within, known[1] + trials)

    # --- what is known

    def _standing(self) -> list[int]:
        """Arms that were launched and are still in."""
        return [i for i, record in enumerate(self._records) if record.values and record.dropped is None]

    def _answers(self) -> list[int]:
        """Those of them that the answer is chosen from: shares as large as they must be come first."""
        standing = self._standing()
        return [i for i in standing if self._fits(i)] or standing

    def _best(self) -> int | None:
        """The arm believed to be the best of those; of arms that are alike the one that was launched most often."""
        answers, belief = self._answers(), self._belief()
        top = max((belief.mean[i] for i in answers), default=0.0)
        alike = [i for i in answers if belief.mean[i] >= top - self._rules.within / 3]
        return max(alike, key=lambda i: (self._records[i].launches, belief.mean[i]), default=None)

    def _fits(self, index: int) -> bool:
        """Whether every share seen so far is as large as it must be."""
        return _met(self._goal.limits, self._records[index].counts)

    @property
    def _noise(self) -> float:
        """Variance of the log of one launch's figure."""
        return self._rules.launch_spread**2 + self._rules.point_spread**2 / self._rules.probes

    def _belief(self, pending: bool = False) -> Belief:
        """What is believed now; with `pending`, as if launches under way had given what is expected of them."""
        measured = [
            Measured(i, math.log(value), card)
            for i, record in enumerate(self._records)
            for value, card in zip(record.values, record.cards, strict=True)
        ]
        belief = believe(self._prior, self._alike, measured, self._noise, self._rules.prior_spread)
        if not pending or not self._running:
            return belief
        measured += [
            Measured(i, float(belief.mean[i]), one.launch.card)
            for key, one in self._running.items()
            for i in [self._index[key[0]]]
        ]
        return believe(self._prior, self._alike, measured, self._noise, self._rules.prior_spread)

    def _chance_ok(self) -> np.ndarray:
        fates = [(i, record.fate) for i, record in enumerate(self._records) if record.values or record.dropped]
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
        best = self._best()
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


def _met(limits: Mapping[str, float], counts: Counts) -> bool:
    return all(
        within >= needed * trials for name, needed in limits.items() for within, trials in [counts.get(name, (0, 0))]
    )

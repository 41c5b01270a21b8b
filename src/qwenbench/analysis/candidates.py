"""How each configuration of a run stands to a question: meets its limits, may meet them, or is out, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

import pandas as pd

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.levels import Curve, Level, Reading, Workload, facts_of, mixed, rows_under
from qwenbench.analysis.limits import Limit, LimitState, estimate_verdict, pooled_test, show
from qwenbench.analysis.point import BROKEN
from qwenbench.analysis.run import Run
from qwenbench.analysis.statistics import RequestsOf, requests_under


class Objective(NamedTuple):
    """What --objective makes largest or smallest."""

    metric: str
    sign: int
    """1: more is better; -1: less is."""
    words: str


OBJECTIVES: Mapping[str, Objective] = {
    "tokens": Objective("output_tokens_per_s", 1, "the most output tokens per second"),
    "latency": Objective("e2e_mean", -1, "the shortest requests"),
    "context": Objective("kv_cache_tokens", 1, "the longest context"),
    "energy": Objective("energy_j_per_output_token", -1, "the least energy per token"),
}
UNKNOWN = Estimate(0, None)


@dataclass(frozen=True, slots=True)
class Question:
    users: int | None = None
    """Concurrent users; None: each configuration at its best measured concurrency."""
    limits: tuple[Limit, ...] = ()
    """Each must hold under every scenario."""
    context: int | None = None
    """Tokens that one request must be able to hold."""
    weights: Mapping[str, float] | None = None
    """Scenario -> weight; None: all alike."""
    objective: str = "tokens"


class Standing(IntEnum):
    """How a configuration stands to the question, best first. From UNMEASURED on it is an answer only for want of
    a better one."""

    SHOWN = 0
    """Every limit is shown to hold."""
    OPEN = 1
    """Every figure is within its limit, but not every limit is shown to hold."""
    DOUBTFUL = 2
    """A figure is beyond its limit, but the limit is not shown to be broken."""
    UNMEASURED = 3
    """Not measured at so many users; its figures are those of the nearest measured load."""
    FAILING = 4
    """Requests failed there."""
    OUT = 5
    """A limit is shown to be broken, or there is nothing to decide by."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration with its figures at the users asked for."""

    config_id: str
    standing: Standing
    reason: str = ""
    """Why it does not stand better."""
    users: int | None = None
    objective: Estimate = UNKNOWN
    expected: Mapping[str, Estimate] = field(default_factory=dict)
    readings: tuple[Reading, ...] = ()
    limits: tuple[LimitState, ...] = ()
    utilization: float | None = None
    unmeasured: Workload | None = None
    """The workload whose points are missing."""

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(level for reading in self.readings for level in reading.levels)

    @property
    def facts(self) -> dict[str, float]:
        """Capacity and VRAM over all its readings: smallest capacities, largest uses."""
        return facts_of(point for level in self.levels for point in level.points)

    @property
    def misses(self) -> tuple[LimitState, ...]:
        return tuple(state for state in self.limits if state.misses or state.verdict == "broken")

    @property
    def worst(self) -> LimitState:
        """The limit that it misses by most; only where it misses one."""
        return max(self.misses, key=lambda state: state.limit.excess(state.value or 0.0))

    @property
    def distance(self) -> float:
        """How far the worst missed limit is, as a share; infinite when it is out for another reason."""
        beyond = [state.limit.excess(state.value) for state in self.misses if state.value is not None]
        return max(beyond, default=float("inf"))

    def signed(self, objective: str) -> float:
        """Its objective so that more is better; -inf where it is not known."""
        if self.objective.value is None:
            return float("-inf")
        return OBJECTIVES[objective].sign * self.objective.value


def judge(run: Run, config_id: str, question: Question, curves: Sequence[Curve]) -> Candidate:
    """One configuration of the run, by its curve under each workload."""
    failure = run.failures.get(config_id)
    if failure is not None:
        advice = f" ({failure['advice']})" if failure.get("advice") else ""
        return Candidate(config_id, Standing.OUT, f"failed: {failure.get('class')}: {failure.get('evidence')}{advice}")
    rows = run.points[run.points["config_id"] == config_id]
    broken = rows.loc[rows["invalid_reason"].astype("string").str.contains(BROKEN, na=False), "invalid_reason"]
    if len(broken):
        return Candidate(config_id, Standing.OUT, str(broken.iloc[0]))
    for curve in curves:
        if not curve.levels:
            reason = _why_unmeasured(rows, curve.workload)
            return Candidate(config_id, Standing.OUT, reason, unmeasured=curve.workload)
    judged = _Judge(config_id, curves, question, requests_under(run.path), _utilization(rows))
    if question.users is not None:
        return judged.at(question.users)
    shared = set.intersection(*({level.concurrency for level in curve.levels} for curve in curves))
    if not shared:
        return Candidate(config_id, Standing.OUT, "its scenarios share no measured concurrency")
    found = [judged.at(users) for users in sorted(shared)]
    return min(
        found,
        key=lambda c: (c.standing, c.distance if c.standing == Standing.OUT else 0.0, -c.signed(question.objective)),
    )


def _utilization(rows: pd.DataFrame) -> float | None:
    known = rows["gpu_memory_utilization"].dropna()
    return float(known.iloc[0]) if len(known) else None


def _why_unmeasured(rows: pd.DataFrame, workload: Workload) -> str:
    measured = rows_under(rows, workload)
    reasons = list(dict.fromkeys(measured["invalid_reason"].dropna().astype(str)))
    if len(measured):
        return f"no valid point for {workload}: {'; '.join(reasons) or 'no reason given'}"
    return f"no point for {workload}"


@dataclass(frozen=True, slots=True)
class _Judge:
    """What is the same for a configuration at every number of users."""

    config_id: str
    curves: Sequence[Curve]
    question: Question
    requests_of: RequestsOf
    utilization: float | None

    def at(self, users: int) -> Candidate:
        """The configuration at so many users."""
        readings, beyond = [], None
        for curve in self.curves:
            reading = curve.at(users)
            if reading is None:
                beyond = beyond or curve
                reading = curve.nearest(users)
            readings.append(reading)
        found = Candidate(
            self.config_id,
            Standing.SHOWN,
            users=users,
            expected=mixed(readings),
            readings=tuple(readings),
            utilization=self.utilization,
        )
        found = replace(found, objective=self._objective(found), limits=self._limits(found))
        standing, reason = self._standing(found, beyond)
        return replace(
            found, standing=standing, reason=reason, unmeasured=beyond.workload if beyond is not None else None
        )

    def _standing(self, found: Candidate, beyond: Curve | None) -> tuple[Standing, str]:
        context = self._context(found)
        if context:
            return Standing.OUT, context
        if found.objective.value is None:
            return Standing.OUT, f"{OBJECTIVES[self.question.objective].metric} is not known"
        broken = [str(state) for state in found.limits if state.verdict == "broken"]
        # what breaks a limit at fewer users breaks it at more, but not the other way round
        if broken and (beyond is None or all(level.concurrency <= (found.users or 0) for level in found.levels)):
            return Standing.OUT, "; ".join(broken)
        for reading in found.readings:
            for level in reading.levels:
                if level.requests_failed:
                    where = f"at {level.concurrency} streams of {reading.workload}"
                    return Standing.FAILING, f"{level.requests_failed} requests failed {where}"
        if beyond is not None:
            words = (
                f"{beyond.workload} was measured at {beyond.measured()} streams only; {found.users} lies beyond them"
            )
            return Standing.UNMEASURED, words
        if found.misses:
            return Standing.DOUBTFUL, "; ".join(map(str, found.misses))
        still_open = [str(state) for state in found.limits if state.verdict == "open"]
        return (Standing.OPEN, "; ".join(still_open)) if still_open else (Standing.SHOWN, "")

    def _context(self, found: Candidate) -> str:
        wanted, held = self.question.context, found.facts.get("kv_cache_tokens")
        if wanted is None or (held is not None and held >= wanted):
            return ""
        if held is None:
            return f"whether {wanted:,} tokens fit is not known (no kv_cache_tokens)"
        return f"kv_cache_tokens is {show(held, 'tokens')} where {show(wanted, 'tokens')} is asked for (one request)"

    def _objective(self, found: Candidate) -> Estimate:
        key = OBJECTIVES[self.question.objective].metric
        if key in METRICS:
            return found.expected[key]
        value = found.facts.get(key)
        # a capacity is a count of the server's, not a sample: it has no uncertainty
        return Estimate(2, value, 0.0) if value is not None else Estimate(0, None)

    def _limits(self, found: Candidate) -> tuple[LimitState, ...]:
        return tuple(
            self._limit(limit, reading, found.users) for reading in found.readings for limit in self.question.limits
        )

    def _limit(self, limit: Limit, reading: Reading, users: int | None) -> LimitState:
        """Between two measured loads a limit is shown where it is at the heavier one, broken where it is at the
        lighter one. Where neither every request nor the percentiles settle it, the interval over repeats does."""
        where = f"{reading.workload} at {users} users"
        if reading.interpolated:
            where += f", as measured at {reading.levels[-1].concurrency} streams"
        estimate = reading.estimates[limit.key]
        tests = [pooled_test(limit, level.points, self.requests_of) for level in reading.levels]
        heavier, lighter = tests[-1], tests[0]
        unsettled = heavier is None or lighter is None
        if heavier is not None and not heavier.exact and heavier.verdict == "open":
            unsettled = unsettled or estimate.low is not None
        if heavier is None or lighter is None or unsettled:
            return LimitState(limit, where, estimate.value, estimate_verdict(limit, estimate))
        verdict = "broken" if lighter.verdict == "broken" else heavier.verdict
        if verdict == "broken" and lighter.verdict != "broken":
            verdict = "open"
        return LimitState(limit, where, estimate.value, verdict, heavier)

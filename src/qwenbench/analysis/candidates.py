"""Which configurations of a run may be recommended at all, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.levels import Curve, Reading, Workload, mixed, rows_under
from qwenbench.analysis.limits import Limit, show
from qwenbench.analysis.point import BROKEN
from qwenbench.analysis.run import Run

OBJECTIVES: Mapping[str, str] = {
    "tokens": "output_tokens_per_s",
    "latency": "e2e_mean",
    "context": "kv_cache_tokens",
    "energy": "energy_j_per_output_token",
}
"""What --objective makes largest or smallest."""
SHARE_WITHIN = 0.99
"""Share of the requests that must meet limits on every request."""
HIGHER_IS_BETTER = frozenset({"tokens", "context"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a run."""

    users: int | None = None
    """Concurrent users; None: each configuration at its best measured concurrency."""
    limits: tuple[Limit, ...] = ()
    """Each must hold under every scenario."""
    context: int | None = None
    """Tokens that one request must be able to hold."""
    weights: Mapping[str, float] | None = None
    """Scenario -> weight; None: all alike."""
    objective: str = "tokens"


@dataclass(frozen=True, slots=True)
class Miss:
    """A limit that a configuration is beyond."""

    key: str
    value: float
    bound: float
    excess: float
    """As a share of the limit."""
    uncertain: bool
    """Its 95 % interval holds the limit, or it has none."""
    where: str

    def __str__(self) -> str:
        unit = METRICS[self.key].unit if self.key in METRICS else "tokens"
        return f"{self.key} is {show(self.value, unit)} where {show(self.bound, unit)} is asked for ({self.where})"


@dataclass(frozen=True, slots=True)
class Excluded:
    """A configuration that is out, and why."""

    config_id: str
    reason: str
    misses: tuple[Miss, ...] = ()
    users: int | None = None
    objective: Estimate | None = None
    expected: Mapping[str, Estimate] | None = None
    readings: tuple[Reading, ...] = ()
    unmeasured: Workload | None = None
    """The workload whose points are missing: nothing is known against the configuration."""

    @property
    def distance(self) -> float:
        """How far the worst missed limit is, as a share; infinite when it is out for another reason."""
        return max((miss.excess for miss in self.misses), default=float("inf"))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that may be recommended, with its figures at the users asked for."""

    config_id: str
    users: int
    objective: Estimate
    expected: Mapping[str, Estimate]
    readings: tuple[Reading, ...]
    limits: tuple[Limit, ...]

    @property
    def facts(self) -> dict[str, float]:
        """Capacity and VRAM over all its readings: smallest capacities, largest uses."""
        found: dict[str, list[float]] = {}
        for reading in self.readings:
            for level in reading.levels:
                for name, value in level.facts.items():
                    found.setdefault(name, []).append(value)
        return {n: min(v) if n.startswith(("kv_", "requests_")) else max(v) for n, v in found.items()}

    @property
    def close_limits(self) -> list[Limit]:
        """Limits that it meets, but which its 95 % interval reaches under some scenario."""
        return [
            limit
            for limit in self.limits
            if any(_interval_holds(reading.estimates[limit.key], limit.bound) for reading in self.readings)
        ]


def judge(run: Run, config_id: str, question: Question, curves: Sequence[Curve]) -> Candidate | Excluded:
    """One configuration of the run, by its curve under each workload: a candidate, or why it is none."""
    failure = run.failures.get(config_id)
    if failure is not None:
        advice = f" ({failure['advice']})" if failure.get("advice") else ""
        return Excluded(config_id, f"failed: {failure.get('class')}: {failure.get('evidence')}{advice}")
    rows = run.points[run.points["config_id"] == config_id]
    broken = rows.loc[rows["invalid_reason"].astype("string").str.contains(BROKEN, na=False), "invalid_reason"]
    if len(broken):
        return Excluded(config_id, str(broken.iloc[0]))
    for curve in curves:
        if not curve.levels:
            return Excluded(config_id, _why_unmeasured(rows, curve.workload), unmeasured=curve.workload)
    slo = measured_slo(run)
    if question.users is not None:
        return _judge_at(config_id, question.users, curves, question, slo)
    shared = set.intersection(*({level.concurrency for level in curve.levels} for curve in curves))
    if not shared:
        return Excluded(config_id, "its scenarios share no measured concurrency")
    return _best([_judge_at(config_id, users, curves, question, slo) for users in sorted(shared)], question)


def measured_slo(run: Run) -> dict[str, float]:
    """The per-request limits (ms) that the run's goodput was counted with."""
    options = run.meta.get("options")
    slo = options.get("slo") if isinstance(options, Mapping) else None
    return {str(name): float(limit) for name, limit in slo.items()} if isinstance(slo, Mapping) else {}


def _why_unmeasured(rows: pd.DataFrame, workload: Workload) -> str:
    measured = rows_under(rows, workload)
    reasons = list(dict.fromkeys(measured["invalid_reason"].dropna().astype(str)))
    if len(measured):
        return f"no valid point for {workload}: {'; '.join(reasons) or 'no reason given'}"
    return f"no point for {workload}"


def _best(found: Sequence[Candidate | Excluded], question: Question) -> Candidate | Excluded:
    candidates = [item for item in found if isinstance(item, Candidate)]
    if candidates:
        return max(candidates, key=lambda c: signed(c.objective, question.objective))
    return min((item for item in found if isinstance(item, Excluded)), key=lambda e: e.distance)


def signed(objective: Estimate, name: str) -> float:
    """The objective so that more is better."""
    value = objective.value if objective.value is not None else float("nan")
    return value if name in HIGHER_IS_BETTER else -value


def _judge_at(
    config_id: str, users: int, curves: Sequence[Curve], question: Question, measured_slo: Mapping[str, float]
) -> Candidate | Excluded:
    readings = []
    for curve in curves:
        reading = curve.at(users)
        if reading is None:
            reason = f"{curve.workload} was measured at {curve.measured()} streams only; {users} lies beyond them"
            return Excluded(config_id, reason, users=users, unmeasured=curve.workload)
        readings.append(reading)
    for reading in readings:
        for level in reading.levels:
            if level.requests_failed:
                where = f"at {level.concurrency} streams of {reading.workload}"
                return Excluded(config_id, f"{level.requests_failed} requests failed {where}", users=users)
    expected = mixed(readings)
    candidate = Candidate(config_id, users, Estimate(0, None), expected, tuple(readings), question.limits)
    objective = _objective(candidate, question.objective)
    unknown, misses = _check(candidate, question, measured_slo)
    if unknown:
        return Excluded(config_id, unknown, users=users)
    if objective.value is None:
        return Excluded(config_id, f"{OBJECTIVES[question.objective]} is not known", users=users)
    if misses:
        reason = "; ".join(map(str, misses))
        return Excluded(config_id, reason, tuple(misses), users, objective, expected, tuple(readings))
    return Candidate(config_id, users, objective, expected, tuple(readings), question.limits)


def _objective(candidate: Candidate, name: str) -> Estimate:
    key = OBJECTIVES[name]
    if key in METRICS:
        return candidate.expected[key]
    value = candidate.facts.get(key)
    # a capacity is a count of the server's, not a sample: it has no uncertainty
    return Estimate(2, value, 0.0) if value is not None else Estimate(0, None)


def _check(candidate: Candidate, question: Question, slo: Mapping[str, float]) -> tuple[str | None, list[Miss]]:
    """What is not known but asked for, and the limits that are missed.

    A limit on every request whose p99 is not known (under 100 requests) is judged by the goodput that the run
    counted, where that was with this very limit.
    """
    misses: list[Miss] = []
    if question.context is not None:
        held = candidate.facts.get("kv_cache_tokens")
        if held is None:
            return f"whether {question.context:,} tokens fit is not known (no kv_cache_tokens)", []
        if held < question.context:
            excess = (question.context - held) / question.context
            misses.append(Miss("kv_cache_tokens", held, question.context, excess, False, "one request"))
    for limit, reading in _pairs(candidate.readings, question.limits):
        estimate = reading.estimates[limit.key]
        if estimate.value is None and limit.per_request and slo.get(limit.per_request) == limit.bound:
            goodput, rate = (reading.estimates[key].value for key in ("goodput_rps", "requests_per_s"))
            if goodput is not None and rate:
                misses += _missed_goodput(goodput, SHARE_WITHIN * rate, reading, candidate.users)
                continue
        if estimate.value is None:
            hint = ": it needs 100 requests a point" if limit.key.endswith("_p99") else ""
            return f"{limit.key} of {reading.workload} is not known{hint}", []
        if not limit.met_by(estimate.value):
            uncertain = estimate.half_width is None or _interval_holds(estimate, limit.bound)
            where = f"{reading.workload} at {candidate.users} users"
            excess = limit.excess(estimate.value)
            misses.append(Miss(limit.key, estimate.value, limit.bound, excess, uncertain, where))
    return None, misses


def _missed_goodput(goodput: float, needed: float, reading: Reading, users: int) -> list[Miss]:
    if goodput >= needed:
        return []
    where = f"{SHARE_WITHIN:.0%} of the requests within --slo, {reading.workload} at {users} users"
    miss = Miss("goodput_rps", goodput, needed, (needed - goodput) / needed, False, where)
    return [miss]


def _pairs(readings: Sequence[Reading], limits: Sequence[Limit]) -> Iterator[tuple[Limit, Reading]]:
    return ((limit, reading) for reading in readings for limit in limits)


def _interval_holds(estimate: Estimate, bound: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= bound <= estimate.high

"""Which configuration of a run to deploy, how sure that is, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from qwenbench.analysis.candidates import OBJECTIVES, Candidate, Excluded, Question, judge, signed
from qwenbench.analysis.columns import METRICS
from qwenbench.analysis.intervals import Estimate, critical
from qwenbench.analysis.levels import Curve, Reading, Workload, curves_of, workloads_of
from qwenbench.analysis.limits import show
from qwenbench.analysis.run import Run
from qwenbench.engine.docker.deploy import DeployLines, deploy_lines
from qwenbench.errors import UsageError

MIN_REPEATS = 3
"""Repeats from which an interval is worth something."""
MOST_REPEATS = 30
"""More than this are not proposed: such a difference does not matter."""
_SHOWN_FACTS = ("kv_cache_gib", "kv_cache_tokens", "requests_that_fit", "vram_peak_mib", "startup_s")


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """The next best configuration."""

    config_id: str
    expected: Mapping[str, Estimate]
    to_win: str
    """What would have to change for it to be the answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to deploy. `config_id` is None when nothing qualifies; then `nearest_miss` says what came closest."""

    question: Question
    config_id: str | None
    users: int | None
    expected: Mapping[str, Estimate]
    runner_up: RunnerUp | None
    decided: bool
    would_decide: tuple[Mapping[str, Any], ...]
    excluded: Mapping[str, str]
    nearest_miss: str | None
    simulated: bool
    risks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    headroom: Mapping[str, float] = field(default_factory=dict)
    """Limit -> room left as a share of it; requests_that_fit -> requests beyond the users."""
    lines: DeployLines = field(default_factory=DeployLines)

    def to_json(self) -> dict[str, Any]:
        """The object of `recommend --json`."""
        runner_up = self.runner_up
        return {
            "config_id": self.config_id,
            "docker_bash": self.lines.bash,
            "docker_powershell": self.lines.powershell,
            "compose": self.lines.compose,
            "expected": _figures(self.expected),
            "runner_up": runner_up
            and {
                "config_id": runner_up.config_id,
                "to_win": runner_up.to_win,
                "expected": _figures(runner_up.expected),
            },
            "decided": self.decided,
            "would_decide": [dict(point) for point in self.would_decide],
            "excluded": dict(self.excluded),
            "nearest_miss": self.nearest_miss,
            "users": self.users,
            "objective": self.question.objective,
            "limits": [str(limit) for limit in self.question.limits],
            "context": self.question.context,
            "headroom": dict(self.headroom),
            "risks": list(self.risks),
            "notes": list(self.notes),
            "simulated": self.simulated,
        }


def _figures(expected: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        key: {"value": estimate.value, "low": estimate.low, "high": estimate.high}
        for key, estimate in expected.items()
        if estimate.value is not None
    }


def recommend(run: Run, question: Question) -> Answer:
    """The configuration that does best by the objective among those that meet every limit.

    Needs run.json, points.csv and servers/*/launch.json only. Raises UsageError when the run has no closed-loop
    points or not the scenarios asked for.
    """
    points = _closed_loop(run, question)
    workloads = workloads_of(points, question.weights or {})
    names = list(dict.fromkeys([*run.points["config_id"].astype(str), *run.launches, *run.failures]))
    curves = curves_of(points, workloads)
    judged = [
        judge(run, name, question, [curves.get((name, workload), Curve(workload, ())) for workload in workloads])
        for name in names
    ]
    candidates = sorted(
        (item for item in judged if isinstance(item, Candidate)), key=lambda c: _rank(c, question), reverse=True
    )
    excluded = [item for item in judged if isinstance(item, Excluded)]
    reasons = {item.config_id: item.reason for item in excluded}
    near = min((item for item in excluded if item.misses), key=lambda e: e.distance, default=None)
    if not candidates:
        miss = f"{near.config_id}: {near.reason}" if near else None
        return Answer(question, None, question.users, {}, None, False, (), reasons, miss, run.simulated)
    winner = candidates[0]
    second = candidates[1] if len(candidates) > 1 else None
    doubts = _doubts(winner, second, excluded, question)
    return Answer(
        question=question,
        config_id=winner.config_id,
        users=winner.users,
        expected={**winner.expected, **_capacity(winner)},
        runner_up=_runner_up(winner, second, near, question),
        decided=not doubts,
        would_decide=tuple(_would_decide(winner, second, excluded, question)) if doubts else (),
        excluded=reasons,
        nearest_miss=f"{near.config_id}: {near.reason}" if near else None,
        simulated=run.simulated,
        risks=tuple(_risks(winner)),
        notes=tuple(doubts + _notes(winner, question, len(judged))),
        headroom=_headroom(winner),
        lines=deploy_lines(run.launches.get(winner.config_id, {})),
    )


def _closed_loop(run: Run, question: Question) -> pd.DataFrame:
    points = run.points
    if not len(points) or not points["concurrency"].notna().any():
        raise UsageError(f"{run.path}: no closed-loop points: recommend reads concurrencies. Sweep with --concurrency.")
    points = points[points["concurrency"].notna()]
    known = list(dict.fromkeys(points["scenario"].astype(str)))
    for name in question.weights or {}:
        if name not in known:
            raise UsageError(f"--scenario {name!r}: not in this run. It has {', '.join(known)}.")
    return points


def _rank(candidate: Candidate, question: Question) -> tuple[float, bool, float, float]:
    """By the objective; of equals the one without a risk, then with the larger KV cache, then the quicker one."""
    facts = candidate.facts
    tokens = candidate.expected["output_tokens_per_s"].value or 0.0
    return (
        signed(candidate.objective, question.objective),
        not _risks(candidate),
        facts.get("kv_cache_gib", 0.0),
        tokens,
    )


def _doubts(winner: Candidate, second: Candidate | None, excluded: Sequence[Excluded], question: Question) -> list[str]:
    """Why the answer is not sure; empty when it is."""
    doubts = []
    if second is not None and not _apart(winner.objective, second.objective):
        doubts.append(_overlap(winner, second, question))
    doubts += [f"{limit} is met, but the 95 % interval reaches beyond it" for limit in winner.close_limits]
    doubts += [
        f"{rival.config_id} would do better, and may be within the limits: {rival.reason}"
        for rival in _uncertain_rivals(winner, excluded, question)
    ]
    unmeasured = [item.config_id for item in excluded if item.unmeasured]
    if unmeasured:
        doubts.append(f"nothing was measured there, for or against: {', '.join(unmeasured)}")
    return doubts


def _uncertain_rivals(winner: Candidate, excluded: Sequence[Excluded], question: Question) -> list[Excluded]:
    """Configurations out by a hair that would win by the objective."""
    return [
        item
        for item in excluded
        if item.misses
        and item.objective is not None
        and all(miss.uncertain and miss.excess <= 0.1 for miss in item.misses)
        and signed(item.objective, question.objective) > signed(winner.objective, question.objective)
    ]


def _apart(one: Estimate, other: Estimate) -> bool:
    """Whether two 95 % intervals do not touch."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def _overlap(winner: Candidate, second: Candidate, question: Question) -> str:
    key = OBJECTIVES[question.objective]
    if winner.objective.value == second.objective.value:
        return f"{winner.config_id} and {second.config_id} have the same {key}"
    if winner.objective.low is None or second.objective.low is None:
        return f"undecided against {second.config_id}: one repeat is only indicative of {key}"
    if repeats_to_part(winner.objective, second.objective) is None:
        return f"undecided against {second.config_id}: {key} differs too little for {MOST_REPEATS} repeats to show"
    return f"undecided against {second.config_id}: the 95 % intervals of {key} overlap"


def _would_decide(
    winner: Candidate, second: Candidate | None, excluded: Sequence[Excluded], question: Question
) -> list[dict[str, Any]]:
    """Load points whose repeats would settle the doubts."""
    rivals: list[Candidate | Excluded] = list(_uncertain_rivals(winner, excluded, question))
    repeats = MIN_REPEATS
    if second is not None and not _apart(winner.objective, second.objective):
        needed = repeats_to_part(winner.objective, second.objective)
        if needed is not None:
            rivals.append(second)
            repeats = needed
    points = [
        _point(item.config_id, reading.workload, item.users or winner.users, max(repeats, _repeats_of(reading) + 1))
        for item in ([winner, *rivals] if rivals or winner.close_limits else [])
        for reading in item.readings
    ]
    return points + [
        _point(item.config_id, item.unmeasured, item.users or winner.users, 1) for item in excluded if item.unmeasured
    ]


def _point(config_id: str, workload: Workload, users: int, repeats: int) -> dict[str, Any]:
    return {
        "config_id": config_id,
        "scenario": workload.scenario,
        "profile": workload.profile,
        "concurrency": users,
        "repeats": repeats,
    }


def _repeats_of(reading: Reading) -> int:
    if reading.interpolated:
        return 0
    return reading.levels[0].estimates["output_tokens_per_s"].n


def repeats_to_part(one: Estimate, other: Estimate) -> int | None:
    """Repeats of each from which two 95 % intervals would part if spread and difference stay as they are.

    MIN_REPEATS where the spread is not known; None when MOST_REPEATS are not enough or the values are equal.
    """
    if one.value is None or other.value is None or one.value == other.value:
        return None
    if one.se is None or other.se is None:
        return MIN_REPEATS
    spread = one.se * math.sqrt(one.n) + other.se * math.sqrt(other.n)
    difference = abs(one.value - other.value)
    for repeats in range(MIN_REPEATS, MOST_REPEATS + 1):
        if critical(repeats - 1) * spread / math.sqrt(repeats) < difference:
            return repeats
    return None


def _runner_up(
    winner: Candidate, second: Candidate | None, near: Excluded | None, question: Question
) -> RunnerUp | None:
    if second is not None:
        return RunnerUp(second.config_id, second.expected, _to_win(winner, second, question))
    if near is not None and near.expected is not None:
        changes = "; ".join(
            f"{miss.key} would have to {'rise' if miss.value < miss.bound else 'fall'} by {miss.excess:.1%}"
            for miss in near.misses
        )
        return RunnerUp(near.config_id, near.expected, changes)
    return None


def _to_win(winner: Candidate, second: Candidate, question: Question) -> str:
    key = OBJECTIVES[question.objective]
    unit = METRICS[key].unit if key in METRICS else "tokens"
    ours, theirs = winner.objective.value or 0.0, second.objective.value or 0.0
    if ours == theirs:
        return f"{key} is the same; anything that favours it would do"
    change = f" by {abs(ours / theirs - 1):.1%}" if theirs else ""
    verb = "rise" if ours > theirs else "fall"
    return f"{key} would have to {verb}{change}, from {show(theirs, unit)} to {show(ours, unit)}"


def _risks(candidate: Candidate) -> list[str]:
    facts, risks = candidate.facts, []
    over = facts.get("vram_over_budget_mib", 0.0)
    if over > 0:
        risks.append(
            f"VRAM went {over:,.0f} MiB past the budget under load: a risk of running out of memory, not a proof"
        )
    fit = facts.get("requests_that_fit")
    if fit is not None and fit < candidate.users:
        risks.append(
            f"the KV cache holds {fit:,.0f} requests of this length, the other {candidate.users - fit:,.0f} wait"
        )
    if facts.get("preemptions", 0.0) > 0:
        risks.append(f"{facts['preemptions']:,.0f} preemptions: requests lost their KV blocks and were computed again")
    return risks


def _notes(winner: Candidate, question: Question, configurations: int) -> list[str]:
    notes = [] if configurations > 1 else ["this run has one configuration: there was nothing to choose from"]
    between = {
        f"{reading.levels[0].concurrency} and {reading.levels[1].concurrency}"
        for reading in winner.readings
        if reading.interpolated
    }
    if between:
        notes.append(
            f"interpolated: {winner.users} users lie between the measured {', '.join(sorted(between))} streams"
        )
    if question.users is None:
        notes.append("no --users: each configuration at the measured concurrency at which it does best")
    if len(winner.readings) > 1:
        notes.append("expected figures are means over the scenarios by weight; limits hold in each scenario")
    return notes


def _headroom(winner: Candidate) -> dict[str, float]:
    room = {}
    for limit in winner.limits:
        values = [reading.estimates[limit.key].value for reading in winner.readings]
        known = [-limit.excess(value) for value in values if value is not None]
        if len(known) == len(values):
            room[limit.key] = min(known)
    fit = winner.facts.get("requests_that_fit")
    return room if fit is None else room | {"requests_that_fit": fit - winner.users}


def _capacity(winner: Candidate) -> dict[str, Estimate]:
    facts = winner.facts
    return {name: Estimate(1, facts[name]) for name in _SHOWN_FACTS if name in facts}

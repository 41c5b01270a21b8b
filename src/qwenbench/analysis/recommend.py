"""Which configuration of a run to deploy, how sure that is, and what would decide it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from qwenbench.analysis.candidates import OBJECTIVES, Candidate, Question, Standing, judge
from qwenbench.analysis.columns import METRICS, in_words
from qwenbench.analysis.deciding import MissingPoints, deciding_command, doubts_of, points_that_decide, repeats_within
from qwenbench.analysis.intervals import Estimate
from qwenbench.analysis.levels import Curve, curves_of, workloads_of
from qwenbench.analysis.limits import LimitState, show
from qwenbench.analysis.price import reach_notes
from qwenbench.analysis.run import Run
from qwenbench.analysis.spread import Spread, spread_of, start_differences, without_cold_capacities
from qwenbench.engine.deployments import find_deployment
from qwenbench.engine.docker.line import DeployLines, deploy_lines
from qwenbench.errors import UsageError
from qwenbench.runfolder.names import AT

EQUAL = 0.01
"""Objectives that differ by less than this share are equal: then the safer configuration wins."""
NARROW = 0.2
"""Half of an interval as a share of its figure, from which it says something."""
_MAIN = ("output_tokens_per_s", "ttft_p50", "tpot_p50")
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
    """What to deploy: the best that is known, decided or not.

    `config_id` is None only when every configuration is shown to break a limit, or failed; then `nearest_miss` says
    what came closest.
    """

    question: Question
    config_id: str | None
    users: int | None
    expected: Mapping[str, Estimate]
    runner_up: RunnerUp | None
    decided: bool
    would_decide: tuple[MissingPoints, ...]
    command: str | None
    """The command that measures `would_decide`; None where nothing needs to be measured, or no number of repeats
    would decide."""
    excluded: Mapping[str, str]
    nearest_miss: str | None
    simulated: bool
    limits: tuple[LimitState, ...] = ()
    """How the limits stand for the answer."""
    doubts: tuple[str, ...] = ()
    """Why it is not decided."""
    spread: str | None = None
    """Which spread between launches the intervals hold; None: every figure is of several launches."""
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
            "runner_up": runner_up and {**asdict(runner_up), "expected": _figures(runner_up.expected)},
            "decided": self.decided,
            "would_decide": [asdict(point) for point in self.would_decide],
            "would_decide_command": self.command,
            "excluded": dict(self.excluded),
            "nearest_miss": self.nearest_miss,
            "users": self.users,
            "objective": self.question.objective,
            "limits": [str(limit) for limit in self.question.limits],
            "limit_tests": [_limit_json(state) for state in self.limits],
            "context": self.question.context,
            "headroom": dict(self.headroom),
            "doubts": list(self.doubts),
            "spread": self.spread,
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


def _limit_json(state: LimitState) -> dict[str, Any]:
    test = state.test
    return {
        "limit": state.limit.key,
        "bound": state.limit.bound,
        "where": state.where,
        "value": state.value,
        "verdict": state.verdict,
        "requests": test.trials if test else None,
        "within": test.within if test and test.within == test.within_most else None,
        "further_requests": state.further if state.verdict == "open" else None,
    }


def recommend(run: Run, question: Question) -> Answer:
    """The configuration that does best by the objective among those that stand best to the limits.

    Needs run.json, points.csv and servers/*/launch.json only; request records make the limits' tests exact. Raises
    UsageError when the run has no closed-loop points or not the scenarios asked for.
    """
    points = _closed_loop(run, question)
    workloads = workloads_of(points, question.weights or {})
    names = list(dict.fromkeys([*run.points["config_id"].astype(str), *run.launches, *run.failures]))
    spread = spread_of(run)
    cold = start_differences(run)
    curves = curves_of(without_cold_capacities(points, cold), workloads, spread)

    def judged_for(question: Question) -> list[Candidate]:
        of = {name: [curves.get((name, workload), Curve(workload, ())) for workload in workloads] for name in names}
        return [judge(run, name, question, of[name]) for name in names]

    judged = judged_for(question)
    standing = sorted((c for c in judged if c.standing < Standing.OUT), key=lambda c: _order(c, question))
    reasons = {c.config_id: c.reason for c in judged if c.standing > Standing.OPEN}
    near = min(
        (c for c in judged if c.misses and c.objective.value is not None), key=lambda c: c.distance, default=None
    )
    nearest = f"{near.config_id}: {near.worst}" if near else None
    if not standing:
        fewer = [c for c in judged_for(replace(question, users=None)) if c.standing <= Standing.OPEN]
        if nearest and fewer and question.users is not None:
            holds = min(fewer, key=lambda c: _order(c, question))
            nearest += (
                f". At {holds.users} users {holds.config_id} is within every limit: ask with --users {holds.users}"
            )
        return Answer(question, None, question.users, {}, None, False, (), None, reasons, nearest, run.simulated)
    winner = _safest(standing)
    named = winner.config_id.partition(AT)[0]
    # the same configuration on another machine is no other choice
    rivals = [c for c in standing if c.config_id.partition(AT)[0] != named]
    doubts = list(doubts_of(winner, rivals, judged, question))
    missing = points_that_decide(winner, rivals, judged, question) if doubts else []
    once = spread.launch > 0 and any(level.launches == 1 for level in winner.levels)
    return Answer(
        question=question,
        config_id=winner.config_id,
        users=question.users or winner.users,
        expected={**winner.expected, **_capacity(winner)},
        runner_up=_runner_up(winner, rivals, near, question),
        decided=not doubts,
        would_decide=tuple(missing),
        command=deciding_command(run, missing),
        excluded={name: reason for name, reason in reasons.items() if name != winner.config_id},
        nearest_miss=nearest,
        simulated=run.simulated,
        limits=winner.limits,
        doubts=tuple(doubts),
        spread=spread.source if once else None,
        risks=tuple(_risks(winner)),
        notes=(
            *doubts,
            *_notes(winner, question, len(judged), spread if once else None),
            *reach_notes(run.points, winner.config_id, winner.users),
            *((str(interval),) if (interval := run.meta.get("simulated_interval")) else ()),
            *(str(found) for found in cold if found.config_id == winner.config_id),
        ),
        headroom=_headroom(winner),
        lines=lines_of(run, winner.config_id),
    )


def lines_of(run: Run, config_id: str) -> DeployLines:
    """How to deploy a configuration of the run, with the version that was measured and the deployment's own port."""
    version = run.ledgers.get(config_id, {}).get("vllm_version") or run.part("versions").get("vllm")
    deployment, port = run.part("options").get("deployment"), None
    if deployment:
        with suppress(UsageError):  # a file of the sweep's machine that is not here
            port = find_deployment(str(deployment)).port  # that of the sweep was where there was room
    return deploy_lines(run.launches.get(config_id, {}), vllm_version=str(version) if version else None, port=port)


def _order(candidate: Candidate, question: Question) -> tuple[Any, ...]:
    """Best first: by standing, then by the objective; of what was not measured there, by what came nearest."""
    return (candidate.standing, -candidate.signed(question.objective))


def _safest(standing: Sequence[Candidate]) -> Candidate:
    """Of the best and those equal to it the one with the fewest risks, the lower utilisation, less VRAM over budget."""
    best = standing[0]
    first = best.objective.value or 0.0
    equal = [
        c
        for c in standing
        if c.standing == best.standing and abs((c.objective.value or 0.0) - first) <= EQUAL * abs(first)
    ]
    return min(equal, key=_risk)


def _risk(candidate: Candidate) -> tuple[Any, ...]:
    facts = candidate.facts
    utilization = candidate.utilization if candidate.utilization is not None else 1.0
    over = max(0.0, facts.get("vram_over_budget_mib", 0.0))
    tokens = candidate.expected["output_tokens_per_s"].value or 0.0
    return (bool(_risks(candidate)), utilization, over, -facts.get("kv_cache_gib", 0.0), -tokens)


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


def _runner_up(
    winner: Candidate, rivals: Sequence[Candidate], near: Candidate | None, question: Question
) -> RunnerUp | None:
    second = next((c for c in rivals if c.standing <= Standing.DOUBTFUL), None)
    if second is not None and second.standing == winner.standing:
        return RunnerUp(second.config_id, second.expected, _to_win(winner, second, question))
    other = second or near
    if other is None or not other.expected or other.config_id.partition(AT)[0] == winner.config_id.partition(AT)[0]:
        return None
    changes = [_change(state) for state in other.misses if state.value is not None]
    return RunnerUp(
        other.config_id, other.expected, "; ".join(changes) or f"its limits would have to be shown ({other.reason})"
    )


def _change(state: LimitState) -> str:
    """What would have to happen to a missed limit's figure. A share may be short of requests while the figure is
    within the limit: then the share is told."""
    if not state.misses or state.value is None:
        return f"more of its requests would have to be within {state.limit}"
    verb = "rise" if state.value < state.limit.bound else "fall"
    return f"{in_words(state.limit.key)} would have to {verb} by {abs(state.limit.excess(state.value)):.1%}"


def _to_win(winner: Candidate, second: Candidate, question: Question) -> str:
    key = OBJECTIVES[question.objective].metric
    unit = METRICS[key].unit if key in METRICS else "tokens"
    ours, theirs = winner.objective.value or 0.0, second.objective.value or 0.0
    if abs(ours - theirs) <= EQUAL * abs(ours):
        same = f"{in_words(key)} is the same within {EQUAL:.0%} ({show(theirs, unit)})"
        return f"anything in its favour would do: {same}, and {winner.config_id} is the safer of the two"
    change = f" by {abs(ours / theirs - 1):.1%}" if theirs else ""
    verb = "rise" if ours > theirs else "fall"
    return f"{in_words(key)} would have to {verb}{change}, from {show(theirs, unit)} to {show(ours, unit)}"


def _risks(candidate: Candidate) -> list[str]:
    facts, risks = candidate.facts, []
    over = facts.get("vram_over_budget_mib", 0.0)
    if over > 0:
        risks.append(
            f"VRAM went {over:,.0f} MiB past the budget under load: a risk of running out of memory, not a proof"
        )
    fit = facts.get("requests_that_fit")
    if fit is not None and candidate.users is not None and fit < candidate.users:
        risks.append(
            f"the KV cache holds {fit:,.0f} requests of this length, the other {candidate.users - fit:,.0f} wait"
        )
    if facts.get("preemptions", 0.0) > 0:
        risks.append(f"{facts['preemptions']:,.0f} preemptions: requests lost their KV blocks and were computed again")
    return risks


def _notes(winner: Candidate, question: Question, configurations: int, spread: Spread | None) -> Iterator[str]:
    if spread is not None:
        yield f"launched once: the intervals hold {spread.source}"
    yield from _too_wide(winner)
    if configurations == 1:
        yield "this run has one configuration: there was nothing to choose from"
    between = {
        f"{reading.levels[0].concurrency} and {reading.levels[1].concurrency}"
        for reading in winner.readings
        if reading.interpolated
    }
    if between:
        yield f"interpolated: {winner.users} users lie between the measured {', '.join(sorted(between))} streams"
    if question.users is None:
        yield "no --users: each configuration at the measured concurrency at which it does best"
    if len(winner.readings) > 1:
        yield "expected figures are means over the scenarios by weight; limits hold in each scenario"


def _too_wide(winner: Candidate) -> Iterator[str]:
    """Which of the main figures' intervals reach 0, and how many launches would do better."""
    wide = [key for key in _MAIN if (found := winner.expected.get(key)) and found.value and found.low == 0.0]
    if not wide:
        return
    needed = [repeats_within(winner.expected[key], NARROW) for key in wide]
    how = "no number of launches would help soon"
    if None not in needed:
        count = max(number or 0 for number in needed)
        how = f"about {count} launches (--relaunch-repeats) would bring them within {NARROW:.0%}"
    measured = min(winner.expected[key].n for key in wide)
    yield f"{measured} measurements say little: the intervals of {', '.join(map(in_words, wide))} reach 0; {how}"


def _headroom(winner: Candidate) -> dict[str, float]:
    room: dict[str, float] = {}
    for state in winner.limits:
        if state.value is not None:
            left = -state.limit.excess(state.value)
            room[state.limit.key] = min(left, room.get(state.limit.key, left))
    fit = winner.facts.get("requests_that_fit")
    return room if fit is None or winner.users is None else room | {"requests_that_fit": fit - winner.users}


def _capacity(winner: Candidate) -> dict[str, Estimate]:
    facts = winner.facts
    return {name: Estimate(1, facts[name]) for name in _SHOWN_FACTS if name in facts}

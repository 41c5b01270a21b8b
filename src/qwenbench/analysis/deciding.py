"""Why an answer is not sure yet, and which load points would settle that, in one command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qwenbench.analysis.candidates import OBJECTIVES, Candidate, Question, Standing
from qwenbench.analysis.columns import in_words
from qwenbench.analysis.intervals import Estimate, critical
from qwenbench.analysis.levels import Workload
from qwenbench.analysis.limits import LimitState
from qwenbench.analysis.run import Run
from qwenbench.engine.config import ATTACHED
from qwenbench.runfolder.damage import mapping
from qwenbench.runfolder.names import AT

MIN_REPEATS = 3
"""Repeats, or launches, from which an interval is worth something."""
MOST_REPEATS = 30
"""More than this are not proposed: such a difference does not matter."""


@dataclass(frozen=True, slots=True)
class MissingPoints:
    config_id: str
    scenario: str
    profile: str
    concurrency: int
    repeats: int
    """Of each launch, in all."""
    launches: int = 1
    """In all."""


def doubts_of(
    winner: Candidate, rivals: Sequence[Candidate], judged: Sequence[Candidate], question: Question
) -> Iterator[str]:
    """Why the answer is not sure, what could be settled first; nothing when it is."""
    if winner.standing == Standing.UNMEASURED:
        yield f"the figures are those of the nearest measured load: {winner.reason}"
    elif winner.standing == Standing.FAILING:
        yield winner.reason
    for state in winner.limits:
        if state.verdict == "open":
            yield (
                f"{state}"
                if state.test
                else f"{state.limit} is {_met(state)}, and its 95 % interval does not settle it"
            )
    serious = _serious(winner, rivals, question)
    for rival in serious:
        if rival.standing != winner.standing:
            yield f"{rival.config_id} would do better, and may be within the limits: {rival.reason}"
    equal = [rival for rival in serious if rival.standing == winner.standing]
    ties = [rival for rival in equal if _launches_to_part(winner, rival) is None]
    yield from (_overlap(winner, rival, question) for rival in equal if rival not in ties)
    unmeasured = [c.config_id for c in judged if c.unmeasured is not None and c is not winner]
    if unmeasured:
        yield f"nothing was measured there, for or against: {', '.join(unmeasured)}"
    yield from (_overlap(winner, rival, question) for rival in ties)


def _met(state: LimitState) -> str:
    return "missed" if state.misses else "met"


def _serious(winner: Candidate, rivals: Sequence[Candidate], question: Question) -> list[Candidate]:
    """Rivals that may be the better answer: as good within the intervals, or better and not shown to break a limit."""
    return [
        rival
        for rival in rivals
        if rival.standing <= Standing.DOUBTFUL
        and (
            not _apart(winner.objective, rival.objective)
            if rival.standing == winner.standing
            else rival.signed(question.objective) > winner.signed(question.objective)
        )
    ]


def _apart(one: Estimate, other: Estimate) -> bool:
    """Whether two 95 % intervals do not touch."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return False
    return one.low > other.high or other.low > one.high


def _overlap(winner: Candidate, rival: Candidate, question: Question) -> str:
    key = in_words(OBJECTIVES[question.objective].metric)
    if winner.objective.value == rival.objective.value:
        return f"{winner.config_id} and {rival.config_id} have the same {key}"
    if winner.objective.low is None or rival.objective.low is None:
        return f"undecided against {rival.config_id}: one repeat is only indicative of {key}"
    if _launches_to_part(winner, rival) is None:
        return f"undecided against {rival.config_id}: {key} differs too little for {MOST_REPEATS} launches to show"
    return f"undecided against {rival.config_id}: the 95 % intervals of {key} overlap"


def points_that_decide(
    winner: Candidate, rivals: Sequence[Candidate], judged: Sequence[Candidate], question: Question
) -> list[MissingPoints]:
    """Load points that would settle the doubts."""
    found: dict[tuple[str, Workload, int], tuple[int, int]] = {}

    def need(candidate: Candidate, workload: Workload, points: int, launches: int) -> None:
        """So many points in all, in so many launches: what settles two doubts is not added up."""
        users = question.users or candidate.users or winner.users or 1
        key = (candidate.config_id, workload, users)
        known = found.get(key, (1, 1))
        found[key] = (max(points, known[0]), max(launches, known[1]))

    serious = _serious(winner, rivals, question)
    for candidate in (winner, *serious):
        for workload, points, launches in _points_of_limits(candidate, question):
            need(candidate, workload, points, launches)
    for rival in serious:
        if rival.standing != winner.standing:
            continue
        wanted = _launches_to_part(winner, rival)
        if wanted is None:
            continue
        for candidate in (winner, rival):
            for reading in candidate.readings:
                # what differs between launches is most of it: repeats of one launch would not show it
                repeats = max(1, _measured(reading.levels[0].points)[0])
                need(candidate, reading.workload, repeats * wanted, wanted)
    for candidate in judged:
        if candidate.unmeasured is not None:
            need(candidate, candidate.unmeasured, 1, 1)
    return [
        MissingPoints(config_id, workload.scenario, workload.profile, users, math.ceil(points / launches), launches)
        for (config_id, workload, users), (points, launches) in found.items()
    ]


def _points_of_limits(candidate: Candidate, question: Question) -> Iterator[tuple[Workload, int, int]]:
    """Points and launches in all that would settle a candidate's open limits."""
    for number, reading in enumerate(candidate.readings):
        repeats, launches = _measured(reading.levels[0].points) if not reading.interpolated else (0, 0)
        for state in candidate.limits[number * len(question.limits) : (number + 1) * len(question.limits)]:
            if state.verdict != "open":
                continue
            if state.test is None or not launches:
                again = max(MIN_REPEATS, launches + 1) if launches else 1
                yield reading.workload, max(1, repeats) * again, again
            elif (wanted := _points_for(state, repeats * launches)) is not None:
                yield reading.workload, wanted, launches


def _measured(points: Sequence[Any]) -> tuple[int, int]:
    """(repeats in each launch, launches) of a level's points."""
    launches = {point.cell.launch for point in points}
    return max((point.cell.point.repeat for point in points), default=0), len(launches)


def _points_for(state: LimitState, measured: int) -> int | None:
    """Points in all that would settle an open share; None where no number would."""
    if state.test is None or state.further is None or not state.test.trials:
        return None
    return math.ceil((state.test.trials + state.further) / (state.test.trials / measured))


def _launches_to_part(winner: Candidate, rival: Candidate) -> int | None:
    """Launches of each from which their intervals would part; None where MOST_REPEATS are not enough."""
    return repeats_to_part(winner.objective, rival.objective, once=_once(winner) or _once(rival))


def _once(candidate: Candidate) -> bool:
    return any(level.launches == 1 for level in candidate.levels)


def deciding_command(run: Run, missing: Sequence[MissingPoints]) -> str | None:
    """One command that extends the run by all of them."""
    if not missing:
        return None
    words = _going_on(run)
    # a search measures loads that are not in its plan
    planned = run.part("options").get("concurrency") or run.points["concurrency"].dropna().astype(int)
    if levels := sorted({point.concurrency for point in missing} - set(planned)):
        words += ["--concurrency", ",".join(map(str, levels))]
    scenarios = list(dict.fromkeys(run.points["scenario"].astype(str)))
    added = [name for name in dict.fromkeys(point.scenario for point in missing) if name not in scenarios]
    if added:
        words += ["--scenario", ",".join([*scenarios, *added])]
    repeats = max(point.repeats for point in missing)
    if repeats > max((int(value) for value in run.points["repeat"].dropna()), default=1):
        words += ["--repeats", str(repeats)]
    launches = max(point.launches for point in missing)
    if launches > max((int(value) for value in run.points["launch"].dropna()), default=1):
        words += ["--relaunch-repeats", str(launches)]
    doubted = {point.config_id.partition(AT)[0] for point in missing}
    known = mapping(run.part("plan").get("configurations")) or {name.partition(AT)[0] for name in run.launches}
    if words[1] == "sweep" and (doubted < set(known) or run.part("options").get("only")):
        words += ["--only", ",".join(sorted(doubted))]
    return " ".join(map(shlex.quote, words))


def _going_on(run: Run) -> list[str]:
    """The command that goes on with a run as it was begun: on the same cluster, against the same server."""
    words = ["qwenbench", "sweep"]
    if run.part("options").get("launcher") == ATTACHED:
        urls = [str(launch["argv"][0]) for launch in run.launches.values() if launch.get("argv")]
        words = ["qwenbench", "bench", "--url", *(urls[:1] or ["URL"])]
    words += ["--resume", str(run.path)]
    cluster = run.part("cluster")
    for option, name in (("--cluster", "address"), ("--on", "on")):
        words += [option, str(cluster[name])] if cluster.get(name) else []
    return words


def repeats_to_part(one: Estimate, other: Estimate, once: bool = False) -> int | None:
    """Repeats, or launches, of each from which two 95 % intervals would part if spread and difference stay as they are.

    `once`: the standard errors are those of a single launch. MIN_REPEATS where the spread is not known; None when
    MOST_REPEATS are not enough or the values are equal.
    """
    if one.value is None or other.value is None or one.value == other.value:
        return None
    if one.se is None or other.se is None:
        return MIN_REPEATS
    spread = one.se + other.se if once else one.se * math.sqrt(one.n) + other.se * math.sqrt(other.n)
    difference = abs(one.value - other.value)
    for repeats in range(MIN_REPEATS, MOST_REPEATS + 1):
        if critical(repeats - 1) * spread / math.sqrt(repeats) < difference:
            return repeats
    return None


def repeats_within(estimate: Estimate, share: float) -> int | None:
    """Repeats, or launches, from which the 95 % interval would be this share of the value to either side, if the spread
    stays as it is; None when MOST_REPEATS are not enough or the spread is not known."""
    if estimate.se is None or not estimate.value:
        return None
    spread = estimate.se * math.sqrt(estimate.n)
    wide_enough = share * abs(estimate.value)
    return next((n for n in range(2, MOST_REPEATS + 1) if critical(n - 1) * spread / math.sqrt(n) <= wide_enough), None)

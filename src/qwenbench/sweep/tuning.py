"""A search on real launches: what tune/ asks for is launched and loaded, and what came of it is told back.

Everything is a run folder like a sweep's. search.jsonl beside it holds each launch that was begun and each answer, so
that a run that was killed goes on where it was, and one that ended can be given more launches or time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from qwenbench.analysis.limits import Limit
from qwenbench.analysis.request_arrays import RequestArrays
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.errors import UsageError
from qwenbench.load.clients import Client
from qwenbench.load.spec import RequestTimes
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.runfolder.journal import append_line, whole_lines
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.hardware import budgeted
from qwenbench.sweep.launch import Launch, LaunchRun
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.progress import Progress, Schedule, expected
from qwenbench.sweep.record import CellResult, Site, finish
from qwenbench.sweep.requests import Until
from qwenbench.sweep.slots import Slot
from qwenbench.sweep.sweep import Sweep, SweepOutcome
from qwenbench.tune import protocol
from qwenbench.tune.saturation import grows
from qwenbench.tune.search import Search

SEARCH_LOG = "search.jsonl"
MOST_RATE_UNITS = round(200 / protocol.RATE_UNIT)
MOST_TRIES = 2
"""Of one probe, when the client was lost under it."""
LATENCIES = RequestTimes._fields
"""What limits of a search may be on: latencies that are known of a request when it has ended."""
_ANSWERS = {kind.__name__: kind for kind in (protocol.Launched, protocol.LaunchFailed, protocol.Probed, protocol.Died)}


@dataclass(frozen=True, slots=True)
class Quest:
    """What is sought, and how much may be spent."""

    users: int | None
    """None: as much as can be held."""
    limits: tuple[Limit, ...]
    rules: protocol.Rules
    open_loop: bool = False
    """Without users: requests a second are sought, not users."""

    @property
    def goal(self) -> protocol.Goal:
        goal = protocol.Goal(self.users, {limit.key: _share(limit) for limit in self.limits})
        return replace(goal, unit=protocol.RATE_UNIT, most=MOST_RATE_UNITS) if self.open_loop else goal

    def to_json(self) -> dict[str, Any]:
        seconds = None if self.rules.seconds == math.inf else self.rules.seconds
        limits = {limit.key: limit.bound for limit in self.limits}
        spent = {"launches": self.rules.launches, "seconds": seconds}
        return {"users": self.users, "open_loop": self.open_loop, "limits": limits, **spent}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Quest:
        rules = protocol.Rules(launches=kept["launches"], seconds=kept["seconds"] or math.inf)
        limits = tuple(Limit(key, bound) for key, bound in kept["limits"].items())
        return cls(kept["users"], limits, rules, kept["open_loop"])


def _share(limit: Limit) -> float:
    share = limit.share
    if share is None or limit.latency not in LATENCIES:
        known = ", ".join(f"{name}_p99" for name in LATENCIES)
        raise UsageError(f"--slo {limit.key}: a search judges the share of requests within a limit: {known} and so on.")
    return share


def counts_of(limits: Sequence[Limit], latencies: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """Limit -> (requests within it, requests); an unknown latency (a failed request's NaN) is within no limit."""
    found = {}
    for limit in limits:
        values = latencies[limit.latency]
        found[limit.key] = (int((values <= limit.bound).sum()), len(values))
    return found


class Tuning(Sweep):
    """A sweep whose launches and load points a search chooses."""

    def __init__(self, plan: Plan, paths: RunPaths, site: Site, progress: Progress, quest: Quest) -> None:
        """Raises UsageError as Sweep does, and for limits that a search cannot judge."""
        super().__init__(plan, paths, site, progress)
        self.quest = quest
        self._goal = quest.goal
        self.outcome: protocol.Outcome | None = None

    async def _run(self, meta: dict[str, Any], slots: Sequence[Slot]) -> SweepOutcome:
        finish(self.paths, meta, tune=self.quest.to_json())
        guess = expected(self.plan, self.site.launcher.name)
        self.schedule = Schedule([], len(self.recorder.points), guess, open_end=True)
        self.progress.plan(self.schedule)
        arms = self._arms(meta)
        search = Search(arms, self._goal, self.quest.rules, self.plan.options.seed, len(slots))
        steps = _Steps(search, self.paths.root / SEARCH_LOG)
        over = asyncio.Event()
        """A launch ended: a card that found nothing worth launching may look again."""

        async def work(slot: Slot, client: Client) -> None:
            while not self.stop.is_set():
                asked = steps.next(slot.number)
                if asked is not None:
                    await self._launch(steps, asked, slot, client)
                    over.set()
                elif search.running:
                    over.clear()
                    await over.wait()
                else:
                    return

        await self._side_by_side(slots, work)
        self.outcome = None if self.stop.is_set() else search.outcome()
        meta["search"] = self._search_record(arms)
        self._close(meta)
        done = len(self.recorder.points)
        unanswered = sum(not point["requests_ok"] for point in self.recorder.points)
        # what failed is what the search is for: it is no failure of the run
        return SweepOutcome(done, done, {}, self.stop.is_set(), unanswered)

    def _arms(self, meta: dict[str, Any]) -> list[protocol.Arm]:
        """The space as it was when the search began (later logs would change predictions, and with them its steps), and
        what this plan adds to it."""
        kept = meta.get("search_space") or ()
        known = [protocol.Arm(**{**arm, "features": tuple(arm["features"])}) for arm in kept]
        names = {arm.config_id for arm in known}
        if len(names) == len(self.plan.configurations):
            return known
        added = [arm for arm in arms_of(self) if arm.config_id not in names]
        for arm in added:
            if arm.refused is not None:
                self.note(f"not launched: {arm.refused}", arm.config_id)
        finish(self.paths, meta, search_space=[asdict(arm) for arm in (*known, *added)])
        return [*known, *added]

    async def _launch(self, steps: _Steps, asked: protocol.Launch, slot: Slot, client: Client) -> None:
        """One launch with all its probes."""
        launch = Launch(self.plan.configuration(asked.config_id), asked.number, ())
        began = time.monotonic()
        outcome = await LaunchRun(self, launch, slot, client, _Probes(self, steps, asked)).run()
        failure, seconds = outcome.failure, time.monotonic() - began
        if failure is None or self.stop.is_set() or outcome.interrupted:
            return
        reason = f"{failure.kind}: {failure.evidence}"
        starting = steps.search.running[asked.key] == asked
        steps.answer(asked.key, (protocol.LaunchFailed if starting else protocol.Died)(reason, seconds))

    def _search_record(self, arms: Sequence[protocol.Arm]) -> dict[str, Any]:
        """run.json's `search`: what was sought, the path, and the conclusion (null while it is not over)."""
        return {
            "users": self.quest.users,
            "open_loop": self.quest.open_loop,
            "limits": [str(limit) for limit in self.quest.limits],
            "rules": asdict(self.quest.rules),
            "space": len(arms),
            "outcome": None if self.outcome is None else asdict(self.outcome),
        }


class _Steps:
    """The search, with what it began and was answered on disk: what an earlier process did is told to it first."""

    def __init__(self, search: Search, log: Path) -> None:
        self.search = search
        self._log = log
        self._unfinished: list[protocol.Launch] = []
        """Launches that the earlier process did not end."""
        for line in whole_lines(log):
            entry = orjson.loads(line)
            step = {name: value for name, value in entry["step"].items() if name != "kind"}
            try:
                if "answer" not in entry:
                    self._unfinished.append(protocol.Launch(**step))
                    search.begin(self._unfinished[-1])
                elif search.answer((step["config_id"], step["number"]), _answer(entry["answer"])) is None:
                    self._unfinished = [one for one in self._unfinished if one.key in search.running]
            except (KeyError, TypeError):
                raise UsageError(f"{log}: holds the answers of another search. Start a new run.") from None

    def next(self, card: int) -> protocol.Launch | None:
        """The launch to make on this card: what was begun and not ended comes first."""
        if self._unfinished:
            return self._unfinished.pop(0)
        launch = self.search.next(card)
        if launch is not None:
            append_line(self._log, orjson.dumps({"step": _named(launch)}))
            self.search.begin(launch)
        return launch

    def answer(self, key: protocol.Key, answer: protocol.Answer) -> None:
        """What came of the step that this launch waited for; it is on disk before the next one is taken."""
        entry = {"step": _named(self.search.running[key]), "answer": _named(answer)}
        append_line(self._log, orjson.dumps(entry))
        self.search.answer(key, answer)


def _named(value: Any) -> dict[str, Any]:
    """A step or an answer with its kind."""
    return {"kind": type(value).__name__, **asdict(value)}


def _answer(told: dict[str, Any]) -> protocol.Answer:
    fields = {name: value for name, value in told.items() if name != "kind"}
    if "counts" in fields:
        fields["counts"] = {name: (within, trials) for name, (within, trials) in fields["counts"].items()}
    return _ANSWERS[told["kind"]](**fields)


class _Probes:
    """The course of one launch: the probes that the search asks for, until the launch is over."""

    def __init__(self, tuning: Tuning, steps: _Steps, asked: protocol.Launch) -> None:
        self._tuning = tuning
        self._steps = steps
        self._asked = asked
        self._waiting: list[Cell] = []
        self._results: list[CellResult] = []
        self._began = 0.0
        self._again: set[Cell] = set()
        self._tried: list[protocol.Probe] = []

    @property
    def _probe(self) -> protocol.Probe | None:
        """What is asked for now."""
        step = self._steps.search.running.get(self._asked.key)
        return step if isinstance(step, protocol.Probe) else None

    def ready(self, seconds: float) -> None:
        """Tells the search, unless it was told before this run was resumed."""
        if self._probe is None:
            self._steps.answer(self._asked.key, protocol.Launched(seconds))

    def next(self) -> Cell | None:
        """A load point of each scenario for the probe that is asked for."""
        if self._waiting:
            return self._waiting.pop(0)
        probe = self._probe
        if probe is not None and self._tried.count(probe) >= MOST_TRIES:
            self._steps.answer(probe.key, protocol.Probed({}, None, 0.0))  # its client was lost each time
            probe = self._probe
        if probe is None:
            return None
        self._tried.append(probe)
        plan = self._tuning.plan
        rate = round(probe.load * self._tuning.quest.goal.unit, 6) if self._tuning.quest.open_loop else None
        users = probe.load if rate is None else None
        self._waiting = [
            Cell(probe.config_id, probe.number, LoadPoint(point.scenario, point.profile, users, rate, probe.repeat))
            for point in plan.points
        ]
        self._tuning.schedule.add(self._waiting)
        self._results = []
        self._began = time.monotonic()
        return self._waiting.pop(0)

    def until(self, cell: Cell) -> Until | None:
        """Until its limits are decided; without limits as a sweep's points, until it was steady."""
        probe = self._probe
        if probe is None or not probe.limits:
            return None
        limits, open_loop = self._tuning.quest.limits, self._tuning.quest.open_loop

        def decided(finished: Sequence[RequestTimes]) -> bool:
            table = np.array(finished, dtype=np.float64).reshape(len(finished), len(LATENCIES))
            columns = dict(zip(LATENCIES, table.T, strict=True))
            return probe.enough(counts_of(limits, columns)) or (open_loop and grows(columns["ttft"]))

        return Until(probe.most + (cell.point.concurrency or 0), decided)

    def done(self, cell: Cell, result: CellResult) -> None:
        """Tells the search once all scenarios of the probe are measured; an invalid point is measured once again."""
        if not result.point["valid"] and cell not in self._again:
            self._again.add(cell)
            self._waiting.insert(0, cell)
            self._tuning.schedule.add([cell])
            return
        self._results.append(result)
        if self._waiting:
            return
        limits = self._tuning.quest.limits
        counts: dict[str, tuple[int, int]] = {}
        values, saturated = [], False
        for one in self._results:
            arrays = RequestArrays.of(one.requests)
            # the first request of every stream waits for all the others: no part of the steady load that is judged
            steady = np.argsort(arrays.begin_ns, kind="stable")[int(one.point["concurrency"] or 0) :]
            latencies = {
                name: np.where(arrays.ok, values, np.nan)[steady] for name, values in arrays.latencies_ms().items()
            }
            for name, (within, trials) in counts_of(limits, latencies).items():
                known = counts.get(name, (0, 0))
                counts[name] = (known[0] + within, known[1] + trials)
            saturated |= self._tuning.quest.open_loop and grows(latencies["ttft"])
            values.append(one.point["output_tokens_per_s"] if one.point["valid"] else None)
        known_values = [value for value in values if value is not None]
        value = float(np.mean(known_values)) if len(known_values) == len(values) else None
        seconds = time.monotonic() - self._began
        self._steps.answer(self._asked.key, protocol.Probed(counts, value, seconds, saturated))


def arms_of(tuning: Tuning) -> list[protocol.Arm]:
    """The space as the search sees it: where each configuration lies, what is predicted of it, what cannot start."""
    plan, hardware = tuning.plan, tuning.site.hardware
    columns = [_positions(plan.configurations, name) for name in ("capture", "max_num_seqs", *plan.options.vary)]
    columns.append([configuration.utilization or 0.0 for configuration in plan.configurations])
    arms = []
    for place, configuration in enumerate(plan.configurations):
        server = budgeted(configuration.server, plan.options, hardware)
        refusal = None if plan.options.force else tuning.preflight.check(server).refusal()
        arms.append(
            protocol.Arm(
                configuration.config_id,
                tuple(column[place] for column in columns),
                None if refusal else predicted(tuning, server),
                refusal.evidence if refusal else None,
            )
        )
    return arms


def _positions(configurations: Sequence[Configuration], setting: str) -> list[float]:
    """Where each configuration lies in one setting: log2 of numbers, the place in the list of anything else."""
    if setting in ("capture", "max_num_seqs"):
        values = [getattr(configuration.server, setting) for configuration in configurations]
    else:
        values = [configuration.vary.get(setting) for configuration in configurations]
    try:
        return [math.log2(float(value)) if value is not None else 0.0 for value in values]
    except (TypeError, ValueError):
        known = list(dict.fromkeys(values))
        return [float(known.index(value)) for value in values]


def predicted(tuning: Tuning, server: ServerConfig) -> float | None:
    """The objective by the simulator in virtual time (tokens/s, or users); None where it cannot say.

    It is a prior for the order of launches only: what was measured outweighs it.
    """
    from qwenbench.simulator.replay import CannotStart, LoadShape, simulate_point

    users = tuning.quest.users or server.max_num_seqs or 32
    scenario = next(iter(tuning.plan.scenarios.values())).file.scenario
    lengths, prompts = scenario.output_tokens, scenario.input_tokens
    middle = lengths.median or (lengths.min + lengths.max) / 2
    load = LoadShape(
        streams=users,
        input_tokens=(prompts.min, prompts.max) if prompts else (100, 600),
        output_tokens=(max(1, int(middle / 2)), int(middle * 2)),
        requests=max(2 * users, 16),
    )
    card = tuning.site.hardware.card
    known = ("max-num-seqs", "max-cudagraph-capture-size", "gpu-memory-utilization", "max-num-batched-tokens")
    flags: dict[str, str | int | float | None] = {
        name: value for name, value in server.flags.items() if name in known and value is not None
    }
    if card is not None:
        flags["sim-card"] = card.name
    try:
        point = simulate_point({**flags, "model": server.model}, load)
    except (CannotStart, UsageError, ValueError, KeyError):
        return None
    if tuning.quest.open_loop:
        return point.output_tokens_per_s / middle
    return point.output_tokens_per_s if tuning.quest.users else float(max(1, point.running_peak))


def default_space(options: SweepOptions, users: int | None) -> dict[str, Any]:
    """The dimensions of a space for which none were given: captured sizes about the users, and steps of the scheduler.

    The size that the users fill comes first; smaller ones free memory, larger ones capture prompts.
    """
    if options.capture or options.vary or options.max_num_seqs != "match":
        return {}
    wanted = 8 * math.ceil((users or 64) / 8)
    sizes = sorted({wanted, *(size for size in (16, 32, 64, 128, 256) if wanted / 2 <= size <= 4 * wanted)})
    return {"capture": tuple(sizes), "vary": {"max-num-batched-tokens": ("2048", "4096", "8192")}}

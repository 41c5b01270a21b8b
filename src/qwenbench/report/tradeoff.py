"""The trade-off figure: what each configuration holds, and what it costs in tokens/s and TTFT at the load in question.

The figure's values; tradeoff_drawing.py draws them. Scenarios that agree share a panel.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from qwenbench.analysis.intervals import critical
from qwenbench.analysis.price import Reached
from qwenbench.analysis.recommend import Answer
from qwenbench.analysis.run import grouped
from qwenbench.analysis.spread import Spread
from qwenbench.report.document import counted
from qwenbench.report.page_data import ConfigView, PageData
from qwenbench.report.points import Estimate, PointView

SAME_KV = 0.01
"""KV caches that differ by less than this share of the largest are the same for every purpose."""
SAME_RATE = 0.05
"""Rates without an interval must differ by more than this share to count."""
MOST_LANES = 14
"""Configurations in a panel; of more, the best are drawn."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One configuration in a panel. None: not known."""

    config: ConfigView
    colour: str
    kv_gib: float | None
    fits: float | None
    """Requests that fit, of the scenario that fits worst."""
    captured: float | None
    """Largest decode batch that runs as a captured graph; above it a token gets slower."""
    rate: Estimate | None
    """Output tokens/s at the load in question."""
    ttft: Estimate | None
    """Median, ms."""
    frontier: bool = False
    """No other configuration holds as much and is as fast, and better in one of both."""


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class Tradeoff:
    title: str
    """What it says, in a sentence."""
    subtitle: str
    load: str
    """The load in question: `32 streams`."""
    asked: int | None
    """Concurrent users that were asked for."""
    panels: tuple[Panel, ...]
    left_out: int
    """Configurations that are not drawn."""
    chosen: str | None
    """The recommended configuration."""
    simulated: bool


def tradeoff_of(data: PageData, answer: Answer | str | None = None) -> Tradeoff | None:
    """The figure of a run; None without a valid point.

    The load in question is the measured one at or above the answer's users, the highest where nobody asked.
    """
    users = answer.users if isinstance(answer, Answer) else None
    points = [
        _with_spread(point, data.spread)
        for point in data.points
        if point.valid and "output_tokens_per_s" in point.metrics
    ]
    level, load = _level(points, users)
    at_load = [point for point in points if point.level == level]
    if not at_load:
        return None
    workloads = [name for name in data.workloads if any(point.workload == name for point in at_load)]
    groups = [workloads] if scenarios_agree(at_load) else [[name] for name in workloads]
    panels, left_out = [], 0
    for names in groups:
        lanes = [lane for view in data.configs if (lane := _lane(view, names, data, at_load))]
        marked = _with_frontier(lanes)
        panels.append(Panel(names[0] if len(groups) > 1 else "", _best(marked)))
        left_out = max(left_out, len(marked) - MOST_LANES)
    about = (data.subject.title, f"at {load}", _scenario_words(groups), *_spread_words(at_load, data.spread))
    return Tradeoff(
        title=" ".join([*_statements(panels, load), *reach_statement(data.reached, level)]),
        subtitle=" · ".join(about),
        load=load,
        asked=answer.question.users if isinstance(answer, Answer) else None,
        panels=tuple(panels),
        left_out=max(0, left_out),
        chosen=answer.config_id if isinstance(answer, Answer) else None,
        simulated=data.simulated,
    )


def _with_spread(point: PointView, spread: Spread) -> PointView:
    """The point with intervals that hold what one launch cannot show, as those of the answer do."""
    metrics = {key: _widened(point.metrics[key], point, spread) for key in _DRAWN if key in point.metrics}
    return replace(point, metrics=metrics)


_DRAWN = ("output_tokens_per_s", "ttft_p50")


def _widened(estimate: Estimate, point: PointView, spread: Spread) -> Estimate:
    value, low, high = estimate
    if point.launches != 1 or (spread.launch == 0 and spread.point == 0):
        return estimate
    factor = critical(spread.degrees) * value
    within = (high - low) / 2 if low is not None and high is not None else factor * spread.point / math.sqrt(point.n)
    half = math.hypot(within, factor * spread.launch)
    return (value, max(0.0, value - half), value + half)


def _spread_words(points: Sequence[PointView], spread: Spread) -> list[str]:
    widened = any(point.launches == 1 for point in points) and (spread.launch > 0 or spread.point > 0)
    return ["bars hold the spread between launches"] if widened else []


def _level(points: Sequence[PointView], users: int | None) -> tuple[float | None, str]:
    """The load in question and its words: one that most configurations share."""
    counts = Counter(point.level for point in points)
    shared = [level for level, count in counts.items() if count == max(counts.values())]
    known = sorted(level for level in shared if level is not None)
    level = None
    if known:
        level = next((value for value in known if users is not None and value >= users), known[-1])
    word = next((point.load for point in points if point.level == level), "")
    return level, counted(int(word), "stream") if word.isdigit() else word


def scenarios_agree(points: Iterable[PointView]) -> bool:
    """Whether no two scenarios contradict each other on which of two configurations is the faster one."""
    orders: dict[tuple[str, str], set[int]] = {}
    for own in grouped(points, lambda point: point.workload).values():
        for one, other in itertools.combinations(sorted(own, key=lambda point: point.config), 2):
            order = faster(one.metrics["output_tokens_per_s"], other.metrics["output_tokens_per_s"])
            if order:
                orders.setdefault((one.config, other.config), set()).add(order)
    return all(len(found) == 1 for found in orders.values())


def faster(one: Estimate, other: Estimate) -> int:
    """1 where the first is larger beyond doubt, -1 where the second is, 0 where they are not told apart.

    Intervals that touch are not apart; without intervals the values must differ by more than SAME_RATE.
    """
    (a, a_low, a_high), (b, b_low, b_high) = one, other
    if a_low is not None and a_high is not None and b_low is not None and b_high is not None:
        return 1 if a_low > b_high else -1 if b_low > a_high else 0
    return 0 if abs(a - b) <= SAME_RATE * max(abs(a), abs(b)) else 1 if a > b else -1


def mean_of(estimates: Sequence[Estimate]) -> Estimate | None:
    """Mean over scenarios; its interval from theirs, which are independent. None without a value."""
    if not estimates:
        return None
    count = len(estimates)
    value = sum(estimate[0] for estimate in estimates) / count
    known = [(middle - low, high - middle) for middle, low, high in estimates if low is not None and high is not None]
    if len(known) < count:
        return (value, None, None)
    below, above = (math.hypot(*part) / count for part in zip(*known, strict=True))
    return (value, value - below, value + above)


def _lane(view: ConfigView, names: Sequence[str], data: PageData, at_load: list[PointView]) -> Lane | None:
    own = [point for point in at_load if point.config == view.id and point.workload in names]
    if not own and not view.failed:
        return None
    every = [point for point in data.points if point.config == view.id and point.workload in names]
    # at the load in question, as the answer has it: what fits depends on the requests that were drawn
    fits = [point.requests_that_fit for point in own or every if point.requests_that_fit is not None]
    kv = [point.kv_cache_gib for point in every if point.kv_cache_gib is not None]
    ledger = view.ledger
    captured = ledger.get("capture_effective_full") or ledger.get("capture_effective") or view.capture
    return Lane(
        config=view,
        colour=data.colour(view.id),
        kv_gib=min(kv, default=ledger.get("kv_cache_gib")),
        fits=min(fits, default=None),
        captured=captured,
        rate=mean_of([point.metrics["output_tokens_per_s"] for point in own]),
        ttft=mean_of([point.metrics["ttft_p50"] for point in own if "ttft_p50" in point.metrics]),
    )


def _with_frontier(lanes: Sequence[Lane]) -> list[Lane]:
    measured = [lane for lane in lanes if lane.kv_gib is not None and lane.rate is not None]
    return [replace(lane, frontier=lane in measured and not any(_beats(o, lane) for o in measured)) for lane in lanes]


def _beats(one: Lane, other: Lane) -> bool:
    """Whether the first is at least as good in both, and better in one."""
    assert one.kv_gib is not None and other.kv_gib is not None and one.rate is not None and other.rate is not None
    kv = one.kv_gib - other.kv_gib
    larger = 0 if abs(kv) <= SAME_KV * max(one.kv_gib, other.kv_gib) else 1 if kv > 0 else -1
    quicker = faster(one.rate, other.rate)
    return larger >= 0 and quicker >= 0 and larger + quicker > 0


def _best(lanes: Sequence[Lane]) -> tuple[Lane, ...]:
    def rank(lane: Lane) -> tuple[bool, float]:
        return (lane.frontier, lane.rate[0] if lane.rate else -1.0)

    kept = sorted(lanes, key=rank, reverse=True)[:MOST_LANES]
    return tuple(lane for lane in lanes if lane in kept)


def _scenario_words(groups: Sequence[Sequence[str]]) -> str:
    if len(groups) > 1:
        return "the scenarios disagree, so each has its own panel"
    names = groups[0]
    return f"mean of {', '.join(names)}, which agree" if len(names) > 1 else names[0]


def _statements(panels: Sequence[Panel], load: str) -> list[str]:
    lanes = [lane for panel in panels[:1] for lane in panel.lanes if lane.kv_gib is not None and lane.rate is not None]
    if not lanes:
        return ["No configuration was measured."]
    if len(lanes) == 1:
        return [_alone(lanes[0], load)]
    return [
        kv_statement(lanes),
        rate_statement(lanes, load) if len(panels) == 1 else "Which is faster depends on the scenario.",
    ]


def _alone(lane: Lane, load: str) -> str:
    assert lane.kv_gib is not None and lane.rate is not None
    holds = "" if lane.fits is None else f" hold {lane.fits:,.0f} requests"
    return f"{lane.kv_gib:.2f} GiB of KV cache{holds}; {lane.rate[0]:,.0f} output tokens/s at {load}."


def kv_statement(lanes: Sequence[Lane]) -> str:
    """What the configurations' KV caches say; when captures buy nothing, it says that."""
    known = [(lane.kv_gib, lane) for lane in lanes if lane.kv_gib is not None]
    least, most = min(known, key=lambda pair: pair[0]), max(known, key=lambda pair: pair[0])
    gained, share = most[0] - least[0], (most[0] - least[0]) / most[0] if most[0] else 0.0
    captures = sorted({lane.config.capture for lane in lanes if lane.config.capture is not None})
    others = {(lane.config.gpu_memory_utilization, tuple(sorted(lane.config.vary.items()))) for lane in lanes}
    if len(captures) > 1 and len(others) == 1:
        what = f"Capture {captures[-1]:,} to {captures[0]:,}"
        if share < SAME_KV:
            return f"{what} frees {gained:.2f} of {most[0]:.1f} GiB of KV cache: nothing."
        return f"{what} frees {gained:.2f} of {most[0]:.1f} GiB of KV cache, {percent(share, 1)}."
    if share < SAME_KV:
        return f"Every configuration holds the same KV cache, {most[0]:.1f} GiB."
    holds = f"{most[1].config.id} holds {gained:.2f} GiB more KV cache than {least[1].config.id}"
    return f"{holds}, {percent(share)} of {most[0]:.1f}."


def rate_statement(lanes: Sequence[Lane], load: str) -> str:
    rates = [(lane.rate, lane) for lane in lanes if lane.rate is not None]
    best, worst = max(rates, key=lambda pair: pair[0][0]), min(rates, key=lambda pair: pair[0][0])
    if not faster(best[0], worst[0]) or not worst[0][0]:
        return f"Tokens/s at {load} are not told apart."
    ratio, ours, theirs = best[0][0] / worst[0][0], _name(best[1], lanes), _name(worst[1], lanes)
    if ratio >= 2:
        return f"At {load} {ours} gives {ratio:.1f} times the tokens/s of {theirs}."
    return f"At {load} {ours} gives {percent(ratio - 1)} more tokens/s than {theirs}."


def reach_statement(reached: Iterable[Reached], level: float | None) -> Iterator[str]:
    """What prompts gained from fitting under the larger capture at this load, of the scenario that gained most."""
    here = [found for found in reached if found.concurrency == level]
    if here:
        best = max(here, key=lambda found: found.ttft_ms[1] / found.ttft_ms[0])
        ttft, before = best.ttft_ms
        yield (
            f"Prompts of about {best.prompt_tokens:,.0f} tokens ({best.scenario}) fit under capture {best.capture:,}, "
            f"not under {best.smaller_capture:,}: TTFT p50 {ttft:,.0f} ms for {before:,.0f}."
        )


def percent(share: float, digits: int = 0) -> str:
    """A share as the project writes it: `12 %`."""
    return f"{100 * share:.{digits}f} %"


def _name(lane: Lane, lanes: Sequence[Lane]) -> str:
    """`capture 64` where that tells it from the others, else its id."""
    same = [other for other in lanes if other.config.capture == lane.config.capture]
    return f"capture {lane.config.capture:,}" if lane.config.capture is not None and len(same) == 1 else lane.config.id

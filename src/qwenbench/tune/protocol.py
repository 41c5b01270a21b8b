"""What the search asks for, what it is told, and what it concludes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from qwenbench.tune.sequential import Verdict, verdict

Counts = Mapping[str, tuple[int, int]]
"""Limit -> (requests within it, requests)."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration of the space."""

    config_id: str
    features: tuple[float, ...]
    """Where its settings lie, one number a dimension: log2 of sizes, the fraction itself, 0 and 1 for choices. All
    arms have as many; the search scales them."""
    prior: float | None = None
    """The objective as predicted (tokens/s, or users held); None: nothing is predicted."""
    refused: str | None = None
    """Why it is not to be launched at all (the memory model's words)."""


RATE_UNIT = 0.01
"""Requests a second in which an open loop is counted."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is sought: most tokens/s at `users`; without `users` the largest load that is held within the limits."""

    users: int | None
    limits: Mapping[str, float] = field(default_factory=dict)
    """Limit -> share of requests that must be within it (0.99 of a p99)."""
    unit: float = 1.0
    """The load is counted in these: one user, or RATE_UNIT requests a second."""
    most: int = 1024
    """A knee is not sought beyond so many units."""


@dataclass(frozen=True, slots=True)
class Rules:
    """When the search ends, and what it takes for granted of noise."""

    launches: int = 8
    seconds: float = float("inf")
    """Launches and probes together, as told by the answers, of each card."""
    within: float = 0.03
    """Differences below this share are not worth a launch."""
    finals: int = 2
    """Launches more of the one that is to be the answer; a quarter of all launches at most."""
    launch_spread: float = 0.106
    """Relative standard deviation between launches (docs/statistics.md)."""
    point_spread: float = 0.071
    """Relative standard deviation between points of one launch."""
    prior_spread: float = 0.25
    """How far predictions are off, as a relative standard deviation."""
    random_every: int = 8
    """The third launch of so many is drawn at random, so that a wrong prediction is survived."""
    probes: int = 2
    """Probes at `users` within a launch."""
    least_requests: int = 96
    most_requests: int = 640
    """Of a probe."""


Why = Literal["predicted best", "most to gain", "drawn at random", "launched again"]
Key = tuple[str, int]
"""A launch's name: configuration, and its how-many-eth launch it is."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Start this configuration's server; the one that runs on this card is stopped first."""

    config_id: str
    number: int
    """Its how-many-eth launch this is, from 1."""
    why: Why = "predicted best"
    load: int = 1
    """Of its first probe, in the goal's units."""
    card: int = 0
    """Where it runs: the number of the place for servers."""

    @property
    def key(self) -> Key:
        """Its name."""
        return self.config_id, self.number


@dataclass(frozen=True, slots=True)
class Probe:
    """Load the server that runs."""

    config_id: str
    number: int
    load: int
    """In the goal's units."""
    repeat: int
    seed: int
    limits: Mapping[str, float]
    least: int
    """Requests that are sent at least, and"""
    most: int
    """at most."""

    @property
    def key(self) -> Key:
        """The launch that it is of."""
        return self.config_id, self.number

    def enough(self, counts: Counts) -> bool:
        """Whether the requests so far decide: a limit is broken, or all are shown to hold and enough were sent."""
        verdicts = verdicts_of(self.limits, counts)
        if "broken" in verdicts:
            return True
        sent = max((trials for _, trials in counts.values()), default=0)
        if sent >= self.most:
            return True
        return bool(self.limits) and sent >= self.least and all(found == "shown" for found in verdicts)


Step = Launch | Probe


@dataclass(frozen=True, slots=True)
class Launched:
    """The server is ready."""

    seconds: float


@dataclass(frozen=True, slots=True)
class LaunchFailed:
    """It did not become ready."""

    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe measured."""

    counts: Counts
    value: float | None
    """Output tokens/s over the point's window; None: not known."""
    seconds: float
    saturated: bool = False
    """Open loop: the queue grew all the time."""


@dataclass(frozen=True, slots=True)
class Died:
    """The engine ended under the load."""

    reason: str
    seconds: float


Answer = Launched | LaunchFailed | Probed | Died


@dataclass(frozen=True, slots=True)
class Tried:
    """One launch of the search's path."""

    config_id: str
    number: int
    why: Why
    value: float | None
    """What it measured: tokens/s at the users asked for, or the load held; None: it failed."""
    verdict: Verdict | Literal["failed"]
    """How all limits together stand after it."""
    dropped: str | None
    """Why the configuration is out after it; None: it is still in."""
    card: int = 0
    """Where it ran."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the search concludes. It never says optimal: arms that were not launched are only believed to be worse."""

    config_id: str | None
    """None when nothing that was tried holds the limits."""
    value: float | None
    """The objective of `config_id` over its launches."""
    verdict: Verdict
    """How its limits stand over all its probes at the users asked for."""
    within: float | None
    """It is within this share of the best that was tried, at 95 %."""
    decided: bool
    """Its limits are shown, and `within` is no more than asked for."""
    path: tuple[Tried, ...]
    refused: Mapping[str, str]
    """Arms that were never launched because the prediction refused them."""
    dropped: Mapping[str, str]
    """Arms that were launched, or about to be, and why they are out."""
    drift: float | None
    """How much finalists changed from their first launch to their last, as a share; None: none was launched again."""
    ended: str
    """Which rule ended it."""


def verdicts_of(limits: Mapping[str, float], counts: Counts) -> list[Verdict]:
    """How each limit stands."""
    return [verdict(*counts.get(name, (0, 0)), needed) for name, needed in limits.items()]


def joint(limits: Mapping[str, float], counts: Counts) -> Verdict:
    """How all limits together stand."""
    found = verdicts_of(limits, counts)
    return "broken" if "broken" in found else "open" if "open" in found else "shown"

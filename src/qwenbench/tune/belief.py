"""What is believed of every arm: its prediction, corrected by what its neighbours measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTH = 0.8
"""Arms this far apart, in units of each dimension's range, are hardly alike."""
LEVEL_SPREAD = 30.0
"""How far all predictions together may be off, in log units: nothing is taken for granted of it. Where nothing is
predicted (a model whose shape is not known), what was not launched would otherwise seem worse than what was.
"""
OK_BEFORE = 9.0
"""Launches that went well that are taken for granted, against one that failed."""
NEARER = 6
"""Fates are alike within a shorter reach than speeds: likeness to this power (LENGTH / 2.4)."""
OWN = 0.1
"""Share of an arm's deviation from its prediction that no neighbour has: two that differ in a setting which does
nothing are as good as one."""
CARDS = 0.02
"""Spread between cards of one model, as a relative standard deviation."""
FAILURE = 3.0
"""Weight of a failed launch or a dead engine for an arm just like it: its chance then falls from 0.9 to 0.7."""
BROKEN = 18.0
"""Weight of a broken limit: its chance falls to a third."""
Fate = Literal["held", "failed", "broken"]


@dataclass(frozen=True, slots=True)
class Belief:
    """Log of the objective of every arm: a Gaussian process around the predictions (Rasmussen & Williams 2006, 2.2)."""

    mean: Floats
    covariance: Floats

    @property
    def spread(self) -> Floats:
        """Standard deviation of each arm's mean."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 1e-12))

    def gain(self, answers: Sequence[int], arms: Sequence[int], noise: float) -> Floats:
        """What one launch of each of `arms` is expected to add to the best of `answers` and itself, in log units.

        The knowledge gradient for alike arms (Frazier, Powell & Dayanik 2009): a launch counts for what it changes in
        the choice, so that a doubtful one of `answers` may be worth more than a new arm. `noise`: of that launch.
        """
        best = float(self.mean[list(answers)].max())
        found = []
        for arm in arms:
            moved = self.covariance[:, arm] / math.sqrt(self.covariance[arm, arm] + noise)
            chosen = list({*answers, arm})
            found.append((self.mean[chosen] + _QUANTILES[:, None] * moved[chosen]).max(axis=1).mean() - best)
        return np.array(found)

    def behind(self, arm: int, other: int) -> tuple[float, float]:
        """Mean and standard deviation of log(other) - log(arm)."""
        c = self.covariance
        variance = c[arm, arm] + c[other, other] - 2 * c[arm, other]
        return float(self.mean[other] - self.mean[arm]), math.sqrt(max(float(variance), 0.0))


_QUANTILES = np.array([NormalDist().inv_cdf((step + 0.5) / 32) for step in range(32)])


def scaled(features: Sequence[Sequence[float]]) -> Floats:
    """Each dimension from 0 to 1."""
    table = np.asarray(features, dtype=np.float64)
    low, high = table.min(axis=0), table.max(axis=0)
    return np.asarray((table - low) / np.where(high > low, high - low, 1.0), dtype=np.float64)


def likeness(points: Floats) -> Floats:
    """How alike two arms are, 0 to 1: exp(-d^2 / (2 LENGTH^2)), d in units of each dimension's range."""
    distance = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-distance / (2 * LENGTH**2)), dtype=np.float64)


class Measured(NamedTuple):
    """What one launch gave."""

    arm: int
    value: float
    """Log of its figure."""
    card: int = 0
    """Where it ran: what one card measures is shifted alike."""


def believe(prior: Floats, alike: Floats, measured: Sequence[Measured], noise: float, prior_spread: float) -> Belief:
    """The belief after `measured` launches; `noise` is the variance of each one's log.

    An arm's deviation from its prediction is in part shared with all arms (LEVEL_SPREAD), in part with its
    neighbours, and for a tenth (OWN) its own. How large it is, and whether the predictions say anything at all, is
    itself not known: worlds in which they are off by a half, one, two or four times `prior_spread`, and worlds in which
    every arm is predicted alike, are weighed by how likely each makes what was measured. NaN in `prior`: not predicted.
    """
    known = prior[~np.isnan(prior)]
    level = float(known.mean()) if len(known) else 0.0
    predicted, flat = np.where(np.isnan(prior), level, prior), np.full(len(prior), level)
    worlds = [(predicted, prior_spread * factor, weight) for factor, weight in _TRUST] if len(known) else []
    worlds += [(flat, spread, weight) for spread, weight in _NO_TRUST]
    found = [_world(mean, alike, measured, max(noise, 1e-6), spread) for mean, spread, _ in worlds]
    weights = np.array([math.log(weight) for *_, weight in worlds]) + np.array([evidence for *_, evidence in found])
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    mean = sum((w * m for w, (m, _, _) in zip(weights, found, strict=True)), np.zeros(len(prior)))
    covariance = sum(
        (w * (c + np.outer(m - mean, m - mean)) for w, (m, c, _) in zip(weights, found, strict=True)),
        np.zeros(alike.shape),
    )
    return Belief(mean, covariance)


_TRUST = ((0.5, 0.25), (1.0, 0.35), (2.0, 0.15), (4.0, 0.05))
"""How far predictions may be off, in units of what is expected, and how likely that is beforehand."""
_NO_TRUST = ((0.3, 0.12), (0.6, 0.08))
"""Spread between arms where predictions say nothing."""


def _world(
    prior: Floats, alike: Floats, measured: Sequence[Measured], noise: float, spread: float
) -> tuple[Floats, Floats, float]:
    """Mean, covariance, and the log of the chance of what was measured (Rasmussen & Williams 2006, eq. 2.30)."""
    covariance = LEVEL_SPREAD**2 + spread**2 * ((1 - OWN) * alike + OWN * np.eye(len(prior)))
    if not measured:
        return prior, covariance, 0.0
    arms, cards = np.array([one.arm for one in measured]), np.array([one.card for one in measured])
    off = np.array([one.value for one in measured]) - prior[arms]
    inner = covariance[np.ix_(arms, arms)] + noise * np.eye(len(arms)) + CARDS**2 * (cards[:, None] == cards)
    gained = np.linalg.solve(inner, covariance[arms]).T
    evidence = -0.5 * float(off @ np.linalg.solve(inner, off)) - 0.5 * float(np.linalg.slogdet(inner)[1])
    return prior + gained @ off, covariance - gained @ covariance[arms], evidence


def chance_ok(alike: Floats, outcomes: Sequence[tuple[int, Fate]]) -> Floats:
    """For each arm the chance that it works and holds the limits: its neighbours' fates, weighted by likeness.

    What failed makes what is near it less likely, and nothing impossible. Limits are broken for a reason that
    neighbours share; an engine that dies may do so for its own.
    """
    near = alike**NEARER
    good = np.full(len(alike), OK_BEFORE)
    bad = np.ones(len(alike))
    for arm, fate in outcomes:
        if fate == "held":
            good += OK_BEFORE * near[arm]
        else:
            bad += (FAILURE if fate == "failed" else BROKEN) * near[arm]
    return np.asarray(good / (good + bad), dtype=np.float64)

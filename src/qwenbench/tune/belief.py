"""What is believed of every arm: its prediction, corrected by what its neighbours measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTH = 0.5
"""Arms this far apart, in units of each dimension's range, are hardly alike."""
LEVEL_SPREAD = 1.0
"""How far all predictions together may be off (a factor of e): only their order counts."""
OK_BEFORE = 9.0
"""Launches that went well that are taken for granted, against one that failed."""


@dataclass(frozen=True, slots=True)
class Belief:
    """Log of the objective of every arm: a Gaussian process around the predictions (Rasmussen & Williams 2006, 2.2)."""

    mean: Floats
    covariance: Floats

    @property
    def spread(self) -> Floats:
        """Standard deviation of each arm's mean."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 1e-12))

    def gain(self, best: float) -> Floats:
        """Expected improvement of each arm over `best`, in log units (Jones et al. 1998)."""
        spread = self.spread
        z = (self.mean - best) / spread
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return np.asarray(spread * (z * _normal(z) + density), dtype=np.float64)

    def behind(self, arm: int, other: int) -> tuple[float, float]:
        """Mean and standard deviation of log(other) - log(arm)."""
        c = self.covariance
        variance = c[arm, arm] + c[other, other] - 2 * c[arm, other]
        return float(self.mean[other] - self.mean[arm]), math.sqrt(max(float(variance), 0.0))


def _normal(z: Floats) -> Floats:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in z])


def scaled(features: Sequence[Sequence[float]]) -> Floats:
    """Each dimension from 0 to 1."""
    table = np.asarray(features, dtype=np.float64)
    low, high = table.min(axis=0), table.max(axis=0)
    return np.asarray((table - low) / np.where(high > low, high - low, 1.0), dtype=np.float64)


def likeness(points: Floats) -> Floats:
    """How alike two arms are, 0 to 1: exp(-d^2 / (2 LENGTH^2)), d in units of each dimension's range."""
    distance = ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-distance / (2 * LENGTH**2)), dtype=np.float64)


def believe(
    prior: Floats,
    alike: Floats,
    measured: Sequence[tuple[int, float]],
    *,
    prior_spread: float,
    launch_spread: float,
    point_spread: float,
    points: int,
) -> Belief:
    """The belief after `measured` launches: (arm, log of its mean over `points` probes).

    An arm's deviation from its prediction is in part shared with all arms (LEVEL_SPREAD), in part with its
    neighbours, and to a third of its variance its own. NaN in `prior`: predicted as the mean of the others.
    """
    filled = np.where(np.isnan(prior), np.nanmean(prior) if (~np.isnan(prior)).any() else 0.0, prior)
    own, shared = prior_spread**2 / 3, 2 * prior_spread**2 / 3
    covariance = LEVEL_SPREAD**2 + shared * alike + own * np.eye(len(filled))
    if not measured:
        return Belief(filled, covariance)
    arms = np.array([arm for arm, _ in measured])
    values = np.array([value for _, value in measured])
    noise = launch_spread**2 + point_spread**2 / max(1, points)
    inner = covariance[np.ix_(arms, arms)] + noise * np.eye(len(arms))
    gained = np.linalg.solve(inner, covariance[arms]).T
    return Belief(filled + gained @ (values - filled[arms]), covariance - gained @ covariance[arms])


def chance_ok(alike: Floats, outcomes: Sequence[tuple[int, bool]]) -> Floats:
    """For each arm the chance that it works and holds the limits: its neighbours' outcomes, weighted by likeness.

    What failed makes what is near it less likely, and nothing impossible.
    """
    good = np.full(len(alike), OK_BEFORE)
    bad = np.ones(len(alike))
    for arm, worked in outcomes:
        weight = OK_BEFORE * alike[arm]
        if worked:
            good += weight
        else:
            bad += 2 * weight
    return np.asarray(good / (good + bad), dtype=np.float64)

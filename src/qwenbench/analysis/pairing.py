"""Two runs that drew the same requests: repeats move together, so their differences tell more than their levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qwenbench.analysis.request_arrays import Floats
from qwenbench.analysis.statistics import KEYS, RepeatTable

MAX_RATIO = 0.4
"""Repeats are paired where differences vary by less than this share of what independent runs would give."""
MIN_LOAD_POINTS = 4
"""So that chance in one of them does not decide it."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Standard errors of log ratios from paired repeats, load points x KEYS; NaN where not known."""

    variance: Floats
    degrees: Floats


def pair_repeats(before: RepeatTable, after: RepeatTable, places: Sequence[tuple[int, int]]) -> Paired | None:
    """Pairs the repeats of matching load points; None where that is not possible or does not help.

    `places` are the positions of each shared load point in either table. All repeats must have the same launch,
    repeat and seed on both sides. Whether pairing helps is judged once for the whole comparison, from the median over
    all rows of var(difference) / (var(before) + var(after)), so that no single row chooses what suits it.
    """
    variance = np.full((len(places), len(KEYS)), np.nan)
    degrees = np.full(variance.shape, np.nan)
    ratios = []
    for number, (i, j) in enumerate(places):
        ours, theirs = before.repeats_of(i), after.repeats_of(j)
        if len(ours) < 2 or ours.keys() != theirs.keys() or any(seed is None for *_, seed in ours):
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.log([[ours[key], theirs[key]] for key in ours])  # repeats x 2 x KEYS
        logs[~np.isfinite(logs)] = np.nan
        spread = (logs[:, 1] - logs[:, 0]).var(axis=0, ddof=1)
        variance[number], degrees[number] = spread / len(ours), len(ours) - 1
        apart = logs.var(axis=0, ddof=1).sum(axis=0)
        ratios.append(spread[apart > 0] / apart[apart > 0])
    if len(places) < MIN_LOAD_POINTS or not np.concatenate(ratios).size:
        return None
    return Paired(variance, degrees) if float(np.nanmedian(np.concatenate(ratios))) < MAX_RATIO else None

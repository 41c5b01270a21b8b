"""Relative changes between two sets of estimates, with intervals, p-values and verdicts. See docs/statistics.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qwenbench.analysis.intervals import CONFIDENCE
from qwenbench.analysis.pairing import Paired
from qwenbench.analysis.request_arrays import Floats
from qwenbench.analysis.student import critical_t, two_sided_p

CORRECTION = "Benjamini-Hochberg"
"""How verdicts are corrected for the number of rows."""
FALSE_DISCOVERIES = 0.05
"""Expected share of verdicts that chance alone would give, at most."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Elementwise changes after / before - 1; NaN where not known."""

    change: Floats
    low: Floats
    """95 % interval, not corrected for the number of rows; NaN with one repeat on either side."""
    high: Floats
    p: Floats
    """Two-sided p-value of no change; NaN where there is no interval."""


def relative_changes(
    n_before: NDArray[np.int64], before: Floats, se_before: Floats, n_after: NDArray[np.int64], after: Floats,
    se_after: Floats, paired: Paired | None = None,
) -> Changes:  # fmt: skip
    """Changes of means with standard errors, all arrays of one shape.

    Where both means are above 0 the interval is that of the log ratio (delta method), else that of the
    difference over the mean before. Degrees of freedom after Welch and Satterthwaite, rounded down to a tenth.
    With `paired` the variance of log ratios is that of the differences of paired repeats, where it is known.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(before != 0, after / before, np.nan)
        logs = (before > 0) & (after > 0)
        shift = np.where(logs, np.log(np.where(logs, ratio, 1.0)), (after - before) / np.abs(before))
        shift = np.where(before != 0, shift, np.nan)
        variance_before = (se_before / before) ** 2
        variance_after = (se_after / np.where(logs, after, before)) ** 2
        total = variance_before + variance_after
        degrees = total**2 / (variance_before**2 / (n_before - 1) + variance_after**2 / (n_after - 1))
        if paired is not None:
            usable = logs & ~np.isnan(paired.variance)
            total = np.where(usable, paired.variance, total)
            degrees = np.where(usable, paired.degrees, degrees)
    several = (n_before >= 2) & (n_after >= 2) & ~np.isnan(total) & ~np.isnan(shift)
    low, high, p = (np.full(shift.shape, np.nan) for _ in range(3))
    for place in zip(*np.nonzero(several), strict=True):
        error = math.sqrt(total[place])
        if error == 0:  # repeats that do not differ at all, in neither run
            low[place] = high[place] = shift[place]
            p[place] = float(shift[place] == 0)
            continue
        freedom = math.floor(degrees[place] * 10) / 10
        half = _critical(freedom) * error
        low[place], high[place] = shift[place] - half, shift[place] + half
        p[place] = two_sided_p(float(shift[place]) / error, freedom)
    return Changes(
        change=np.where(np.isnan(shift), np.nan, ratio - 1),
        low=np.where(logs, np.expm1(low), low),
        high=np.where(logs, np.expm1(high), high),
        p=p,
    )


@lru_cache(maxsize=4096)
def _critical(degrees: float) -> float:
    return critical_t(degrees, CONFIDENCE)


def shown_by(p: Floats, rate: float = FALSE_DISCOVERIES) -> NDArray[np.bool_]:
    """Which differences stand after correction for their number (Benjamini and Hochberg 1995); NaN: none.

    The largest k with p(k) <= rate x k / m is sought; the k smallest p-values stand.
    """
    flat = p.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    ordered = np.sort(flat[known])
    below = np.flatnonzero(ordered <= rate * np.arange(1, len(ordered) + 1) / max(1, len(ordered)))
    standing = np.zeros(flat.shape, dtype=np.bool_)
    if len(below):
        standing[known] = flat[known] <= ordered[below[-1]]
    return standing.reshape(p.shape)

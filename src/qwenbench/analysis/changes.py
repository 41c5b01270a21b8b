"""Relative changes between two sets of estimates, with intervals, p-values and verdicts; repeats of equal draws are
paired. See docs/statistics.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwenbench.analysis.intervals import CONFIDENCE, critical_t, two_sided_p
from qwenbench.analysis.request_arrays import Floats
from qwenbench.analysis.statistics import KEYS, RepeatTable
from qwenbench.runfolder.cells import load_label


@dataclass(frozen=True, slots=True)
class MetricChange:
    """One metric at one load point, before and after. None: not known."""

    run: str
    """The later run."""
    config: str
    scenario: str
    profile: str
    concurrency: int | None
    rate: float | None
    key: str
    before: float | None
    after: float | None
    change: float | None
    """after / before - 1."""
    low: float | None
    high: float | None
    verdict: str

    @property
    def load(self) -> str:
        """For people: `32 streams`, `2/s`, `trace`."""
        return load_label(self.concurrency, self.rate)

    def to_json(self) -> dict[str, Any]:
        return {("metric" if name == "key" else name): value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class CapacityChange:
    run: str
    config: str
    name: str
    before: float | None
    after: float | None


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


@dataclass(frozen=True, slots=True)
class Between:
    """What launches differ by, where a side was launched once: repeats of one launch do not show it."""

    variance: Floats
    """Of the log ratio, by load point; 0 where both sides were launched several times."""
    degrees: float


def relative_changes(
    n_before: NDArray[np.int64], before: Floats, se_before: Floats, n_after: NDArray[np.int64], after: Floats,
    se_after: Floats, paired: Paired | None = None, between: Between | None = None,
) -> Changes:  # fmt: skip
    """Changes of means with standard errors, all arrays of one shape.

    Where both means are above 0 the interval is that of the log ratio (delta method), else that of the
    difference over the mean before. Degrees of freedom after Welch and Satterthwaite, rounded down to a tenth.
    With `paired` the variance of log ratios is that of the differences of paired repeats, where it is known. `between`
    is added to either.
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
        if between is not None:
            added = np.broadcast_to(between.variance[:, None], total.shape)
            apart = (total**2 / degrees) + added**2 / between.degrees
            total = total + added
            degrees = np.where(added > 0, total**2 / apart, degrees)
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

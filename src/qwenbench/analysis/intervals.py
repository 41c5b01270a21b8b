"""Estimates over repeats with their intervals (Student's t, the two-level bootstrap), and statements about a share of
requests, judged exactly (Clopper and Pearson's bounds). See docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwenbench.analysis.request_arrays import Floats

_TINY = 1e-300
_MAX_TERMS = 500


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| >= |t|) for T with so many degrees of freedom (may be fractional).

    I_x(v/2, 1/2) with x = v / (v + t^2), Abramowitz & Stegun 26.7.1 / 26.5.27.
    """
    if math.isinf(t):
        return 0.0
    return incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


def critical_t(degrees: float, confidence: float = 0.95) -> float:
    """The t beyond which (both sides) lies 1 - confidence of the distribution; found by bisection."""
    wanted = 1 - confidence
    low, high = 0.0, 2.0
    while two_sided_p(high, degrees) > wanted:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if two_sided_p(middle, degrees) > wanted else (low, middle)
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (A&S 26.5.8, modified Lentz)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c = 1.0
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + factor * d)
            c = _away_from_zero(1 + factor / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


CONFIDENCE = 0.95
DRAWS = 500
"""Resamples per percentile: the standard error that comes of them is good to about 3 %."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over repeats with its standard error. `se` is None where nothing tells it (one repeat)."""

    n: int
    value: float | None
    se: float | None = None
    freedom: float | None = None
    """Degrees of freedom of the standard error where they are not those of n repeats."""
    floor: float = -math.inf
    """Nothing below it is possible: 0 for rates and times."""

    @property
    def degrees(self) -> float:
        return self.n - 1 if self.freedom is None else self.freedom

    @property
    def half_width(self) -> float | None:
        return None if self.se is None else critical(self.degrees) * self.se

    @property
    def low(self) -> float | None:
        """Lower end of the 95 % interval; None with one repeat, which is only indicative."""
        return None if self.half_width is None or self.value is None else max(self.floor, self.value - self.half_width)

    @property
    def high(self) -> float | None:
        return None if self.half_width is None or self.value is None else self.value + self.half_width


def interval_of_means(values: Sequence[float]) -> Estimate:
    """Mean of the repeats' values with Student's t interval. NaN values are left out."""
    return two_level([value for value in values if not math.isnan(value)], None)


def two_level(values: Sequence[float], within: Sequence[float] | None) -> Estimate:
    """Mean over repeats; `within` is the variance of each repeat's value when its requests are resampled."""
    count = len(values)
    if count == 0:
        return Estimate(0, None)
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    mean_within = math.fsum(within) / count if within is not None else math.nan
    error = standard_error(np.array([float(count)]), np.array([squares]), np.array([mean_within])).item()
    return Estimate(count, mean, None if math.isnan(error) else error)


def standard_error(count: Floats, squares: Floats, within: Floats) -> Floats:
    """Standard error of the mean of `count` repeats, elementwise; NaN under two of them.

    `squares` is the sum of squared deviations from the mean, `within` the mean over repeats of the variance that
    each one's value has when its requests are resampled (NaN: not known, counts as none). Resampling repeats with
    replacement, then the requests of each, gives the mean a variance of (squares / count + within) / count: the
    exact variance of the two-level bootstrap (Davison & Hinkley 1997, section 3.8). With few repeats that is too
    small by (count - 1) / count where repeats differ more than their requests explain, so it is never taken
    smaller than the classical squares / (count - 1) / count.
    """
    several = np.where(count >= 2, count, np.nan)
    classical = squares / (several - 1) / several
    resampled = (squares / several + np.nan_to_num(within, nan=0.0)) / several
    return np.asarray(np.sqrt(np.maximum(classical, resampled)), dtype=np.float64)


def combined(parts: Sequence[tuple[float, Estimate]]) -> Estimate:
    """A weighted sum of independent estimates; unknown where a part is. The least sure part sets `n` and `freedom`."""
    count = min(estimate.n for _, estimate in parts)
    values = [estimate.value for _, estimate in parts]
    if any(value is None for value in values):
        return Estimate(0, None)
    value = math.fsum(weight * estimate.value for weight, estimate in parts if estimate.value is not None)
    floor = math.fsum(weight * e.floor if weight > 0 else -math.inf for weight, e in parts)
    errors = [weight * estimate.se for weight, estimate in parts if estimate.se is not None]
    if len(errors) < len(parts):
        return Estimate(count, value, floor=floor)
    return Estimate(count, value, math.hypot(*errors), min(estimate.degrees for _, estimate in parts), floor)


def mean_variance(values: Floats) -> float:
    """Variance of the mean of resampled requests."""
    return float(values.var()) / len(values)


def percentile_variance(ordered: Floats, percent: float) -> float:
    """Variance of a percentile (numpy's linear method) of resampled requests; `ordered` ascending.

    The k-th smallest of n values drawn with replacement from `ordered` is its quantile at U, where U is the
    k-th smallest of n uniforms: Beta(k, n - k + 1). So only U is drawn, not n values (Efron 1979).
    """
    if len(ordered) < 2:
        return 0.0
    lower, upper, share = _drawn_positions(len(ordered), percent)
    below = ordered[lower]
    return float((below + share * (ordered[upper] - below)).var())


@lru_cache(maxsize=2048)
def _drawn_positions(count: int, percent: float) -> tuple[NDArray[np.int64], NDArray[np.int64], float]:
    """Positions in the ordered values of the two neighbours of a resample's percentile, and the share of the upper."""
    rng = np.random.default_rng([count, round(percent * 1000)])
    place = (count - 1) * percent / 100
    k = min(int(place), count - 2)
    first = rng.beta(k + 1, count - k, DRAWS)
    second = first + (1 - first) * rng.beta(1, count - k - 1, DRAWS)
    lower, upper = (np.minimum((u * count).astype(np.int64), count - 1) for u in (first, second))
    return lower, upper, place - k


def relative_half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % interval of the repeats' mean / the mean: what --until-ci compares. None under two repeats."""
    estimate = interval_of_means(values)
    if estimate.half_width is None or not estimate.value:
        return None
    return estimate.half_width / abs(estimate.value)


@lru_cache(maxsize=256)
def critical(degrees: float) -> float:
    """Half of a 95 % interval in standard errors, with so many degrees of freedom."""
    return critical_t(degrees, CONFIDENCE)


Verdict = Literal["shown", "broken", "open"]
ERROR = 0.05
"""Chance of calling a limit shown (or broken) that is not, each, at most."""
MOST_REQUESTS = 1_000_000
"""A share that needs more requests than this to settle lies at the limit."""


def at_most(count: int, trials: int, share: float) -> float:
    """P(X <= count) of a binomial X: I_(1 - share)(trials - count, count + 1), Abramowitz & Stegun 26.5.24."""
    if count >= trials:
        return 1.0
    if count < 0:
        return 0.0
    return incomplete_beta(trials - count, count + 1, 1 - share)


def shows(within: int, trials: int, needed: float) -> bool:
    """Whether so many of the trials show, at 95 %, that the true share is at least `needed`.

    That is Clopper and Pearson's one-sided lower bound held against `needed`: were the share any smaller, so many
    would be seen in fewer than one of 20 such measurements.
    """
    return trials > 0 and 1 - at_most(within - 1, trials, needed) <= ERROR


def breaks(within: int, trials: int, needed: float) -> bool:
    """Whether so few of the trials show, at 95 %, that the true share is below `needed`."""
    return trials > 0 and at_most(within, trials, needed) <= ERROR


@dataclass(frozen=True, slots=True)
class ShareTest:
    """Requests within a limit against the share that must be."""

    needed: float
    """0.99 for a p99."""
    trials: int
    within: int
    """Requests within the limit, at least."""
    within_most: int
    """At most: the same where every request is known; percentiles alone leave a range."""

    @property
    def verdict(self) -> Verdict:
        """`shown`, `broken` or `open`, with at most 5 % of errors each way."""
        if shows(self.within, self.trials, self.needed):
            return "shown"
        return "broken" if breaks(self.within_most, self.trials, self.needed) else "open"

    @property
    def exact(self) -> bool:
        """Whether every request is known."""
        return self.within == self.within_most

    @property
    def share(self) -> float | None:
        """The share seen; of a range its better end. None without a request."""
        return self.within_most / self.trials if self.trials else None

    @property
    def further(self) -> int | None:
        """Further requests that would settle it if the share stays as it was seen; 0 when it is settled.

        Without a miss so far: if none comes (299 in all for a p99). None where it lies so near the limit that
        MOST_REQUESTS would not do.
        """
        if self.verdict != "open":
            return 0
        missed = 0.0 if self.share is None else 1 - self.share
        low, high = self.trials, max(1, self.trials)
        while not _settled(high, missed, self.needed):
            low, high = high, 2 * high
            if high > MOST_REQUESTS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _settled(middle, missed, self.needed) else (middle, high)
        return high - self.trials


def _settled(trials: int, missed: float, needed: float) -> bool:
    within = trials - math.ceil(missed * trials - 1e-9)
    return shows(within, trials, needed) or breaks(within, trials, needed)


def share_test(within: int, trials: int, needed: float) -> ShareTest:
    """The test of a share of which every request is known."""
    return ShareTest(needed, trials, within, within)

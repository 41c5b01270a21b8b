"""Statements about a share of requests, judged exactly: Clopper and Pearson's bounds. See docs/statistics.md."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from qwenbench.analysis.intervals import incomplete_beta

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

"""A test of a share of requests that may be looked at after every request.

The exact binomial (analysis/intervals.py) is made for a number of requests fixed beforehand: who looks after every
request and stops when it is passed is wrong more often than one time in twenty. Here a bet is kept instead: against
"the share is at most q" the money grows by the likelihood ratio of each request, averaged over the shares above q
(half of it on clear cases). If the claim is true, the money reaches 20 times what was put in with a chance
of at most 1 in 20, however often one looks (Ville's inequality; Ramdas et al. 2023, "Game-theoretic statistics and safe
anytime-valid inference"). The price: a p99 is shown by 366 requests without a miss instead of 299.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from qwenbench.analysis.intervals import incomplete_beta

Verdict = Literal["shown", "broken", "open"]
ERROR = 0.05


CLEAR = 6
"""Half of the bet for a share lies on shares that miss at most this part of what may be missed: clear cases."""
NEAR = 5
"""Half of the bet against a share lies on shares that miss at most so many times what may be missed: close calls."""


@lru_cache(maxsize=65536)
def verdict(within: int, trials: int, needed: float) -> Verdict:
    """Whether the share is shown to be above `needed`, shown to be below, or open; errors of 5 % each way at most."""
    if trials == 0:
        return "open"
    clear = 1 - (1 - needed) / CLEAR
    if (_money(within, trials, needed, needed, 1.0) + _money(within, trials, needed, clear, 1.0)) / 2 >= 1 / ERROR:
        return "shown"
    near = max(0.0, 1 - NEAR * (1 - needed))
    against = (_money(within, trials, needed, 0.0, needed) + _money(within, trials, needed, near, needed)) / 2
    return "broken" if against >= 1 / ERROR else "open"


def _money(within: int, trials: int, needed: float, low: float, high: float) -> float:
    """The mean over shares p, evenly spread over (low, high), of (p/q)^k ((1-p)/(1-q))^(n-k).

    That is B(k+1, n-k+1) x [I_high - I_low](k+1, n-k+1) / ((high - low) x q^k (1-q)^(n-k)).
    """
    missed = trials - within
    mass = _below(within, missed, high) - _below(within, missed, low)
    if mass <= 0:
        return 0.0
    log_beta = math.lgamma(within + 1) + math.lgamma(missed + 1) - math.lgamma(trials + 2)
    at_limit = within * math.log(needed) + missed * math.log1p(-needed)
    return math.exp(min(700.0, log_beta + math.log(mass) - math.log(high - low) - at_limit))


def _below(within: int, missed: int, share: float) -> float:
    return incomplete_beta(within + 1, missed + 1, share)

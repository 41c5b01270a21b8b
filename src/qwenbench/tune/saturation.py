"""Whether an open loop is over-saturated: more arrives than is answered, so that the queue grows all the time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qwenbench.analysis.intervals import critical_t

BATCHES = 8
"""Neighbours wait alike: means of so many stretches of the point are compared, not single requests."""
LEAST = 64
"""Requests below which nothing is said."""


def grows(waits_ms: Sequence[float | None] | np.ndarray) -> bool:
    """Whether the wait for the first token rises with the order of arrival, at 95 % (one-sided t-test of the slope).

    By Little's law the queue is as long as the wait times the rate. The wait must also have doubled from the first
    quarter to the last: a slope that is sure and small is no over-saturation. Unknown waits (failures) are left out.
    """
    waits = np.array(waits_ms, dtype=np.float64)
    waits = waits[~np.isnan(waits)]
    if len(waits) < LEAST:
        return False
    means = np.array([part.mean() for part in np.array_split(waits, BATCHES)])
    place = np.arange(BATCHES) - (BATCHES - 1) / 2
    slope = float(place @ means / (place @ place))
    left = means - means.mean() - slope * place
    error = float(np.sqrt(left @ left / (BATCHES - 2) / (place @ place)))
    doubled = means[-2:].mean() >= 2 * means[:2].mean()
    return bool(slope > critical_t(BATCHES - 2, 0.9) * error and doubled)

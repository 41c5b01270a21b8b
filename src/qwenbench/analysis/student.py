"""Student's t distribution, as far as intervals and tests need it (no SciPy among the dependencies)."""

from __future__ import annotations

import math

_TINY = 1e-300
_MAX_TERMS = 500


def two_sided_p(t: float, degrees: float) -> float:
    """P(|T| >= |t|) for T with so many degrees of freedom (may be fractional).

    I_x(v/2, 1/2) with x = v / (v + t^2), Abramowitz & Stegun 26.7.1 / 26.5.27.
    """
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))


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


def _incomplete_beta(a: float, b: float, x: float) -> float:
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

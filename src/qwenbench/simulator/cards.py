"""The card that is simulated. The recorded server ran on an H200; every other card's speed is extrapolated."""

from __future__ import annotations

from qwenbench.capacity.cards import Card, find_card

MEASURED = "h200"
_POWER_LIMIT_W = {
    "rtx-5090": 575.0,
    "rtx-5080": 360.0,
    "rtx-4090": 450.0,
    "rtx-3090": 350.0,
    "l4": 72.0,
    "l40s": 350.0,
    "a100-80g": 400.0,
    "h100": 700.0,
    "h200": 700.0,
}
"""Data sheets' board power."""
_UNKNOWN_LIMIT_W = 400.0


def power_limit_w(card: Card) -> float:
    """The board's power limit in W, 400 where it is not known (the power model is rough anyway)."""
    return _POWER_LIMIT_W.get(card.name, _UNKNOWN_LIMIT_W)


def relative_speed(card: Card) -> tuple[float, float]:
    """(memory bandwidth, BF16 compute) of the card in units of the measured one."""
    measured = find_card(MEASURED)
    return card.bandwidth_gb_s / measured.bandwidth_gb_s, card.bf16_tflops / measured.bf16_tflops

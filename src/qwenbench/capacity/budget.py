"""Keeping a smaller card's memory budget on a larger card."""

from __future__ import annotations

from qwenbench.capacity.cards import Card
from qwenbench.errors import UsageError


def utilization_for_card(card: Card, real_cuda_total_gib: float, fraction: float, *, platform: str = "linux") -> float:
    """The --gpu-memory-utilization that gives a real card the budget of a smaller one.

    `fraction` is the utilisation meant for `card`; its budget is fraction x the card's CUDA total. The
    result is rounded down to five digits so that the budget is never the larger one. Raises UsageError for
    a fraction outside (0, 1] and when the real card is smaller than the budget.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--gpu-memory-utilization {fraction:g} is no fraction of a card: give 0 < U <= 1")
    if real_cuda_total_gib <= 0:
        raise UsageError(f"the card's memory ({real_cuda_total_gib:g} GiB) must be positive")
    budget = fraction * card.cuda_gib(platform)
    utilization = int(budget / real_cuda_total_gib * 1e5) / 1e5
    if budget > real_cuda_total_gib:
        raise UsageError(
            f"the budget of {card.name} ({fraction:g} x {card.cuda_gib(platform):.2f} GiB = {budget:.2f} GiB) "
            f"does not fit on this card ({real_cuda_total_gib:.2f} GiB): leave --card out"
        )
    return utilization

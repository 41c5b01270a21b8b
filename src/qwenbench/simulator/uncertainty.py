"""How far a simulated figure may be off, as a value that can be printed: what was seen to go wrong, by what is known.

calibration.json holds, for each figure, the least and the largest recorded / simulated over all recorded loads: with
numbers fitted without the load's own run (the machine known), with the typical host of the other machines, and with
the other card's kernels as well. A card that was never measured gets the last, widened by what an architecture may do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwenbench.capacity.cards import find_card
from qwenbench.capacity.model_shape import SEED_MODEL, SEED_SHAPE, known_shape
from qwenbench.simulator.steptime import calibration, measured_cards

OTHER_ARCHITECTURE = 2.0
"""Stated, not measured: both measured cards are Hopper, where NVFP4 runs through Marlin (weights only). A card with
FP4 kernels of its own may prefill several times as fast as its BF16 figure says, one without Marlin's tuning slower."""


OTHER_MODEL = 2.0
"""Stated, not measured: another model's times are scaled by its weights, whichever of them a token reads."""


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """recorded / simulated, least and largest, of tokens_per_s, itl_p50_ms and ttft_p50_ms."""

    factors: Mapping[str, tuple[float, float]]
    basis: str
    """In words what it rests on."""

    def text(self) -> str:
        """One sentence for a log, a report or a README."""
        names = {"tokens_per_s": "tokens/s", "itl_p50_ms": "ITL", "ttft_p50_ms": "TTFT"}
        shown = ", ".join(
            f"{label} {self.factors[key][0]:.2g} to {self.factors[key][1]:.2g} times" for key, label in names.items()
        )
        return f"Real figures lay at {shown} the simulated ones ({self.basis})."


def uncertainty_of(card: str, machine: str | None = None, model: str = SEED_MODEL) -> Uncertainty:
    """What is known of a card in a machine (--sim-host; None: the typical one) with a model.

    Raises UsageError for an unknown card.
    """
    values = calibration()["uncertainty"]
    name = find_card(card).name
    widened = 1.0
    if name not in measured_cards():
        known = "other_card"
        basis = (
            f"{name} was never measured: the spread seen from one card to another, widened {OTHER_ARCHITECTURE:g} "
            "times for another architecture"
        )
        widened *= OTHER_ARCHITECTURE
    elif machine is not None:
        known, basis = "same_host", f"{name} in a machine that was measured: every run judged by the others"
    else:
        known, basis = "other_host", f"{name} in a machine that was not measured: every machine judged by the others"
    shape = known_shape(model)
    if shape is None or shape.weights != SEED_SHAPE.weights:
        widened *= OTHER_MODEL
        basis += f"; another model than {SEED_MODEL}: widened {OTHER_MODEL:g} times"
    return Uncertainty({key: (low / widened, high * widened) for key, (low, high) in values[known].items()}, basis)

"""Mixes: so many rows of each of several datasets, drawn from a seed in one pass over each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from qwenbench.errors import UsageError
from qwenbench.workload.prompts import Prompt

MIXES: Mapping[str, Mapping[str, int]] = {"seed": {"ultrachat": 256, "gsm8k": 256, "code-alpaca": 256, "aya": 256}}
"""Mix -> dataset format -> rows. `seed`: what the card ig1/Qwen3.5-9B-NVFP4 was calibrated with."""


def find_mix(name: str) -> Mapping[str, int]:
    """The mix of this name. Raises UsageError that lists them."""
    if name not in MIXES:
        raise UsageError(f"--mix {name!r}: unknown. Mixes: {', '.join(MIXES)}.")
    return MIXES[name]


def draw(prompts: Iterable[Prompt], count: int, seed: int, name: str) -> list[Prompt]:
    """`count` prompts, each equally likely, in the order in which they stood; memory holds only those.

    Reservoir sampling (Algorithm R, J. S. Vitter, ACM TOMS 1985). Raises UsageError when there are fewer.
    """
    chance = random.Random(f"{seed}|{name}")
    kept: list[tuple[int, Prompt]] = []
    for number, prompt in enumerate(prompts):
        if len(kept) < count:
            kept.append((number, prompt))
        elif (place := chance.randrange(number + 1)) < count:
            kept[place] = (number, prompt)
    if len(kept) < count:
        raise UsageError(
            f"{name}: only {len(kept)} usable rows, {count} are wanted. Give more rows, or --each {len(kept)}."
        )
    return [prompt for _, prompt in sorted(kept, key=lambda pair: pair[0])]

"""After a stop: wait until the card's memory is given back, so that the next server measures an empty card."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_POLL_S = 0.03
SLACK_MIB = 64.0
"""How far above the value before the launch still counts as given back: contexts of other programs come and go."""


@dataclass(frozen=True, slots=True)
class DrainReport:
    """How the wait went."""

    seconds: float
    drained: bool
    """False when the limit was reached with memory still held."""
    left_mib: Mapping[str, float]
    """Per card (UUID): what is used now above what was used before the launch, never negative."""


async def wait_drained(
    read_used_mib: Callable[[], Mapping[str, float]], before: Mapping[str, float], limit_s: float
) -> DrainReport:
    """Waits until every card uses no more than before the launch (+ 64 MiB), at most `limit_s` seconds.

    `read_used_mib` gives MiB in use per card UUID, now; cards that `before` does not know are passed over.
    """
    began = time.monotonic()
    while True:
        now = read_used_mib()
        left = {card: max(0.0, now[card] - used) for card, used in before.items() if card in now}
        seconds = time.monotonic() - began
        if all(mib <= SLACK_MIB for mib in left.values()):
            return DrainReport(seconds, True, left)
        if seconds >= limit_s:
            return DrainReport(seconds, False, left)
        await asyncio.sleep(_POLL_S)

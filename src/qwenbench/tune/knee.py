"""The largest number of users that a running server holds within the limits: doubling, then bisection."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

STEP = 1.1
"""Two loads closer than this are one knee."""
Asked = TypeVar("Asked")
Told = TypeVar("Told")


def knee(
    first: int, most: int, holds: Callable[[int], Generator[Asked, Told, bool]]
) -> Generator[Asked, Told, tuple[int, int | None]]:
    """(largest load that held, smallest that did not; None: `most` held), beginning at `first`.

    `holds(users)` is a generator of the search's own steps that returns whether the load held. The busiest load comes
    first: where it begins with what the best server so far holds, one probe drops a server that does not.
    """
    held, broke = 0, most + 1
    users = max(1, min(first, most))
    while broke - held > 1 and (held == 0 or broke > STEP * held):
        if (yield from holds(users)):
            held = users
        else:
            broke = users
        if broke > most:
            users = min(most, 2 * held)
        else:
            users = max(held + 1, min(broke - 1, round((held * broke) ** 0.5) if held else broke // 2))
        if users <= held:
            break
    return held, broke if broke <= most else None

"""The rows of a comparison: one metric at one load point, or one capacity, before and after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Change:
    """One metric at one load point, before and after. None: not known."""

    run: str
    """The later run."""
    config: str
    scenario: str
    profile: str
    concurrency: int | None
    rate: float | None
    key: str
    before: float | None
    after: float | None
    change: float | None
    """after / before - 1."""
    low: float | None
    high: float | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """A row of `compare --json`."""
        row = {name: getattr(self, name) for name in self.__slots__}
        return {("metric" if name == "key" else name): value for name, value in row.items()}


@dataclass(frozen=True, slots=True)
class Capacity:
    """One capacity of one configuration, before and after."""

    run: str
    config: str
    name: str
    before: float | None
    after: float | None

"""Token lengths: how many tokens a request asks for, drawn from a seed."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from qwenbench.errors import UsageError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?\Z")


class Lengths(BaseModel):
    """A number of tokens: fixed (`128`), uniform (`64-256`), or log-normal around a median.

    Real output lengths are close to log-normal: many short answers, a long tail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: int = Field(ge=1, description="Smallest length in tokens.")
    max: int = Field(ge=1, le=1_000_000, description="Largest length in tokens.")
    median: int | None = Field(default=None, ge=1, description="Median of a log-normal; unset: uniform over min..max.")
    sigma: float = Field(default=0.6, gt=0, le=3, description="Standard deviation of the logarithm.")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"min": value, "max": value}
        if isinstance(value, str):
            match = _RANGE.match(value.strip())
            if match is None:
                raise ValueError("give N or MIN-MAX, e.g. 128 or 64-256")
            return {"min": int(match[1]), "max": int(match[2] or match[1])}
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Lengths:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        if self.median is not None and not self.min <= self.median <= self.max:
            raise ValueError(f"median {self.median} lies outside {self.min}..{self.max}")
        return self

    def draw(self, random: np.random.Generator) -> int:
        """One length in tokens, within min..max."""
        if self.median is None:
            return int(random.integers(self.min, self.max + 1))
        drawn = self.median * math.exp(self.sigma * random.standard_normal())
        return int(min(max(round(drawn), self.min), self.max))


def parse_lengths(text: str, option: str) -> Lengths:
    """Reads N or MIN-MAX from a command line. Raises UsageError that names the option."""
    try:
        return Lengths.model_validate(text)
    except ValueError:
        raise UsageError(f"{option} {text!r}: give N or MIN-MAX in tokens, from 1, e.g. 128 or 64-256.") from None

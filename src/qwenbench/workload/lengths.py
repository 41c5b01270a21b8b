"""Token lengths: how many tokens a request asks for, drawn from a seed, and texts of a length without a tokenizer."""

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


CHARS_PER_TOKEN = 4.0
"""English text under a Qwen tokenizer; a sweep measures the server's own ratio with /tokenize and passes it on."""

# Plain words, so that a synthetic prompt tokenizes like text and no two of them share a prefix.
_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home water room "
    "mother area money story fact month lot right study book eye job word business issue side kind head house "
    "service friend father power hour game line end member law car city community name president team minute idea "
    "body information back parent face others level office door health person art war history party result change "
    "morning reason research girl guy moment air teacher force education river garden window paper letter music"
).split()

_BACKGROUND = "Background notes, for reference:\n"
_TASK = "\n\nWith these notes in mind:\n"


def plain_words(tokens: int, random: np.random.Generator) -> str:
    """About so many tokens of plain words (nearly all of them are one token with their blank)."""
    return " ".join(_WORDS[index] for index in random.integers(0, len(_WORDS), max(tokens, 1)))


def stretched(text: str, tokens: int, random: np.random.Generator, chars_per_token: float = CHARS_PER_TOKEN) -> str:
    """The text with notes put before it, or cut at its end, so that it has about `tokens` tokens."""
    wanted = max(1, round(tokens * chars_per_token))
    missing = wanted - len(text) - len(_BACKGROUND) - len(_TASK)
    if missing <= 0:
        return text[:wanted]
    # one word and its blank come to one token, whatever the characters per token of the set are
    return _BACKGROUND + plain_words(round(missing / chars_per_token), random) + _TASK + text

"""Prompts of a target length, without a tokenizer at hand."""

from __future__ import annotations

import numpy as np

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

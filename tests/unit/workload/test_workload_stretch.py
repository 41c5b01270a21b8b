"""Prompts of a target length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.workload.scenario import plain_words, stretched


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("tokens", [1, 100, 8192])
def test_plain_words_are_one_token_each(tokens: int) -> None:
    words = plain_words(tokens, random()).split(" ")
    assert len(words) == tokens
    assert all(word.isascii() and word.isalpha() for word in words)


def test_a_stretched_prompt_still_asks_its_question_at_the_end() -> None:
    text = stretched("What is the capital of France?", 8192, random())
    assert text.endswith("\n\nWith these notes in mind:\nWhat is the capital of France?")
    assert len(text.split()) == pytest.approx(8192, rel=0.02)  # words of plain English, about one token each


@given(st.text(min_size=200, max_size=400), st.integers(1, 40))
def test_a_longer_prompt_is_cut(text: str, tokens: int) -> None:
    assert text.startswith(stretched(text, tokens, random(), chars_per_token=4))
    assert len(stretched(text, tokens, random(), chars_per_token=4)) == tokens * 4


def test_notes_differ_between_draws_from_their_first_words_on() -> None:
    """Notes that began alike would be found in the prefix cache."""
    one, other = (stretched("Why?", 500, random(seed)) for seed in (1, 2))
    assert one.split()[4:12] != other.split()[4:12]

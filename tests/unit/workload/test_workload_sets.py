"""The four shipped prompt sets hold what the README says they hold."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from qwenbench.workload.prompts import Prompt, load_prompt_set
from qwenbench.workload.scenario import load_scenario, shipped_scenarios

NAMES = ("conversation", "math", "code", "multilingual")
TEMPLATE_WORDS = 8  # a prompt's first words: how often may the same opening come back?


@cache
def prompts_of(name: str) -> tuple[Prompt, ...]:
    path = load_scenario(name).prompts_path
    assert path is not None
    return load_prompt_set(path).prompts


def spoken(prompt: Prompt) -> str:
    return "\n".join(turn.user for turn in prompt.turns)


def shingles(text: str) -> frozenset[str]:
    """Runs of three words, and of five characters where words are not set apart by blanks."""
    words = text.casefold().split()
    by_word = {" ".join(words[place : place + 3]) for place in range(len(words) - 2)}
    dense = "".join(words)
    by_letter = {dense[place : place + 5] for place in range(len(dense) - 4)}
    return frozenset(by_word | by_letter)


def script(text: str) -> str:
    """The writing system that most of its letters belong to, by Unicode's names."""
    names = (unicodedata.name(letter, "?").split(" ")[0] for letter in text if letter.isalpha())
    return Counter(names).most_common(1)[0][0]


def test_the_four_scenarios_are_shipped() -> None:
    assert set(NAMES) <= set(shipped_scenarios())


@pytest.mark.parametrize("name", NAMES)
def test_each_set_is_large_enough(name: str) -> None:
    assert len(prompts_of(name)) >= 96


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_is_a_near_copy_of_another(name: str) -> None:
    """Near copies would share prefixes, and measure one prompt many times."""
    sets = [(prompt.id, shingles(spoken(prompt))) for prompt in prompts_of(name)]
    close = [
        (one, other, round(len(left & right) / len(left | right), 2))
        for (one, left), (other, right) in combinations(sets, 2)
        if len(left & right) > 0.2 * len(left | right)
    ]
    assert not close


def test_no_prompt_stands_in_two_sets() -> None:
    everywhere = [(name, shingles(spoken(prompt))) for name in NAMES for prompt in prompts_of(name)]
    assert not [
        (one, other)
        for (one, left), (other, right) in combinations(everywhere, 2)
        if one != other and len(left & right) > 0.2 * len(left | right)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_openings_vary(name: str) -> None:
    """A set made from a template begins alike again and again."""
    openings = Counter(" ".join(spoken(prompt).split()[:TEMPLATE_WORDS]) for prompt in prompts_of(name))
    assert openings.most_common(1)[0][1] <= 2


@pytest.mark.parametrize("name", NAMES)
def test_lengths_are_spread_as_traffic_is(name: str) -> None:
    """Many short requests and a long tail: a mean above the median, and a factor of ten between the tenths."""
    sent = np.array([len(spoken(prompt)) for prompt in prompts_of(name)])
    assert np.mean(sent) > 1.15 * np.median(sent)
    assert np.quantile(sent, 0.95) > 4 * np.quantile(sent, 0.1)
    assert sent.max() < 2_600 * 4  # about 2,000 tokens, with room for scripts of many bytes a letter


def test_conversations_have_two_to_eight_turns() -> None:
    turns = Counter(len(prompt.turns) for prompt in prompts_of("conversation"))
    assert set(turns) == set(range(2, 9))
    assert all(turn.assistant for prompt in prompts_of("conversation") for turn in prompt.turns[:-1])


def test_every_math_problem_has_its_answer() -> None:
    for prompt in prompts_of("math"):
        assert prompt.answer, prompt.id
        assert prompt.answer.strip() == prompt.answer


def test_a_math_problem_does_not_give_its_answer_away() -> None:
    """An answer that stands in the question checks nothing (small whole numbers aside, which stand everywhere)."""
    long_answers = [prompt for prompt in prompts_of("math") if prompt.answer and len(prompt.answer) >= 4]
    given = [prompt.id for prompt in long_answers if str(prompt.answer) in spoken(prompt)]
    assert len(given) <= len(long_answers) * 0.05, given


def test_code_has_many_languages_and_context_to_read() -> None:
    tags = Counter(tag for prompt in prompts_of("code") for tag in prompt.tags)
    assert len({"python", "typescript", "go", "sql", "java", "rust", "c++", "bash"} & set(tags)) >= 6
    assert sum(spoken(prompt).count("\n") >= 8 for prompt in prompts_of("code")) >= 32


def test_multilingual_has_sixteen_languages_and_scripts_beyond_latin() -> None:
    prompts = prompts_of("multilingual")
    assert len({prompt.language for prompt in prompts}) >= 16
    scripts = Counter(script(spoken(prompt)) for prompt in prompts)
    assert {"LATIN", "CYRILLIC", "ARABIC", "HEBREW", "DEVANAGARI", "CJK", "HANGUL", "GREEK", "THAI"} <= set(scripts)
    assert sum(count for name, count in scripts.items() if name != "LATIN") >= len(prompts) / 3


LANGUAGE_SCRIPTS = {
    "ru": "CYRILLIC", "uk": "CYRILLIC", "el": "GREEK", "ar": "ARABIC", "he": "HEBREW", "hi": "DEVANAGARI",
    "zh": "CJK", "ko": "HANGUL", "th": "THAI",
}  # fmt: skip


def test_languages_are_tagged_as_they_are_written() -> None:
    for prompt in prompts_of("multilingual"):
        written = script(spoken(prompt))
        expected = LANGUAGE_SCRIPTS.get(prompt.language, "LATIN")
        if prompt.language == "ja":
            assert written in {"HIRAGANA", "KATAKANA", "CJK"}, prompt.id
        else:
            assert written == expected, f"{prompt.id}: {prompt.language} in {written}"


@pytest.mark.parametrize("name", NAMES)
def test_no_text_was_broken_on_its_way(name: str) -> None:
    for prompt in prompts_of(name):
        text = spoken(prompt) + "".join(turn.assistant or "" for turn in prompt.turns)
        assert "\ufffd" not in text, prompt.id
        assert not any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in text), prompt.id

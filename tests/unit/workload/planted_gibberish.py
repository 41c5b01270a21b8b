"""Gibberish of every kind that broken caches, weights and kernels make, drawn from a seed."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence

Case = dict[str, str]
"""Keyword arguments of `judge`."""


def _length(draw: random.Random) -> int:
    return int(min(3000, max(60, draw.lognormvariate(6.2, 0.8))))


def _opening(draw: random.Random, real: Sequence[str]) -> str:
    """Half of all gibberish begins well."""
    return draw.choice(real)[: draw.randint(0, 300)] if draw.random() < 0.5 else ""


def word_loop(draw: random.Random, real: Sequence[str]) -> Case:
    word = draw.choice(draw.choice(real).split()) + " "
    return {"text": _opening(draw, real) + word * max(12, _length(draw) // len(word))}


def phrase_loop(draw: random.Random, real: Sequence[str]) -> Case:
    words = draw.choice(real).split()
    start = draw.randrange(max(1, len(words) - 8))
    phrase = " ".join(words[start : start + draw.randint(3, 8)])[:80] + " "
    return {"text": _opening(draw, real) + phrase * max(8, _length(draw) // len(phrase))}


def sentence_loop(draw: random.Random, real: Sequence[str]) -> Case:
    text = draw.choice([one for one in real if len(one) > 250])
    sentence = text[: draw.randint(80, 240)] + "\n"
    return {"text": _opening(draw, real) + sentence * draw.randint(5, 12)}


def counting_loop(draw: random.Random, real: Sequence[str]) -> Case:
    words = " ".join(draw.choice(real).split()[:6])[:60]
    return {"text": "\n".join(f"{number}. {words}" for number in range(1, draw.randint(15, 60)))}


def one_character(draw: random.Random, real: Sequence[str]) -> Case:
    return {"text": _opening(draw, real) + draw.choice("!!!!0?.ar的あ\n") * _length(draw)}


def symbol_soup(draw: random.Random, real: Sequence[str]) -> Case:
    alphabet = string.punctuation + draw.choice(["", " ", "0123456789 ", "§¶†‡•¤¢£¥€©®™ ", "→←↑↓∑∏√∞≈≠ "])
    return {"text": "".join(draw.choices(alphabet, k=_length(draw)))}


def random_printable(draw: random.Random, real: Sequence[str]) -> Case:
    return {"text": "".join(draw.choices(string.printable[:95], k=max(120, _length(draw))))}


def random_letters(draw: random.Random, real: Sequence[str]) -> Case:
    letters = draw.choice([string.ascii_lowercase, string.ascii_letters])
    return {"text": "".join(draw.choices(letters + " " * (len(letters) // 6), k=max(200, _length(draw))))}


def random_ideographs(draw: random.Random, real: Sequence[str]) -> Case:
    return {"text": "".join(chr(draw.randint(0x4E00, 0x9FFF)) for _ in range(_length(draw) // 2)), "language": "zh"}


def random_hangul(draw: random.Random, real: Sequence[str]) -> Case:
    return {"text": "".join(chr(draw.randint(0xAC00, 0xD7A3)) for _ in range(_length(draw) // 2)), "language": "ko"}


_BLOCKS = ((0x61, 0x7A), (0x3B1, 0x3C9), (0x430, 0x44F), (0x5D0, 0x5EA), (0x628, 0x64A), (0x915, 0x939),
           (0xE01, 0xE2E), (0x3041, 0x3093), (0x4E00, 0x5E00), (0xAC00, 0xB000))  # fmt: skip


def script_soup(draw: random.Random, real: Sequence[str]) -> Case:
    words = []
    for _ in range(_length(draw) // 5):
        first, last = draw.choice(_BLOCKS)
        words.append("".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 5))))
    return {"text": draw.choice(["", " "]).join(words), "language": draw.choice(["en", "de", "zh", "ru", "ar"])}


def token_soup(draw: random.Random, real: Sequence[str]) -> Case:
    """Pieces of real text in every language, as a wrecked output layer draws tokens."""
    pieces = []
    for _ in range(_length(draw) // 4):
        # a vocabulary is about half Latin
        text = draw.choice(real)
        if draw.random() < 0.5:
            text = draw.choice([one for one in real if not one[:40].isascii()])
        start = draw.randrange(max(1, len(text) - 4))
        pieces.append(text[start : start + draw.randint(1, 5)])
    return {"text": "".join(pieces), "language": draw.choice(["en", "de", "fr"])}


def replacement_characters(draw: random.Random, real: Sequence[str]) -> Case:
    share = draw.uniform(0.05, 1.0)
    text = draw.choice(real)[: _length(draw)]
    return {"text": "".join("\ufffd" if draw.random() < share else char for char in text) + "\ufffd\ufffd\ufffd"}


def cut_bytes(draw: random.Random, real: Sequence[str]) -> Case:
    return {"text": draw.randbytes(_length(draw)).decode("utf-8", "replace")}


def wrong_script(draw: random.Random, real: Sequence[str]) -> Case:
    alphabets = {
        "en": (0x4E00, 0x5E00),
        "fr": (0x430, 0x44F),
        "ja": (0x61, 0x7A),
        "ru": (0x61, 0x7A),
        "es": (0x628, 0x64A),
    }
    language = draw.choice(list(alphabets))
    first, last = alphabets[language]
    words = [
        "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(2, 8))) for _ in range(_length(draw) // 5)
    ]
    return {"text": " ".join(words), "language": language}


def empty(draw: random.Random, real: Sequence[str]) -> Case:
    return {"text": draw.choice(["", " ", "\n\n", "\n"]), "finish_reason": "stop"}


def reasoning_never_closed(draw: random.Random, real: Sequence[str]) -> Case:
    thought = draw.choice(real)
    if draw.random() < 0.5:
        return {"text": "", "reasoning": thought, "finish_reason": "stop"}
    return {"text": "<think>\n" + thought, "finish_reason": "stop"}


def glued_pieces(draw: random.Random, real: Sequence[str]) -> Case:
    """What SmolLM2 says when its cache is clipped: tokens of real words, few of them with a space before them."""
    words = [word.lower() for word in draw.choice(real).split() if word.isascii() and word.isalpha()] or ["the", "of"]
    words += "further evidence of otherwise building research amazing musing session setting building".split()
    pieces = []
    for _ in range(max(50, _length(draw) // 6)):
        word = draw.choice(words)
        piece = word[: draw.randint(3, 9)] if draw.random() < 0.5 else word[-draw.randint(3, 9) :]
        pieces.append((draw.choice([" ", " ", "_-_", "\n_", "():", "____"]) if draw.random() < 0.3 else "") + piece)
    return {"text": "".join(pieces)}


PLANTED: dict[str, tuple[Callable[[random.Random, Sequence[str]], Case], frozenset[str]]] = {
    "word loop": (word_loop, frozenset({"loop", "one_character"})),
    "phrase loop": (phrase_loop, frozenset({"loop"})),
    "sentence loop": (sentence_loop, frozenset({"loop"})),
    "counting loop": (counting_loop, frozenset({"loop"})),
    "one character for ever": (one_character, frozenset({"one_character"})),
    "symbol soup": (symbol_soup, frozenset({"symbols"})),
    "random printable": (random_printable, frozenset({"entropy", "symbols"})),
    "random letters": (random_letters, frozenset({"entropy"})),
    "glued pieces": (glued_pieces, frozenset({"run_together"})),
    "random ideographs": (random_ideographs, frozenset({"entropy"})),
    "random Hangul": (random_hangul, frozenset({"entropy"})),
    "script soup": (script_soup, frozenset({"mixed_scripts", "wrong_script", "entropy"})),
    "token soup": (token_soup, frozenset({"mixed_scripts"})),
    "wrong script": (wrong_script, frozenset({"wrong_script"})),
    "replacement characters": (replacement_characters, frozenset({"replacement"})),
    "cut bytes": (cut_bytes, frozenset({"replacement"})),
    "empty": (empty, frozenset({"empty"})),
    "reasoning never closed": (reasoning_never_closed, frozenset({"reasoning_unclosed"})),
}
"""Kind of gibberish -> its generator, and the findings of which one must be there."""

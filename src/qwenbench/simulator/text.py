"""Tokens without a tokeniser: how many a prompt has, and plain words for an answer.

The counts are an estimate (about one token per short word, digit, two ideographs or three letters of another
script), the same wherever the simulator counts: usage, /tokenize, the KV cache.
"""

from __future__ import annotations

import hashlib
import random
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

VOCABULARY = 248_320

_PIECES = re.compile(
    r" ?[A-Za-z']{1,9}"
    r"|\d"
    r"|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{1,2}"
    r"|[^\W\d_]{1,3}"
    r"|\s+"
    r"|_+|[^\w\s]{1,2}"
)


def pieces(text: str) -> list[str]:
    """The text cut into tokens; joined they give the text again."""
    return _PIECES.findall(text)


def token_id(piece: str) -> int:
    """A stable number for a piece, inside the vocabulary's size."""
    return zlib.crc32(piece.encode()) % (VOCABULARY - 300)


def block_hashes(tokens: list[str], block_tokens: int, salt: str) -> tuple[bytes, ...]:
    """One hash per full block, each covering everything before it and the cache salt."""
    chain = hashlib.blake2b(salt.encode(), digest_size=16)
    hashes = []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        chain.update("\x00".join(tokens[start : start + block_tokens]).encode())
        chain.update(b"\x01")
        hashes.append(chain.digest())
    return tuple(hashes)


_UNSPACED = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]{2}")
_SPACED = re.compile(r"[^\W\d_]+(?:[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff]+[^\W\d_]*)*")
_FIRST_NOT_LATIN = "\u0370"
_LATIN_ENOUGH = 0.2
"""A prompt with a smaller share of other letters is answered in English; foreign ones quote Latin words, too."""
Pick = Callable[[Sequence[Any]], Any]
"""random.Random.choice of a seeded generator."""

_DETERMINERS = "the our this each every another one that".split()
_ADJECTIVES = """small clear early quiet steady useful plain common careful warm distant narrow simple recent
gentle bright local heavy open patient ordinary modern green deep late fresh broad familiar honest short
practical complete sudden regular private public gradual solid""".split()
_NOUNS = """river teacher garden window letter market engine bridge village answer reason method season friend
picture number morning harbour library paper kitchen travel forest student doctor question station mountain
table family machine record lesson weather signal basket evening corner story budget summer winter circle
measure pattern meeting message member plan result project example street journey model system detail""".split()
_VERBS = """follows explains holds carries shows needs keeps reaches brings changes covers moves supports finds
opens crosses answers describes improves protects measures repeats remembers connects prepares considers
prefers leaves gives makes takes offers turns joins""".split()
_LINKS = """because while although so and but when after before since where until if unless""".split()
_ADVERBS = """usually often slowly quickly carefully later again together almost never still soon clearly
rarely finally perhaps also simply nearly there""".split()
_PREPOSITIONS = "in on near behind under beside with without through across from toward".split()


def words(seed: int, vocabulary: tuple[str, ...] = ()) -> Iterator[str]:
    """An endless run of tokens that read as plain sentences, the same for the same seed.

    Words come with their leading space, punctuation marks are tokens of their own. With a `vocabulary` the words
    are drawn from it and make no sense, but are of its script.
    """
    pick = random.Random(seed).choice
    sentence = partial(_borrowed, vocabulary) if vocabulary else _sentence
    yield from (token.lstrip() if at == 0 else token for at, token in enumerate(sentence(pick)))
    while True:
        yield from sentence(pick)


def borrowed_words(prompt: str) -> tuple[str, ...]:
    """Words of a prompt in another script than Latin, to answer in the same one; () for Latin or too few."""
    letters = [character for character in prompt if character.isalpha()]
    foreign = sum(character >= _FIRST_NOT_LATIN for character in letters)
    if foreign <= _LATIN_ENOUGH * len(letters):
        return ()
    found = _UNSPACED.findall(prompt) or [" " + word for word in _SPACED.findall(prompt)]
    distinct = tuple(dict.fromkeys(word for word in found if word[-1] >= _FIRST_NOT_LATIN))
    return distinct if len(distinct) >= 8 else ()


def _borrowed(vocabulary: tuple[str, ...], pick: Pick) -> list[str]:
    spaced = vocabulary[0].startswith(" ")
    return [pick(vocabulary) for _ in range(pick(range(7, 15)))] + ["." if spaced else "\u3002"]


def _sentence(pick: Pick) -> list[str]:
    tokens = [pick(_DETERMINERS).capitalize(), pick(_ADJECTIVES), pick(_NOUNS), pick(_VERBS)]
    tokens += [pick(_DETERMINERS), pick(_NOUNS)]
    shape = pick((0, 1, 2, 3))
    if shape & 1:
        tokens += [pick(_PREPOSITIONS), pick(_DETERMINERS), pick(_ADJECTIVES), pick(_NOUNS)]
    if shape & 2:
        tokens += [",", pick(_LINKS), pick(_DETERMINERS), pick(_NOUNS), pick(_ADVERBS), pick(_VERBS)]
        tokens += [pick(_DETERMINERS), pick(_NOUNS)]
    return [token if token == "," else " " + token for token in tokens] + ["."]


def request_seed(seed: int, text: str) -> int:
    """A number that depends on the server's seed and on what was asked, and on nothing else."""
    return zlib.crc32(text.encode(), seed & 0xFFFFFFFF)


def natural_length(seed: int) -> int:
    """Output tokens of an answer that may stop by itself: log-normal, median about 220 tokens."""
    return max(1, min(int(random.Random(seed ^ 0x5EED).lognormvariate(5.4, 0.6)), 4096))

"""What kind of character each one is: a table that classifies a whole answer with one numpy look-up."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

BLANK, DIGIT, RULE, SYMBOL, REPLACEMENT, MARK = range(6)
"""Classes that belong to no script. RULE: what lines, tables and lists are drawn with; it is no sign of soup.
REPLACEMENT: U+FFFD, unassigned and private code points. MARK: combining marks and other characters in passing."""

_FIRST_SCRIPT = 6
LATIN_VOWEL, LATIN, CYRILLIC_VOWEL, CYRILLIC, GREEK_VOWEL, GREEK = range(_FIRST_SCRIPT, _FIRST_SCRIPT + 6)
ARABIC, HEBREW, DEVANAGARI, BENGALI, TAMIL, THAI, OTHER = range(12, 19)
KANA, HAN, HAN_RARE, HANGUL, HANGUL_RARE = range(19, 24)
CLASSES = 24

SCRIPTS: Mapping[str, tuple[int, ...]] = {
    "latin": (LATIN_VOWEL, LATIN),
    "cyrillic": (CYRILLIC_VOWEL, CYRILLIC),
    "greek": (GREEK_VOWEL, GREEK),
    "arabic": (ARABIC,), "hebrew": (HEBREW,), "devanagari": (DEVANAGARI,), "bengali": (BENGALI,), "tamil": (TAMIL,),
    "thai": (THAI,), "kana": (KANA,),
    "han": (HAN, HAN_RARE),
    "hangul": (HANGUL, HANGUL_RARE),
    "other": (OTHER,),
}  # fmt: skip
"""Script -> the classes of its letters."""

_RULES = frozenset("-=_^|+*#.~`,:;'\"()[]{}<>/\\")
_NAMED = {name.upper(): classes[-1] for name, classes in SCRIPTS.items()} | {
    "HIRAGANA": KANA, "KATAKANA": KANA, "CJK": HAN, "HANGUL": HANGUL
}  # fmt: skip
"""First word of a letter's Unicode name -> its class."""
_VOWELS = {LATIN: frozenset("aeiouy"), CYRILLIC: frozenset("аеёиоуыэюяіїє"), GREEK: frozenset("αεηιουω")}
_VOWEL_CLASS = {LATIN: LATIN_VOWEL, CYRILLIC: CYRILLIC_VOWEL, GREEK: GREEK_VOWEL}
_EXTRA_LATIN_VOWELS = frozenset("æœøıə")


def _double_bytes(codec: str, first: int, last: int) -> Iterator[str]:
    """Characters of a two-byte code whose lead bytes lie in first..last (national standards sort by frequency)."""
    for lead in range(first, last + 1):
        for trail in range(0x40, 0xFF):
            try:
                yield bytes((lead, trail)).decode(codec)
            except UnicodeDecodeError:
                continue


def _common_ideographs() -> set[str]:
    # the "frequently used" levels of mainland China, Taiwan and Japan: 99 % and more of written text
    return {
        *_double_bytes("gb2312", 0xB0, 0xD7),
        *_double_bytes("big5", 0xA4, 0xC6),
        *_double_bytes("euc_jp", 0xB0, 0xCF),
    }


def _letter(char: str, common: set[str], syllables: set[str]) -> int:
    script = _NAMED.get(unicodedata.name(char, "").split(" ", 1)[0].split("-", 1)[0], OTHER)
    if script == HAN:
        return HAN if char in common else HAN_RARE
    if script == HANGUL:
        return HANGUL if char in syllables or not "\uac00" <= char <= "\ud7a3" else HANGUL_RARE
    if script in _VOWELS:
        base = unicodedata.normalize("NFD", char.lower())[0]
        if base in _VOWELS[script] or base in _EXTRA_LATIN_VOWELS:
            return _VOWEL_CLASS[script]
    return script


def _class_of(char: str, common: set[str], syllables: set[str]) -> int:
    category = unicodedata.category(char)
    if char == "\ufffd" or category in ("Cn", "Co", "Cs"):
        return REPLACEMENT
    if category == "Cc":
        return BLANK if char in "\t\n\r\x0b\x0c" else REPLACEMENT
    if char.isspace():
        return BLANK
    if category == "Nd":
        return DIGIT
    if category[0] == "L" or category == "Nl":
        return _letter(char, common, syllables)
    if category[0] == "M" or category == "Cf":
        return MARK
    if char in _RULES or category in ("Pd", "Pi", "Pf") or "\u2500" <= char <= "\u259f" or "\u3000" <= char <= "\u303f":
        return RULE
    return SYMBOL


@cache
def class_table() -> npt.NDArray[np.uint8]:
    """Class of every code point of the basic plane, plus one last entry for all above it (emoji and the like)."""
    common = _common_ideographs()
    syllables = set(_double_bytes("euc_kr", 0xB0, 0xC8))
    table = np.empty(0x10001, dtype=np.uint8)
    for code in range(0x10000):
        table[code] = _class_of(chr(code), common, syllables)
    table[0x10000] = SYMBOL
    return table


def code_points(text: str) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint32]:
    """The text's code points; lone surrogates count as they are."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)

"""Is an answer broken? Cheap checks on its text, once its stream has ended. Nothing is stored.

The checks find what a broken KV cache, a broken quantisation or a broken kernel makes of a model: loops, one
character for ever, soup of symbols, letters or scripts. They do not find a wrong answer (see `canary`).
A length that is forced past the model's own end makes any model ramble: judge naturally stopped answers only.

Every limit below was set on real text (docs/workload.md has the table) to raise at most 0.5 % false alarms.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qwenbench.workload import characters as c

KINDS: Mapping[str, str] = {
    "empty": "no answer although the model stopped by itself",
    "loop": "the same words over and over",
    "one_character": "one character for ever",
    "symbols": "soup of symbols",
    "entropy": "letters or bytes without the order of any language",
    "run_together": "pieces of words run together, as tokens that mean nothing beside each other",
    "mixed_scripts": "words of several scripts mixed",
    "wrong_script": "not in the script of the prompt's language, nor a text in Latin letters that makes words",
    "replacement": "replacement, control or unassigned characters",
    "reasoning_unclosed": "the model stopped inside its reasoning",
}
"""Kind -> what it means, in the order in which `judge` lists them."""

SHORT = 20
"""Characters; a shorter answer (`42`) is judged only for being empty, one long run or replacement characters."""

_LONGEST = 20_000
"""Characters that are looked at: of a longer answer the first and the last half of this."""

_LANGUAGE_SCRIPTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ru", "uk", "bg", "be", "mk", "kk", "ky", "mn", "tg"), ("cyrillic",)),
    "sr": ("cyrillic", "latin"),
    "el": ("greek",),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ckb", "ug"), ("arabic",)),
    **dict.fromkeys(("he", "yi"), ("hebrew",)),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), ("devanagari",)),
    **dict.fromkeys(("bn", "as"), ("bengali",)),
    "ta": ("tamil",),
    "th": ("thai",),
    "zh": ("han",),
    "yue": ("han",),
    "ja": ("kana", "han"),
    "ko": ("hangul", "han"),
    **dict.fromkeys(("te", "kn", "ml", "gu", "pa", "or", "si", "my", "km", "lo", "ka", "hy", "am", "bo"), ("other",)),
}
"""Language -> the scripts that it is written in; a language that is not listed is written in Latin letters."""

_SCRIPT_NAMES = tuple(c.SCRIPTS)
_KANA_NUMBER, _HAN_NUMBER = (_SCRIPT_NAMES.index(name) + 1 for name in ("kana", "han"))
_SCRIPT_OF = np.zeros(c.CLASSES, dtype=np.uint8)
for _number, _classes in enumerate(c.SCRIPTS.values(), start=1):
    _SCRIPT_OF[list(_classes)] = _number
_ALPHABETS = ((c.LATIN_VOWEL, c.LATIN), (c.CYRILLIC_VOWEL, c.CYRILLIC), (c.GREEK_VOWEL, c.GREEK))
_SHORTEST_RUN = 24
_PAIR = re.compile(r"(?=([a-z][a-z]))")
# the 130 most frequent pairs of this project's prompts in all Latin-script languages and in code
_COMMON_PAIRS = frozenset(
    """ab ac ad ai al am an ap ar as at ay be ca ce ch ck co ct da de di do ea ec ed ee ef el em en ep er es et ex fa fi
    fo ge ha he hi ho ic id ie if il im in io ir is it ke la le li ll lo ls ma me mi mo mp na nc nd ne ng ni no ns nt nu
    od of ol om on oo op or os ot ou ow pa pe pl po pr ra re ri rn ro rs rt ru sa se sh si so ss st su ta te th ti to tr
    ts tu ue ul um un ur us ut ve wa we wh wi""".split()
)
_LOWER_CASE = re.compile(r"[a-zß-öø-ÿ]+")
_COMPOUNDING = frozenset("af da de et fi hu is lb nb nl nn no sv tr".split())
"""Languages that write several words as one."""
_LONG_WORD = re.compile(r"[a-zß-öø-ÿ]{15,}")
_NEWLINE = ord("\n")
_ITEM_NUMBER = re.compile(r"^[ \t]*\d+[.):]?[ \t]*", re.MULTILINE)
_PADDING = re.compile(r"([^\w\n])\1{2,}")
_FORMATTING = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+", re.DOTALL)
_OPEN_THINKING = re.compile(r"<think>(?!.*</think>)", re.DOTALL)


def judge(text: str, reasoning: str = "", language: str = "en", finish_reason: str | None = None) -> list[str]:
    """The kinds of broken output (keys of KINDS) that an answer shows; [] when none is found.

    `text` is the answer without its reasoning; `language` (BCP 47) is the one that it should be in,
    `und` when nobody knows.
    Reasoning may be in any language. An answer that a length limit cut off inside its reasoning
    (finish_reason `length`) is not broken: `cut_in_reasoning` tells that apart. A tool call may come without text.
    """
    found: set[str] = set()
    cut = finish_reason == "length"
    wanted = None if language in ("", "und") else language
    if text.strip():
        found |= _check(text, wanted)
        if not cut and "<think>" in text and _OPEN_THINKING.search(text):
            found.add("reasoning_unclosed")
    elif reasoning:
        if not cut and finish_reason != "tool_calls":
            found.add("reasoning_unclosed")
    elif finish_reason != "tool_calls":
        found.add("empty" if len(text) < SHORT else "one_character")
    if reasoning.strip():
        found |= _check(reasoning, None)
    return [kind for kind in KINDS if kind in found]


def cut_in_reasoning(reasoning_chars: int, answer_chars: int, finish_reason: str | None) -> bool:
    """Whether a thinking request reached its output limit before it began its answer."""
    return finish_reason == "length" and reasoning_chars > 0 and answer_chars == 0


def script_expected(language: str) -> tuple[str, ...]:
    """The scripts that a language (BCP 47) is written in."""
    return _LANGUAGE_SCRIPTS.get(language.lower().replace("_", "-").split("-", 1)[0], ("latin",))


def _check(text: str, language: str | None) -> set[str]:
    if len(text) > _LONGEST:
        text = text[: _LONGEST // 2] + text[-_LONGEST // 2 :]
    codes = c.code_points(text)
    classes = c.class_table().take(codes if codes.dtype == np.uint8 else np.minimum(codes, 0x10000))
    counts: list[int] = np.bincount(classes, minlength=c.CLASSES).tolist()
    found: set[str] = set()
    if counts[c.REPLACEMENT] > max(2, 0.02 * len(text)):
        found.add("replacement")
    if _endless_character(codes, classes):
        found.add("one_character")
    if len(text) < SHORT:
        return found
    packed = _packed_share(text)
    signs = counts[c.SYMBOL] + counts[c.RULE]
    if signs > 0.65 * (len(text) - counts[c.BLANK]) and not _drawn_lines(codes, classes, signs):
        found.add("symbols")
    if _disordered(text, counts, packed):
        found.add("entropy")
    if _run_together(text, language):
        found.add("run_together")
    if language is not None and not (text.isascii() and script_expected(language) == ("latin",)):
        found |= _check_scripts(text, language, classes)
    if "one_character" not in found and (packed < 0.25 or text.count(text[-20:], -1200) >= 4) and _repeats(text):
        found.add("loop")
    return found


def _endless_character(codes: npt.NDArray[Any], classes: npt.NDArray[np.uint8]) -> bool:
    """A run of one character that no rule, table, indentation or number explains."""
    alike = codes[1:] == codes[:-1]
    if np.count_nonzero(alike) < min(_SHORTEST_RUN, len(codes)) - 1:
        return False
    ends = np.flatnonzero(~alike)
    bounds = np.concatenate(([-1], ends, [len(codes) - 1]))
    runs = np.diff(bounds)
    place = int(runs.argmax())
    run, kind = int(runs[place]), int(classes[bounds[place + 1]])
    if kind == c.BLANK:
        return run >= (30 if codes[bounds[place + 1]] == _NEWLINE else 400)
    if kind == c.RULE:
        return run >= 200 or (run >= 40 and run > 0.5 * len(codes))
    return run >= 40 or (run >= _SHORTEST_RUN and kind != c.DIGIT) or (run == len(codes) and run >= 8)


def _drawn_lines(codes: npt.NDArray[Any], classes: npt.NDArray[np.uint8], signs: int) -> bool:
    """Whether the signs are mostly lines (`-----`, `====`): each like the one before it."""
    sign = (classes == c.SYMBOL) | (classes == c.RULE)
    alike = np.count_nonzero(sign[1:] & (codes[1:] == codes[:-1]))
    return bool(alike > 0.3 * signs)


def _disordered(text: str, counts: list[int], packed: float) -> bool:
    """Letters drawn by chance: pairs that no language puts together, or ideographs that nobody uses."""
    for vowel, consonant in _ALPHABETS:
        letters = counts[vowel] + counts[consonant]
        if letters >= 50 and letters > 0.3 * len(text) and packed > 0.55 and counts[vowel] < 0.35 * letters:
            # abbreviations and code have few vowels as well: where Latin letters do, their pairs decide
            latin = consonant == c.LATIN
            if _common_pairs(text) < 0.36 if latin else packed > 0.60 and counts[vowel] < 0.28 * letters:
                return True
    for rare, common in ((c.HAN_RARE, c.HAN), (c.HANGUL_RARE, c.HANGUL)):
        if counts[rare] + counts[common] >= 20 and counts[rare] > 0.25 * (counts[rare] + counts[common]):
            return True
    return False


def _run_together(text: str, language: str | None) -> bool:
    """Words cut in pieces and glued: over a quarter of the lower-case letters in two or more words of 15 and longer.

    Real text has at most 0.15 there, a model whose cache was clipped 0.31 to 0.70. A short answer in a language that
    makes one word of several may have more, so 0.6 are asked for there.
    """
    part = text[:4000]
    long_words = _LONG_WORD.findall(part)
    if len(set(long_words)) < 2:
        return False
    letters = sum(map(len, _LOWER_CASE.findall(part)))
    limit = 0.6 if (language or "").lower().split("-", 1)[0] in _COMPOUNDING else 0.25
    return sum(map(len, long_words)) > limit * letters


def _common_pairs(text: str) -> float:
    """Share of adjacent Latin letters that are a common pair: 0.6 to 0.85 in languages and code, 0.19 by chance."""
    pairs = _PAIR.findall(text[:4000].lower())
    return sum(map(_COMMON_PAIRS.__contains__, pairs)) / len(pairs) if len(pairs) >= 25 else 1.0


def _check_scripts(text: str, language: str, classes: npt.NDArray[np.uint8]) -> set[str]:
    """`mixed_scripts` and `wrong_script`, code and addresses left out."""
    if "`" in text or "://" in text:
        codes = c.code_points(_FORMATTING.sub(" ", text))
        classes = c.class_table()[np.minimum(codes.astype(np.uint32), 0x10000)]
    scripts = _SCRIPT_OF[classes]
    scripts = scripts[scripts > 0]
    total = len(scripts)
    if total < 20:
        return set()
    counts: list[int] = np.bincount(scripts, minlength=len(_SCRIPT_NAMES) + 1).tolist()
    number = dict(zip(_SCRIPT_NAMES, counts[1:], strict=True))
    expected = script_expected(language)
    strangers = sum(count > 0 for name, count in number.items() if name not in expected and name != "latin")
    found = set()
    if strangers >= 2:
        # kana and ideographs of one Japanese word are no change of script
        joined = np.where(scripts == _HAN_NUMBER, _KANA_NUMBER, scripts)
        changes = np.count_nonzero(joined[1:] != joined[:-1]) / total
        if changes > (0.01 if strangers >= 3 else 0.05):
            found.add("mixed_scripts")
    share = sum(number[name] for name in expected) / total
    if number["latin"] > 0.9 * total and expected != ("latin",) and _common_pairs(text) > 0.5:
        return found  # a sentence in English or the like: the model knows no better, and its output is no soup
    if share < (0.4 if expected == ("latin",) else 0.1) and (total >= 40 or expected == ("latin",)):
        found.add("wrong_script")
    if language.startswith("ja") and number["han"] >= 60 and number["kana"] < 0.02 * number["han"]:
        found.add("wrong_script")
    return found


def _packed_share(text: str) -> float:
    """Bytes after fast deflate / bytes before: about 0.6 in prose, 0.4 in code, under 0.2 in loops."""
    data = text.encode("utf-8", "replace")
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15, 5)
    return (len(deflate.compress(data)) + len(deflate.flush())) / len(data)


def _repeats(text: str) -> bool:
    """Whether most 16-character pieces of the text, or of its end, stand in it several times.

    Numbers of list items are left out, so that `1. so 2. so 3. so` is seen as a loop, too; padding and lines of
    tables are, so that they are not.
    """
    plain = _PADDING.sub(r"\1", _ITEM_NUMBER.sub("", text))
    for window, limit in ((_LONGEST, 0.40), (1200, 0.40), (600, 0.40), (300, 0.40), (150, 0.40), (80, 0.40)):
        part = plain[-window:]
        pieces = [part[start : start + 16] for start in range(len(part) - 15)]
        if len(pieces) >= 16 and len(set(pieces)) < limit * len(pieces):
            return True
        if window > len(plain) and len(plain) < 16:
            return True
    return False

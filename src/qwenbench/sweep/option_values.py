"""What a user writes for an option, read into values. Each reader raises UsageError that names the option given."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qwenbench.analysis.columns import LATENCIES
from qwenbench.analysis.limit_text import read_limits
from qwenbench.errors import UsageError

T = TypeVar("T", int, float, str)
Reader = Callable[[Any, str], Any]
"""(what was written, the option's name) -> the value of its field. Raises UsageError."""

ENV = "env."
"""Begins the name of an environment variable among --vary's."""
SWEPT_FLAGS = {
    "max-cudagraph-capture-size": "--capture",
    "max-num-seqs": "--max-num-seqs",
    "gpu-memory-utilization": "--gpu-memory-utilization",
}
"""Flag of vLLM -> the sweep's own option that makes a dimension of it."""
SET, UNSET = "set", "unset"
"""Values of --vary: a flag without a value, and a flag or variable that is left out."""

_FLAG = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_VARIABLE = re.compile(r"env\.[A-Za-z_][A-Za-z0-9_]*\Z")


def parse_list(text: str, option: str, kind: Callable[[str], T], check: Callable[[T], str | None]) -> tuple[T, ...]:
    """Reads `a,b,c`. Raises UsageError for empty, non-numeric, refused (`check` says why) or repeated values."""
    values: list[T] = []
    for part in text.split(","):
        word = part.strip()
        if not word:
            raise UsageError(f"{option} {text!r}: an empty value. Give numbers separated by commas, e.g. 16,32,64.")
        try:
            value = kind(word)
        except ValueError:
            raise UsageError(f"{option} {text!r}: {word!r} is no number.") from None
        problem = check(value)
        if problem:
            raise UsageError(f"{option} {text!r}: {word} {problem}.")
        if value in values:
            raise UsageError(f"{option} {text!r}: {word} stands twice.")
        values.append(value)
    return tuple(values)


def positive(value: float) -> str | None:
    return None if math.isfinite(value) and value > 0 else "must be above 0"


def fraction(value: float) -> str | None:
    """A check for `parse_list`: memory utilisations."""
    return None if 0 < value <= 1 else "must lie above 0 and not above 1 (it is a fraction of the card)"


def not_negative(value: float) -> str | None:
    """A check for `parse_list`: numbers of CPUs."""
    return None if value >= 0 else "must not be negative"


def any_word(_value: str) -> str | None:
    """A check for `parse_list` that takes every word."""
    return None


def list_of(kind: Callable[[str], T], check: Callable[[T], str | None]) -> Reader:
    return lambda text, option: parse_list(text, option, kind, check)


def one_of(*choices: str, otherwise: str = "") -> Reader:
    """A reader of one word among these; `otherwise` is said behind the list when it is none."""

    def read(text: str, option: str) -> str:
        if text not in choices:
            raise UsageError(f"{option} {text!r}: choose {', '.join(choices)}{otherwise}.")
        return text

    return read


def profile_names(text: str, option: str) -> tuple[str, ...]:
    """Reads --profile: names, of which `all` stands for the four of Qwen3.5."""
    from qwenbench.workload.profiles import PROFILES

    names: list[str] = []
    for name in parse_list(text, option, str, any_word):
        names += PROFILES if name == "all" else [name]
    return tuple(dict.fromkeys(names))


def names_or_all(text: str, option: str) -> tuple[str, ...]:
    """Reads --only: names; none for `all`."""
    return () if text == "all" else parse_list(text, option, str, any_word)


def match_or_list(text: str, option: str) -> str | tuple[int, ...]:
    """Reads --max-num-seqs: `match`, or numbers."""
    return text if text == "match" else parse_list(text, option, int, positive)


def parse_vary(items: Sequence[str], option: str = "--vary") -> dict[str, tuple[str, ...]]:
    """Reads `--vary FLAG=V1,V2` and `--vary env.NAME=V1,V2`; values may be JSON. Raises UsageError with the option."""
    varied: dict[str, tuple[str, ...]] = {}
    for item in items:
        name, equals, values = item.partition("=")
        name = name.strip().lstrip("-")
        pattern = _VARIABLE if name.startswith(ENV) else _FLAG
        if pattern is _FLAG:
            name = name.replace("_", "-")
        if not equals or not pattern.match(name):
            raise UsageError(
                f"{option} {item!r}: give FLAG=V1,V2, e.g. max-num-batched-tokens=2048,8192, or env.NAME=V1,V2."
            )
        if name in SWEPT_FLAGS:
            raise UsageError(f"{option} {item!r}: use {SWEPT_FLAGS[name]} for that flag.")
        if name in varied:
            raise UsageError(f"{option} {item!r}: {name} stands twice.")
        words = split_values(values, f"{option} {item!r}")
        if not all(words) or len(set(words)) != len(words):
            raise UsageError(f"{option} {item!r}: an empty or repeated value.")
        varied[name] = tuple(words)
    return varied


def split_values(text: str, where: str) -> list[str]:
    """Values between commas; one that begins with { or [ is JSON, whose commas are its own.

    Raises UsageError, which begins with `where`, for JSON that is none.
    """
    words: list[str] = []
    at = 0
    while True:
        begin = at + len(text[at:]) - len(text[at:].lstrip())
        if text[begin : begin + 1] in ("{", "["):
            try:
                _, end = json.JSONDecoder().raw_decode(text, begin)
            except json.JSONDecodeError as error:
                raise UsageError(f"{where}: no valid JSON from {text[begin : begin + 20]!r} on: {error.msg}.") from None
            rest = text[end:].lstrip()
            if rest and not rest.startswith(","):
                raise UsageError(f"{where}: {rest[:20]!r} follows a JSON value; put a comma between values.")
        else:
            comma = text.find(",", begin)
            end = len(text) if comma < 0 else comma
        words.append(text[begin:end].strip())
        comma = text.find(",", end)
        if comma < 0:
            return words
        at = comma + 1


def request_limits(text: str, option: str) -> dict[str, float]:
    """Reads `ttft=1000ms,tpot=25ms` as limits of each request, in ms."""
    limits = read_limits(text, option)
    for name in limits:
        if name not in LATENCIES:
            raise UsageError(
                f"{option} {name}: unknown. Per-request limits: {', '.join(LATENCIES)} (e.g. ttft=1000ms)."
            )
    return limits


def read_header_env(items: Sequence[str], option: str = "--header-env") -> dict[str, str]:
    """Reads `--header-env NAME=ENV`. Raises UsageError that names the option given."""
    headers: dict[str, str] = {}
    for item in items:
        name, equals, variable = item.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[A-Za-z_]\w*", variable):
            raise UsageError(f"{option} {item!r}: give HEADER=ENVIRONMENT_VARIABLE, e.g. Authorization=MY_HEADER.")
        headers[name] = variable
    return headers


def json_object(text: str, option: str) -> dict[str, Any]:
    """Reads a JSON object that is added to each request; refuses secrets in it."""
    import orjson

    from qwenbench.masking import refuse_secret_arguments, secret_names_in

    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{option}: no valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UsageError(f'{option}: a JSON object is needed, e.g. {{"seed": 1}}.')
    secret = next(secret_names_in(value), None)
    if secret:
        raise UsageError(f"{option}: {secret} carries a secret; send it as a header with --header-env.")
    refuse_secret_arguments([text], option)
    return value


def interference(text: str, option: str) -> str:
    """Reads `32768@0.1`: prompts of so many tokens at a rate a second. Raises UsageError."""
    long_prompts(text, option)
    return text


def long_prompts(text: str, option: str = "--interfere") -> tuple[int, float]:
    """Tokens and rate (1/s) of `32768@0.1`. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,7})@(\d*\.?\d+)", text.strip())
    tokens, rate = (int(match[1]), float(match[2])) if match else (0, 0.0)
    if tokens < 1 or not 0 < rate <= 1000:
        raise UsageError(f"{option} {text!r}: give TOKENS@RATE, e.g. 32768@0.1 (one such prompt every ten seconds).")
    return tokens, rate


def _number(text: str) -> float:
    """NaN for a text that is none: it lies in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def gamma_shape(text: str, option: str) -> float | str:
    """Reads a gamma shape, or `constant`."""
    if text == "constant":
        return text
    value = _number(text)
    if not 0 < value < math.inf:
        raise UsageError(f"{option} {text!r}: give a number above 0, or `constant`.")
    return value


def share(text: str, option: str) -> float:
    value = _number(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise UsageError(f"{option} {text!r}: give a share of the mean, e.g. 5%.")
    return value


def writable_folder(folder: Path, option: str) -> None:
    """Raises UsageError when a run could not be written below this folder."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {folder}: cannot be written ({nearest} is not a writable folder).")

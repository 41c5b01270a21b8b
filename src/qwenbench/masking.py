"""Secrets: what counts as one, and how every sink keeps them out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from qwenbench.errors import UsageError

MASK = "***"

_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:token|(?:api|access|private)[_-]?keys?|secret|password|passwd|passphrase|credentials?)$",
    re.IGNORECASE,
)
_SECRET_FLAGS = frozenset({"api-key", "hf-token", "ssl-keyfile-password"})
_TOKEN_SHAPES = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
# up to the last @ of the host part: passwords hold colons and, against the rules, @; JSON's quotes end it
_URL_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s?#\"'<>\\]+@", re.IGNORECASE)
_MIN_SECRET = 6  # a shorter value would mask ordinary words all over a log


def is_secret_name(name: str) -> bool:
    """Whether a variable or flag of this name carries a secret (HF_TOKEN, --api-key)."""
    return name.lstrip("-").lower() in _SECRET_FLAGS or _SECRET_NAME.search(name) is not None


def refuse_secret_arguments(arguments: Iterable[str], where: str) -> None:
    """Raises UsageError when an argument carries a secret: process lists and run folders would show it."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        flag = flag.split(" ", 1)[0]  # `--vllm-arg "--api-key abc"`: vLLM would refuse it, but the line would show it
        if flag.startswith("--") and is_secret_name(flag[2:]):
            raise UsageError(
                f"{where}: {flag} carries a secret, and arguments show in process lists and in the run folder. "
                f"Put it into an environment variable and name that instead (VLLM_API_KEY, --api-key-env)."
            )
        if _TOKEN_SHAPES.search(argument):
            named = value and flag.startswith("--") and not _TOKEN_SHAPES.search(flag)
            raise UsageError(
                f"{where}: the value of {flag if named else 'an argument'} looks like a token. "
                "Name an environment variable instead."
            )


class Masker:
    """Replaces known secret values, token-shaped words and URL user names in text."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = sorted({v for v in values if len(v) >= _MIN_SECRET}, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(v) for v in known)) if known else None

    @classmethod
    def from_environment(cls, names: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> Masker:
        """Masks the values of the named variables and of all whose name says that they are secrets."""
        wanted = set(names)
        return cls(value for name, value in environ.items() if value and (name in wanted or is_secret_name(name)))

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _TOKEN_SHAPES.sub(MASK, text)
        return _URL_USER.sub(lambda m: f"{m['scheme']}{MASK}@", text)


def masked(value: Any, masker: Masker) -> Any:
    """A JSON value with every string in it masked; keys are kept as they are."""
    if isinstance(value, str):
        return masker(value)
    if isinstance(value, Mapping):
        return {name: masked(inner, masker) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, masker) for inner in value]
    return value

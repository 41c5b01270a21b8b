"""Secrets: what counts as one, and how every sink keeps them out."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

from qwenbench.errors import UsageError

MASK = "***"

_WORD_END = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_SECRET_WORDS = frozenset(
    "token secret password passwd passphrase passwort pwd pass pat auth authorization cookie credential credentials "
    "jwt bearer apikey accesskey secretkey authtoken accesstoken pgpass mysqlpass".split()
)
"""The last word of a name that carries a secret."""
_KEY_OWNERS = frozenset("api access private secret auth openai anthropic azure aws gcp hf ssh license service".split())
_NOT_SECRET = frozenset({"ssl-keyfile"})
_KINDS_OF_TOKEN = frozenset(
    "first last next new output input prompt per eos bos pad unk sep cls mask stop image video audio think thinking "
    "special draft reasoning tool decoded".split()
)
"""What stands before `token` where it is a piece of text (eos_token, time_to_first_token)."""
_SECRET_FLAGS = ("api-key", "hf-token", "ssl-keyfile-password")
_TOKEN_SHAPES = re.compile(r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})\b")
# up to the last @ of the host part: passwords hold colons and, against the rules, @; JSON's quotes end it
_URL_USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^/\s?#\"'<>\\]+@", re.IGNORECASE)
_QUERY_VALUE = re.compile(r"(?P<head>[?&;](?P<name>[A-Za-z0-9_.%-]{1,64})=)(?P<value>[^&;#\s\"'<>\\]+)")
_JSON_HEAD = re.compile(r"(?P<quote>\\*[\"'])(?P<name>[A-Za-z0-9_. -]{1,64})(?P=quote)\s*:\s*(?P<open>\\*[\"'])")
_HEADER_VALUE = re.compile(
    r"(?P<head>\bauthorization\b[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)\s+)[^\s\"',}]+", re.IGNORECASE
)
_MIN_SECRET = 6  # a shorter value would mask ordinary words all over a log

_variables: set[str] = set()  # names only: the values are read where they are masked, and never kept here


def remember_variables(names: Iterable[str]) -> None:
    """From now on the values of these environment variables are secrets in every sink of this process."""
    _variables.update(name for name in names if name)


def remembered_variables() -> tuple[str, ...]:
    """What `remember_variables` was told; a process that writes for us (a supervisor) has to be told as well."""
    return tuple(sorted(_variables))


def is_secret_name(name: str) -> bool:
    """Whether a variable, flag, JSON key or query parameter of this name carries a secret.

    The last word decides: HF_TOKEN, --api-key, aws_secret_access_key, apiKey, hf-overrides.token, PGPASS. `key` alone
    is none (a cache's key, a sort key); it needs an owner as in OPENAI_KEY or api_key. `tokens` and `tokenizer` are
    none.
    """
    if name == "PWD":  # the shell's folder; hidden, every path below it would be (`pwd=` is a password)
        return False
    bare = name.strip().lstrip("-").replace("_", "-").lower()
    if bare in _NOT_SECRET:
        return False
    words = [word.lower() for word in _WORD_END.split(name) if word]
    if not words:
        return False
    if words[-1] == "token" and len(words) > 1 and words[-2] in _KINDS_OF_TOKEN:
        return False
    if words[-1] in _SECRET_WORDS:
        return True
    return words[-1] in ("key", "keys") and len(words) > 1 and any(word in _KEY_OWNERS for word in words[:-1])


def secret_names_in(value: Any) -> Iterator[str]:
    """Names, at any depth of a JSON value, under which a secret stands; JSON and URLs in texts are looked into."""
    pending: list[Any] = [value]
    while pending:  # no recursion: the value may be as deep as somebody likes
        inner = pending.pop()
        if isinstance(inner, Mapping):
            for name, held in inner.items():
                if (
                    is_secret_name(str(name))
                    and isinstance(held, str | int)
                    and not isinstance(held, bool)
                    and held != ""
                ):
                    yield str(name)
                pending.append(held)
        elif isinstance(inner, list | tuple):
            pending.extend(inner)
        elif isinstance(inner, str):
            pending.extend(_inside(inner))
            yield from (name for name, held in _query(inner) if held and is_secret_name(name))


def _inside(text: str) -> Iterator[Any]:
    if text.lstrip()[:1] in ("{", "["):
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            return


def _query(text: str) -> list[tuple[str, str]]:
    if "://" not in text or "?" not in text:
        return []
    try:
        return parse_qsl(urlsplit(text).query, keep_blank_values=True)
    except ValueError:
        return []


def refuse_secret_arguments(arguments: Iterable[str], where: str) -> None:
    """Raises UsageError when an argument carries a secret: process lists and run folders would show it."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        flag = flag.split(" ", 1)[0]  # `--vllm-arg "--api-key abc"`: vLLM would refuse it, but the line would show it
        if flag.startswith("--") and (is_secret_name(flag[2:]) or _shortens_secret_flag(flag[2:])):
            raise UsageError(
                f"{where}: {flag} carries a secret, and arguments show in process lists and in the run folder. "
                f"Put it into an environment variable and name that instead (VLLM_API_KEY, --api-key-env)."
            )
        inside = next((name for part in (value, argument) for name in secret_names_in(part)), None)
        if inside is not None:
            raise UsageError(
                f"{where}: {inside!r} in {flag if flag.startswith('--') else 'an argument'} carries a secret, and "
                "arguments show in process lists and in the run folder. Put it into an environment variable or a file "
                "that the server reads."
            )
        if _TOKEN_SHAPES.search(argument):
            named = value and flag.startswith("--") and not _TOKEN_SHAPES.search(flag)
            raise UsageError(
                f"{where}: the value of {flag if named else 'an argument'} looks like a token. "
                "Name an environment variable instead."
            )


def _shortens_secret_flag(flag: str) -> bool:
    """vLLM's parser takes any beginning of a flag that only one flag has (`--api-ke`)."""
    bare = flag.replace("_", "-").lower()
    return len(bare) > 2 and bare not in _NOT_SECRET and any(secret.startswith(bare) for secret in _SECRET_FLAGS)


def _spellings(secret: str) -> Iterator[str]:
    """A secret as it is, and as JSON, a URL, repr() or an HTTP header would write it."""
    yield secret
    yield from (json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1])
    yield quote(secret, safe="", errors="surrogateescape")
    yield quote(secret, errors="surrogateescape")
    yield quote_plus(secret, errors="surrogateescape")
    yield secret.upper()
    yield secret.lower()
    encoded = base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode()
    yield encoded
    yield encoded.rstrip("=")
    yield encoded.replace("+", "-").replace("/", "_").rstrip("=")


class Masker:
    """Replaces secrets in text: known values in any usual spelling, values under a secret's name, token-shaped words.

    `values` are the known ones. What stands under a secret's name in JSON (`"api_key": "..."`) or in a URL's query
    (`?api_key=...`), and the user part of a URL, is replaced without being known.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        secrets = {v for value in values for v in (value, value.strip()) if len(v) >= _MIN_SECRET}
        known = sorted({text for secret in secrets for text in _spellings(secret)}, key=len, reverse=True)
        self._known = re.compile("|".join(re.escape(v) for v in known)) if known else None

    @classmethod
    def from_environment(cls, names: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> Masker:
        """Masks the values of the named variables, of the remembered ones, and of all that sound like secrets."""
        wanted = {*names, *_variables}
        return cls(value for name, value in environ.items() if value and (name in wanted or is_secret_name(name)))

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _TOKEN_SHAPES.sub(MASK, text)
        if "://" in text:
            text = _URL_USER.sub(lambda m: f"{m['scheme']}{MASK}@", text)
        if "=" in text:
            text = _QUERY_VALUE.sub(_under_its_name, text)
        if '"' in text or "'" in text:
            text = _without_json_secrets(text)
        return _HEADER_VALUE.sub(lambda m: m["head"] + MASK, text)


def _under_its_name(found: re.Match[str]) -> str:
    return found["head"] + MASK if is_secret_name(found["name"]) else found[0]


def _without_json_secrets(text: str) -> str:
    """`"api_key": "..."` anywhere in a text, also where the JSON stands in another JSON's string."""
    kept, done = [], 0
    for head in _JSON_HEAD.finditer(text):
        if head.start() >= done and is_secret_name(head["name"]):
            kept += [text[done : head.end()], MASK]
            end = text.find(head["open"], head.end())
            done = end if end >= 0 else len(text)
    return "".join([*kept, text[done:]]) if kept else text


def visible(text: str) -> str:
    """The text with control characters spelled (`\\x1b`): a server's words must not move the cursor."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def masked(value: Any, masker: Masker) -> Any:
    """A JSON value with every string in it masked; keys are kept as they are."""
    if isinstance(value, str):
        return masker(value)
    if isinstance(value, Mapping):
        return {name: masked(inner, masker) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, masker) for inner in value]
    return value

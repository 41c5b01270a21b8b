"""Secrets: what counts as one, and how every sink keeps them out."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from html.entities import codepoint2name
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from qwenbench.errors import UsageError

MASK = "***"

_WORD_END = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_SECRET_WORDS = frozenset(
    "token secret password passwd passphrase passwort pwd pass pat auth authorization cookie credential credentials "
    "jwt bearer apikey accesskey secretkey authtoken accesstoken pgpass mysqlpass signature sig".split()
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
_TOKEN_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|AKIA[A-Z0-9]{16}|AIza[\w-]{35}|nvapi-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|(?<![\w-])eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*)|(?<=earer )(?=[^\s\d]*\d)[\w.~+/=-]{6,}"
)
# up to the last @ of the host part: passwords hold colons and, against the rules, @, and / where no port stands there.
# Lengths are bounded, here and below: a hostile line must not take quadratic time
_URL_USER = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,30}://)"
    r"(?:[^/\s?#\"'<>\\[:]*:\d*[^\d/\s?#\"'<>\\@][^\s\"'<>\\]{0,200}|[^/\s?#\"'<>\\]+)@",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?<![A-Za-z0-9_.%-])(?:(?<=\\)[nrt])?(?P<flag>--)?(?P<name>[A-Za-z0-9_.%-]{2,64})(?P<quote>\\*[\"'])?"
    r"(?P<mark>\s*[:=]\s*|(?(quote),\s*(?:\\*[\"']value\\*[\"']\s*:\s*)?|(?(flag)[ ]+(?=\S*\d)|(?!))))"
    r"(?P<open>\[|b?(?P<end>\\*[\"']))?"
)
"""A name and what parts it from its value: JSON, repr(), `NAME=value`, `Name: value`, `--flag value`, pairs."""
_BARE_VALUE = re.compile(r"(?:[^\s&\"'<>\\]|&(?![\w.%-]+=))+(?<![,;)\]}])")
_SCHEMES = ("bearer", "basic", "digest", "token", "apikey")
_LINE_VALUE = re.compile(rf"(?:(?:{'|'.join(_SCHEMES)})\s+)?(?P<value>[^\r\n\"'\\]+)", re.IGNORECASE)
_LINE_NAMES = ("authorization", "cookie")
"""Headers whose values hold blanks."""
_NO_SECRET = re.compile(r"\$.*|[A-Z_]+|(?i:none|null|true|false)|[*]+|-?\d{1,5}(?:\.\d*)?")
"""What stands under a secret's name and is none: a variable's name, nothing, a small number."""
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
            if isinstance(inner.get("name"), str) and "value" in inner:  # as headers and Kubernetes's variables are
                inner = {**inner, inner["name"]: inner["value"]}
            for name, held in inner.items():
                told = isinstance(held, str | int) and not isinstance(held, bool) and held != ""
                if told and is_secret_name(str(name)):
                    yield str(name)
                pending.append(held)
        elif isinstance(inner, list | tuple):
            pending.extend(inner)
        elif isinstance(inner, str):
            if inner.lstrip()[:1] in ("{", "["):
                with suppress(ValueError, RecursionError):
                    pending.append(json.loads(inner))
            yield from (name for name, held in _query(inner) if held and is_secret_name(name))


def _query(text: str) -> list[tuple[str, str]]:
    with suppress(ValueError):
        return parse_qsl(urlsplit(text).query, keep_blank_values=True) if "://" in text and "?" in text else []
    return []


def refuse_secret_arguments(arguments: Iterable[str], where: str) -> None:
    """Raises UsageError when an argument carries a secret: process lists and run folders would show it."""
    for argument in arguments:
        flag, _, value = argument.partition("=")
        # `--vllm-arg "--api-key abc"`: vLLM would refuse it, but the line would show it
        flag = (flag.split() or [""])[0]
        if flag.startswith("--") and (is_secret_name(flag[2:]) or _shortens_secret_flag(flag[2:])):
            raise UsageError(
                f"{where}: {flag} carries a secret, and arguments show in process lists and in the run folder. "
                f"Put it into an environment variable and name that instead (VLLM_API_KEY, --api-key-env)."
            )
        inside = next((name for part in (value, argument) for name in secret_names_in(part)), None)
        shaped, told = _TOKEN_SHAPES.search(argument), flag if flag.startswith("--") else "an argument"
        found = None
        if inside is not None:
            found = f"{inside!r} in {told} carries a secret"
        elif not shaped and Masker()(argument) != argument:
            found = f"{told} holds a secret (a password in a URL, or what stands under a secret's name)"
        if found is not None:
            raise UsageError(
                f"{where}: {found}, and arguments show in process lists and in the run folder. Put it into an "
                "environment variable or a file that the server reads."
            )
        if shaped:
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
    """Patterns of a secret in any case: as text of any encoding, in hexadecimal, and within a longer text in base64."""
    runs = re.findall(r"\\+|[^\\]", secret, re.DOTALL)
    yield "".join(map(_spelling, runs))
    data = secret.encode("utf-8", "surrogateescape")
    yield data.hex()
    for before in range(3):  # three bytes make four characters: what stands before shifts them, and spoils the edges
        encoded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        sure = encoded[-(-8 * before // 6) : (before + len(data)) * 8 // 6]
        if len(sure) >= _MIN_SECRET:
            either = sure.replace("+", "[+-]").replace("/", "[/_]")
            yield f"(?-i:{either}[A-Za-z0-9+/_-]{{0,2}}={{0,2}})"


def _spelling(char: str) -> str:
    """A character (or a run of backslashes) as JSON, a URL, HTML, repr() or a wrong decoding writes it, and these in
    one another. Counts are bounded: a hostile line must not take quadratic time."""
    if char.isascii() and char.isalnum():
        return char
    if char[0] == "\\":
        return rf"(?:\\{{{len(char)},{8 * len(char)}}}|(?:%(?:25){{0,3}}5c){{{len(char)}}})"
    code, utf8 = ord(char), char.encode("utf-8", "surrogateescape")
    units = re.findall("....", char.encode("utf-16-be", "surrogatepass").hex())
    forms = [
        r"\\{0,8}" + re.escape(char),
        "".join(rf"%(?:25){{0,3}}{byte:02x}" for byte in utf8),
        "".join(rf"\\{{1,8}}u{unit}" for unit in units),
        "".join(rf"\\{{1,8}}x{byte:02x}" for byte in utf8),
        rf"&(?:amp;){{0,3}}(?:#{code};|#x{code:x};|{codepoint2name.get(code, 'apos')};)",
        *({" ": [r"\+"], "\n": [r"\\{1,8}n"], "\r": [r"\\{1,8}r"], "\t": [r"\\{1,8}t"]}.get(char, [])),
    ]
    if not char.isascii():
        forms += [rf"\\{{1,8}}x{code:02x}", re.escape(utf8.decode("latin-1"))]
    return f"(?:{'|'.join(forms)})"


def _parts(secret: str) -> Iterator[str]:
    """A secret, and what of it may be shown alone: a line of a key, what follows `Bearer`, a cookie's value."""
    yield from (secret, secret.strip(), *map(str.strip, secret.splitlines()))
    scheme, _, rest = secret.strip().partition(" ")
    if scheme.lower() in _SCHEMES:
        yield rest
    yield from (cookie.partition("=")[2].strip() for cookie in secret.split(";"))


class Masker:
    """Replaces secrets in text: known values in any usual spelling, values under a secret's name, token-shaped words.

    `values` are the known ones. What stands under a secret's name in JSON (`"api_key": "..."`) or in a URL's query
    (`?api_key=...`), and the user part of a URL, is replaced without being known.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        secrets = {part for value in values for part in _parts(value) if len(part) >= _MIN_SECRET}
        # the longest first: a secret may begin another one
        known = [text for secret in sorted(secrets, key=len, reverse=True) for text in _spellings(secret)]
        self._known = re.compile("|".join(known), re.IGNORECASE) if known else None

    @classmethod
    def from_environment(cls, names: Iterable[str] = (), environ: Mapping[str, str] = os.environ) -> Masker:
        """Masks the values of the named variables, of the remembered ones, and of all that sound like secrets."""
        wanted = {*names, *_variables}
        return cls(value for name, value in environ.items() if value and (name in wanted or is_secret_name(name)))

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        text = _TOKEN_SHAPES.sub(MASK, self.known(text))
        if "://" in text:
            text = _URL_USER.sub(lambda m: f"{m['scheme']}{MASK}@", text)
        return _without_named_secrets(text)

    def known(self, text: str) -> str:
        """The text without the known values only: for a model's answers, in which a `password = ...` is no secret."""
        return text if self._known is None else self._known.sub(MASK, text)


def _without_named_secrets(text: str) -> str:
    """What stands under a secret's name is masked, in whatever form names and values are written."""
    kept, done = [], 0
    for head in _NAMED.finditer(text):
        if head.start() < done or not (is_secret_name(head["name"]) or _is_query_key(text, head)):
            continue
        start, end = _value_span(text, head)
        if start < end and not _NO_SECRET.fullmatch(text, start, end):
            kept += [text[done:start], MASK]
            done = end
    return "".join([*kept, text[done:]]) if kept else text


def _is_query_key(text: str, head: re.Match[str]) -> bool:
    return head["name"].lower() == "key" and text[head.start() - 1 : head.start()] in ("?", "&")


def _value_span(text: str, head: re.Match[str]) -> tuple[int, int]:
    """Where the value begins and ends; nowhere (the end not after the beginning) where it is none."""
    start = head.end()
    by_itself = head["mark"] == "," + " " * (len(head["mark"]) - 1) or (":" in head["mark"] and not head["quote"])
    if by_itself and head["name"].isalpha() and not head["name"].lower().endswith(_LINE_NAMES):
        return start, start  # `unexpected token: x`, `["token", "x"]`
    if head["open"]:
        ends = "]" if head["open"] == "[" else head["end"]
        end = re.compile(rf"(?<!\\){re.escape(ends)}").search(text, start)
        return start, end.start() if end else len(text)
    if ":" in head["mark"] and head["name"].lower().endswith(_LINE_NAMES):
        line = _LINE_VALUE.match(text, start)
        return line.span("value") if line else (start, start)
    bare = _BARE_VALUE.match(text, start)
    return start, bare.end() if bare else start


def masked(value: Any, masker: Masker) -> Any:
    """A JSON value with every string in it masked; keys are kept as they are."""
    if isinstance(value, str):
        return masker(value)
    if isinstance(value, Mapping):
        return {name: masked(inner, masker) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, masker) for inner in value]
    return value

"""How many tokens a prompt has: asked from the server, from a local tokenizer.json, or estimated - and which."""

from __future__ import annotations

import importlib.util
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from qwenbench.errors import UsageError
from qwenbench.workload.prompts import Prompt

TIMEOUT_S = 30.0
"""Longest wait for one answer of /tokenize."""
_MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts the tokens of a text; `how` says by what means (it goes into the import's summary)."""

    count: Callable[[str], int]
    how: str
    exact: bool = True

    def within(self, prompt: Prompt, limit: int) -> bool:
        """Whether a prompt's messages, recorded answers included, come to at most `limit` tokens."""
        text = prompt_text(prompt)
        # byte-level BPE makes at most one token of a byte, so most prompts need no tokenizer
        return len(text.encode("utf-8", "replace")) <= limit or self.count(text) <= limit


def prompt_text(prompt: Prompt) -> str:
    """All messages of a prompt, one after another."""
    parts = [prompt.system or ""]
    for turn in prompt.turns:
        parts += [turn.user, turn.assistant or ""]
    return "\n".join(part for part in parts if part)


_DIGITS = re.compile(r"[0-9]")
_SIGNS = re.compile(r"[!-/:-@\[-`{-~]")
_OTHER_SCRIPTS = re.compile(r"[^\x00-\x7f]")


def estimated() -> TokenCounter:
    """From the kinds of characters, fitted to Qwen's tokenizer on this project's prompts and code.

    Nine texts of ten come out within 20 % in English and in code, within 40 % in other scripts.
    """

    def count(text: str) -> int:
        digits, signs, others = (len(kind.findall(text)) for kind in (_DIGITS, _SIGNS, _OTHER_SCRIPTS))
        return round(0.22 * (len(text) - digits - signs - others) + 1.45 * digits + 0.4 * signs + 0.65 * others)

    return TokenCounter(count, "estimated from characters (no server and no tokenizer.json was given)", exact=False)


def from_tokenizer_file(path: Path) -> TokenCounter:
    """Counts with a local tokenizer.json (a file, or a model's folder).

    Raises UsageError: the file is missing or broken, or the package `tokenizers` is not installed.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"--tokenizer {path}: no such file (a tokenizer.json or a folder that holds one).")
    if importlib.util.find_spec("tokenizers") is None:
        raise UsageError(
            f"--tokenizer {path}: needs the package `tokenizers`: pip install 'qwenbench[datasets]', "
            "or count with a server: --url."
        )
    from tokenizers import Tokenizer  # an optional extra

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises plain Exception for a broken file
        raise UsageError(f"--tokenizer {file}: is no tokenizer: {error}.") from error
    return TokenCounter(lambda text: len(tokenizer.encode(text, add_special_tokens=False)), f"tokenizer {file.name}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Prompts and keys go to the server that was named and to no other: a redirect is an error."""

    def redirect_request(self, *_: Any) -> None:
        return None


def from_server(base_url: str, model: str | None, headers: dict[str, str] | None = None) -> TokenCounter:
    """Counts with a server's /tokenize, asked once at once. Raises UsageError when it does not answer."""
    base = base_url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"--url {base_url}: must begin with http:// or https://.")

    opener = urllib.request.build_opener(_NoRedirect)

    def count(text: str) -> int:
        body: dict[str, Any] = {"prompt": text, "add_special_tokens": False}
        if model:
            body["model"] = model
        request = urllib.request.Request(
            f"{base}/tokenize", orjson.dumps(body), {"Content-Type": "application/json", **(headers or {})}
        )
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                return int(orjson.loads(response.read(_MOST_BYTES))["count"])
        except urllib.error.HTTPError as error:
            raise UsageError(f"--url {base_url}: /tokenize answered HTTP {error.code}; give --tokenizer.") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"--url {base_url}: /tokenize gave no count: {error}.") from error

    count("hello")
    return TokenCounter(count, "/tokenize of the server")

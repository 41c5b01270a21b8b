"""From rows of datasets to a prompt set: one after another, or so many of each drawn from a seed; and how many tokens a
prompt has: asked from the server, from a local tokenizer.json, or estimated - and which.
"""

from __future__ import annotations

import importlib.util
import random
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from qwenbench.bounded_http import server_base, tokenize_question, tokens_told
from qwenbench.errors import UsageError
from qwenbench.runfolder.files import replacing
from qwenbench.workload.importing.dataset_files import read_rows
from qwenbench.workload.importing.row_formats import RowFormat, content_of, detect_format
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
    base = server_base(base_url)
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"--url {base_url}: must begin with http:// or https://.")

    opener = urllib.request.build_opener(_NoRedirect)

    def count(text: str) -> int:
        body = orjson.dumps(tokenize_question(model, text))
        request = urllib.request.Request(
            f"{base}/tokenize", body, {"Content-Type": "application/json", **(headers or {})}
        )
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                tokens = tokens_told(orjson.loads(response.read(_MOST_BYTES)))
        except urllib.error.HTTPError as error:
            raise UsageError(f"--url {base_url}: /tokenize answered HTTP {error.code}; give --tokenizer.") from error
        except (OSError, ValueError) as error:
            raise UsageError(f"--url {base_url}: /tokenize gave no count: {error}.") from error
        if tokens is None and text:
            raise UsageError(f"--url {base_url}: /tokenize gave no count; give --tokenizer.")
        return tokens or 0

    count("hello")
    return TokenCounter(count, "/tokenize of the server")


_PLACE = re.compile(r"^.*?, row \d+: (?:(?:messages|conversations?)\.\d+: )?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from, and what every row is marked with."""

    paths: tuple[Path, ...]
    label: str
    """Provenance: the dataset's id and revision, or the name of the file or folder."""
    form: RowFormat | None = None
    """None: told by the columns of each row."""
    licence: str | None = None


@dataclass(slots=True)
class Tally:
    """What an import met, while it runs and after it."""

    read: int = 0
    without_text: int = 0
    too_long: int = 0
    unusable: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Reason -> how many rows it left out, and the first of them in full."""
    formats: set[str] = field(default_factory=set)

    def leave_out(self, problem: UsageError) -> None:
        """Count a row that cannot be used; `problem` begins with its file and row."""
        first = str(problem)
        reason = _PLACE.sub("", first)
        count, shown = self.unusable.get(reason, (0, first))
        self.unusable[reason] = count + 1, shown


def prompts_of(source: Source, counter: TokenCounter, max_tokens: int, tally: Tally) -> Iterator[Prompt]:
    """The prompts of a source in the rows' order.

    Those without text, above `max_tokens` or that cannot be used are left out and counted. Raises UsageError for a file
    that cannot be read on and, when no row could be used, with what was wrong with the first.
    """
    form = source.form
    problems: list[UsageError] = []
    used = 0

    def skip(problem: UsageError) -> None:
        tally.leave_out(problem)
        if not problems:
            problems.append(problem)

    for row in (row for path in source.paths for row in read_rows(path, skip)):
        tally.read += 1
        try:
            form = source.form or detect_format(row, form)
            content = content_of(row, form)
        except UsageError as problem:
            skip(problem)
            continue
        used += 1
        tally.formats.add(form.name)
        if content is None:
            tally.without_text += 1
            continue
        file = "" if row.file.name == source.label else row.file.name
        where = " ".join(part for part in (source.label, file, f"row {row.number}") if part)
        # a file with a column named `messages` alone may be anybody's: it has no dataset's licence
        known = source.form is not None or len(form.columns) > 1
        licence = source.licence or (form.licence if known else None)
        named = {"id": f"{form.name}-{tally.read:06d}", "tags": (form.name,), "source": where, "licence": licence}
        prompt = content.model_copy(update=named)
        if counter.within(prompt, max_tokens):
            yield prompt
        else:
            tally.too_long += 1
    if not used and problems:
        raise problems[0]


def write_prompts(prompts: Iterable[Prompt], out: Path, *, overwrite: bool = False) -> int:
    """Writes a prompt set and returns its number of rows; on any error nothing is left behind.

    Raises UsageError: `out` exists (without `overwrite`), cannot be written, or there is no prompt to write.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"--out {out}: exists already. Give another name, or --overwrite.")
    if out.is_dir():
        raise UsageError(f"--out {out}: is a directory. Give a file, e.g. {out}/prompts.jsonl.")
    try:
        with replacing(out) as file:
            count = 0
            for prompt in prompts:
                file.write(orjson.dumps(prompt.model_dump(exclude_none=True)) + b"\n")
                count += 1
            if count == 0:
                raise UsageError(f"--out {out}: nothing to write: no row held a usable prompt.")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror or error}.") from error
    return count


MIXES: Mapping[str, Mapping[str, int]] = {"seed": {"ultrachat": 256, "gsm8k": 256, "code-alpaca": 256, "aya": 256}}
"""Mix -> dataset format -> rows. `seed`: what the card ig1/Qwen3.5-9B-NVFP4 was calibrated with."""


def find_mix(name: str) -> Mapping[str, int]:
    """The mix of this name. Raises UsageError that lists them."""
    if name not in MIXES:
        raise UsageError(f"--mix {name!r}: unknown. Mixes: {', '.join(MIXES)}.")
    return MIXES[name]


def draw(prompts: Iterable[Prompt], count: int, seed: int, name: str) -> list[Prompt]:
    """`count` prompts, each equally likely, in the order in which they stood; memory holds only those.

    Reservoir sampling (Algorithm R, J. S. Vitter, ACM TOMS 1985). Raises UsageError when there are fewer.
    """
    chance = random.Random(f"{seed}|{name}")
    kept: list[tuple[int, Prompt]] = []
    for number, prompt in enumerate(prompts):
        if len(kept) < count:
            kept.append((number, prompt))
        elif (place := chance.randrange(number + 1)) < count:
            kept[place] = (number, prompt)
    if len(kept) < count:
        raise UsageError(
            f"{name}: only {len(kept)} usable rows, {count} are wanted. Give more rows, or --each {len(kept)}."
        )
    return [prompt for _, prompt in sorted(kept, key=lambda pair: pair[0])]

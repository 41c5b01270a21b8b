"""From rows of datasets to a prompt set: one after another, or so many of each drawn from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from qwenbench.errors import UsageError
from qwenbench.runfolder.files import replacing
from qwenbench.workload.importing.dataset_files import read_rows
from qwenbench.workload.importing.row_formats import Content, RowFormat, content_of, detect_format
from qwenbench.workload.importing.token_count import TokenCounter
from qwenbench.workload.prompts import Prompt

_PLACE = re.compile(r"^.*?, row \d+: (?:(?:messages|conversations?)\.\d+: )?", re.DOTALL)
DEFAULT_MAX_TOKENS = 8192
"""The sequence length of the seed's calibration."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from, and what every row is marked with."""

    paths: tuple[Path, ...]
    label: str
    """Provenance: the dataset's id and revision, or the name of the file or folder."""
    form: RowFormat | None = None
    """None: told by the columns of the first row."""
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
            form = form or detect_format(row)
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
        prompt = _prompt(content, form, f"{form.name}-{tally.read:06d}", where, source.licence or form.licence)
        if counter.within(prompt, max_tokens):
            yield prompt
        else:
            tally.too_long += 1
    if not used and problems:
        raise problems[0]


def _prompt(content: Content, form: RowFormat, prompt_id: str, where: str, licence: str | None) -> Prompt:
    return Prompt(
        id=prompt_id,
        language=content.language,
        tags=(form.name,),
        system=content.system,
        turns=content.turns,
        answer=content.answer,
        output_tokens=content.output_tokens,
        source=where,
        licence=licence,
    )


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

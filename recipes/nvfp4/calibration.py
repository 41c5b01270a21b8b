"""The calibration set: rows of `qwenbench prompts import --mix seed` as token ids under the model's chat template."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETS = ("ultrachat", "gsm8k", "code-alpaca", "aya")
"""The four sets of the model card, as `qwenbench prompts import` tags their rows."""


class RecipeError(Exception):
    """Bad input: one line that says what happened, where, and what to do."""


@dataclass(frozen=True)
class Conversation:
    """One row of a prompt set as chat messages."""

    dataset: str
    messages: tuple[Mapping[str, str], ...]


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The rows of a prompt set (JSON Lines). Raises RecipeError with file and line for what cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "no text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise RecipeError(f"{path}: {why}. Make it with: qwenbench prompts import --mix seed --out {path}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _conversation(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RecipeError(
                f"{path}, line {number}: no row of a prompt set ({error!r}); such files are made by "
                "qwenbench prompts import"
            ) from error


def _conversation(row: Any) -> Conversation:
    if not isinstance(row, Mapping) or not row["turns"]:
        raise ValueError("no conversation")
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in row["turns"]:
        messages.append({"role": "user", "content": turn["user"]})
        if turn.get("assistant"):
            messages.append({"role": "assistant", "content": turn["assistant"]})
    if not all(isinstance(message["content"], str) for message in messages):
        raise TypeError("a turn that is no text")
    tags = row.get("tags") or ()
    return Conversation(next((tag for tag in tags if tag in SETS), "other"), tuple(messages))


def choose(conversations: Sequence[Conversation], each: int, sets: Sequence[str], seed: int) -> list[Conversation]:
    """`each` conversations of every set, shuffled.

    Raises RecipeError when no set is named, or one stands twice, is missing or has too few rows.
    """
    if not sets or len(set(sets)) < len(sets):
        raise RecipeError(f"--sets {','.join(sets)!r}: name sets of the prompt set, each once, e.g. {','.join(SETS)}")
    by_set: dict[str, list[Conversation]] = defaultdict(list)
    for conversation in conversations:
        by_set[conversation.dataset].append(conversation)
    chance = random.Random(seed)
    chosen: list[Conversation] = []
    for name in sets:
        rows = by_set[name]
        if not rows:
            found = ", ".join(sorted(tag for tag in by_set if by_set[tag])) or "none"
            raise RecipeError(
                f"calibration set: no row of {name}; found: {found}. "
                "Make the set with qwenbench prompts import --mix seed, or name the sets it has with --sets"
            )
        if len(rows) < each:
            raise RecipeError(
                f"calibration set: {name} has {len(rows)} rows, {each} are wanted. Give more rows, or "
                f"--samples-per-set {len(rows)}"
            )
        chosen += chance.sample(rows, each)
    chance.shuffle(chosen)
    return chosen


def token_ids(conversation: Conversation, tokenizer: Any, length: int) -> list[int]:
    """The conversation under the model's own chat template, at most `length` tokens.

    Raises RecipeError when the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RecipeError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so calibration would see text that the "
            "server never sends. Put the model's chat_template.jinja beside its tokenizer"
        )
    text = tokenizer.apply_chat_template(list(conversation.messages), tokenize=False)
    ids = tokenizer(text, max_length=length, truncation=True, add_special_tokens=False)["input_ids"]
    return [int(one) for one in ids]

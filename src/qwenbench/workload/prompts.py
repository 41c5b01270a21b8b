"""Prompt sets: JSON Lines files, one prompt (a conversation of one or more turns) a line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, read_input


class PromptTurn(BaseModel):
    """What a user says, and the recorded answer that is replayed before the next turn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    user: str = Field(min_length=1, description="The user's message.")
    assistant: str | None = Field(default=None, description="The recorded answer; needed before a following turn.")


class Prompt(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1, description="Unique within the set.")
    language: str = Field(default="en", description="BCP 47 code of the language that the answer should be in.")
    tags: tuple[str, ...] = Field(default=(), description="Free words for filtering.")
    system: str | None = Field(default=None, description="System message.")
    turns: tuple[PromptTurn, ...] = Field(min_length=1, description="The conversation.")
    output_tokens: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Length of each answer in tokens, in place of the scenario's."
    )
    answer: str | None = Field(default=None, description="The known answer (math), for checks.")
    source: str | None = Field(default=None, description="Where an imported row comes from: dataset and row.")
    licence: str | None = Field(default=None, description="Licence of an imported row.")


@dataclass(frozen=True)
class PromptSet:
    """A prompt set as it was read: its prompts in file order and the hash of its bytes."""

    path: Path
    prompts: tuple[Prompt, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.prompts)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = ".".join(str(part) for part in problem["loc"]) or "row"
    return f"{field}: {problem['msg']}"


def parse_row(line: bytes, where: str) -> Prompt:
    """One row. Raises UsageError that begins with `where` (file and line)."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{where}: no valid JSON: {error}. Each line must be one JSON object.") from error
    try:
        prompt = Prompt.model_validate(row)
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error)}.") from error
    for number, turn in enumerate(prompt.turns[:-1]):
        if not turn.assistant:
            raise UsageError(f"{where}: turns.{number}.assistant is missing, but another turn follows it.")
    return prompt


def _rows(path: Path, data: bytes) -> Iterator[Prompt]:
    seen: dict[str, int] = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        prompt = parse_row(line, f"{path}, line {number}")
        if prompt.id in seen:
            raise UsageError(f"{path}, line {number}: id {prompt.id!r} stands already in line {seen[prompt.id]}.")
        seen[prompt.id] = number
        yield prompt


def load_prompt_set(path: Path) -> PromptSet:
    """Reads a prompt set. Raises UsageError with file, line and field for the first broken row."""
    data = read_input(path, "prompt set", GIB)
    prompts = tuple(_rows(path, data))
    if not prompts:
        raise UsageError(f"prompt set {path}: holds no prompt.")
    return PromptSet(path, prompts, hashlib.sha256(data).hexdigest())

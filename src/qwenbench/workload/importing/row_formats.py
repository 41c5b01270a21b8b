"""What a row of a dataset says: from its columns to a prompt, one function per dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from qwenbench.errors import UsageError
from qwenbench.workload.importing.dataset_files import DatasetRow
from qwenbench.workload.importing.languages import language_code
from qwenbench.workload.prompts import Prompt, PromptTurn


@dataclass(frozen=True, slots=True)
class Content:
    """What a row holds, before it gets an id and its provenance."""

    turns: tuple[PromptTurn, ...]
    language: str = "en"
    system: str | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class RowFormat:
    """One dataset's way to write rows."""

    name: str
    title: str
    columns: tuple[str, ...]
    """Columns that every row must have."""
    read: Callable[[DatasetRow], Content | None]
    """None: the row holds no text and is passed over."""
    hub_id: str | None = None
    """Where the dataset is published."""
    hub_folder: str = ""
    hub_split: str = "train"
    licence: str | None = None
    """As the dataset's card says."""


def _text(row: DatasetRow, column: str, *, optional: bool = False) -> str:
    value = row.values.get(column)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{type(value).__name__}, not text"
        raise UsageError(f"{row.where}: column {column!r} is {kind}.")
    return value.strip()


def _single(user: str, assistant: str = "", **more: Any) -> Content | None:
    return Content(turns=(PromptTurn(user=user, assistant=assistant or None),), **more) if user else None


def _gsm8k(row: DatasetRow) -> Content | None:
    solution = _text(row, "answer")
    _, marked, final = solution.rpartition("####")
    return _single(_text(row, "question"), solution, answer=final.strip().replace(",", "") if marked else None)


def _code_alpaca(row: DatasetRow) -> Content | None:
    given = _text(row, "input", optional=True)
    user = _text(row, "instruction")
    return _single(f"{user}\n\n{given}" if user and given else user, _text(row, "output", optional=True))


def _aya(row: DatasetRow) -> Content | None:
    name = _text(row, "language", optional=True) or _text(row, "language_code", optional=True)
    return _single(_text(row, "inputs"), _text(row, "targets"), language=language_code(name))


def _humaneval(row: DatasetRow) -> Content | None:
    code = row.values.get("prompt")
    if not isinstance(code, str):
        raise UsageError(f"{row.where}: column 'prompt' is missing or no text.")
    solution = str(row.values.get("canonical_solution") or "")
    return _single(f"Complete this Python function.\n\n```python\n{code.rstrip()}\n```", (code + solution).rstrip())


def _plain(row: DatasetRow) -> Content | None:
    return _single(_text(row, "prompt"), language=language_code(_text(row, "language", optional=True) or "en"))


def _messages(row: DatasetRow) -> Content | None:
    messages = row.values.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        raise UsageError(f"{row.where}: column 'messages' is no list.")
    system: str | None = None
    turns: list[PromptTurn] = []
    asked: str | None = None
    for place, message in enumerate(messages):
        role, content = _message(message, f"{row.where}: messages.{place}")
        if role == "system" and place == 0:
            system = content or None
        elif role == "user" and asked is None:
            asked = content
        elif role == "assistant" and asked is not None:
            if not asked or not content:
                return None
            turns.append(PromptTurn(user=asked, assistant=content))
            asked = None
        else:
            raise UsageError(
                f"{row.where}: messages.{place}: {role!r} does not follow; users and assistants alternate."
            )
    if asked:
        turns.append(PromptTurn(user=asked))
    return Content(turns=tuple(turns), system=system) if turns else None


def _message(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise UsageError(f"{where}: is no object with role and content.")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"{where}: role and content must be text.")
    return {"human": "user", "gpt": "assistant"}.get(role, role), content.strip()


def _own(row: DatasetRow) -> Content | None:
    try:
        prompt = Prompt.model_validate(row.values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise UsageError(f"{row.where}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error
    return Content(prompt.turns, prompt.language, prompt.system, prompt.answer)


FORMATS: Mapping[str, RowFormat] = {
    one.name: one
    for one in (
        RowFormat("ultrachat", "UltraChat", ("messages",), _messages, "HuggingFaceH4/ultrachat_200k", "data",
                  "train_sft", "MIT"),
        RowFormat("gsm8k", "GSM8K", ("question", "answer"), _gsm8k, "openai/gsm8k", "main", "train", "MIT"),
        RowFormat("code-alpaca", "CodeAlpaca", ("instruction",), _code_alpaca, "sahil2801/CodeAlpaca-20k", "", "",
                  "CC-BY-4.0"),
        RowFormat("aya", "Aya", ("inputs", "targets"), _aya, "CohereLabs/aya_dataset", "data", "train", "Apache-2.0"),
        RowFormat("humaneval", "HumanEval", ("task_id", "prompt"), _humaneval, "openai/openai_humaneval", "", "test",
                  "MIT"),
        RowFormat("qwenbench", "qwenbench prompt set", ("id", "turns"), _own),
        RowFormat("prompt", "plain prompts", ("prompt",), _plain),
    )
}  # fmt: skip
"""Format name -> format. The order is the one in which a row's columns are tried."""


def find_format(name: str) -> RowFormat:
    """The format of this name. Raises UsageError that lists them."""
    if name not in FORMATS:
        raise UsageError(f"--format {name!r}: unknown. Formats: {', '.join(FORMATS)}, or auto.")
    return FORMATS[name]


def detect_format(row: DatasetRow) -> RowFormat:
    """The first format whose columns the row has. Raises UsageError that shows the columns."""
    for one in FORMATS.values():
        if all(column in row.values for column in one.columns):
            return one
    wanted = "; ".join(f"{one.name}: {', '.join(one.columns)}" for one in FORMATS.values())
    raise UsageError(f"{row.where}: columns {', '.join(map(str, row.values)) or '(none)'} fit no format ({wanted}).")


def content_of(row: DatasetRow, form: RowFormat) -> Content | None:
    """What a row holds. Raises UsageError with file and row when a column is missing or of a wrong kind."""
    missing = [column for column in form.columns if column not in row.values]
    if missing:
        has = ", ".join(map(str, row.values)) or "(none)"
        raise UsageError(f"{row.where}: column {missing[0]!r} is missing (a {form.title} row; it has {has}).")
    try:
        return form.read(row)
    except ValidationError as error:
        raise UsageError(f"{row.where}: {error.errors()[0]['msg']}.") from error

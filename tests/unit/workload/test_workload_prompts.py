"""Prompt sets as files: a broken row is told with file and line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson
import pytest

from qwenbench.errors import UsageError
from qwenbench.workload.prompts import load_prompt_set

GOOD = b'{"id": "a", "turns": [{"user": "Hello"}]}'


def write(folder: Path, *lines: bytes) -> Path:
    path = folder / "set.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_rows_come_in_file_order_and_blank_lines_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, b"", b'{"id": "b", "turns": [{"user": "Salut"}], "language": "fr"}', b"  ")
    found = load_prompt_set(path)
    assert [(prompt.id, prompt.language) for prompt in found.prompts] == [("a", "en"), ("b", "fr")]
    assert len(found) == 2
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (b"{", "no valid JSON"),
        (b'"text"', "valid dictionary"),
        (b'{"id": "b"}', "turns: Field required"),
        (b'{"id": "b", "turns": []}', "turns: "),
        (b'{"id": "", "turns": [{"user": "x"}]}', "id: "),
        (b'{"id": "b", "turns": [{"user": ""}]}', "turns.0.user: "),
        (b'{"id": "b", "turns": [{"user": "x", "asistant": "y"}]}', "turns.0.asistant: "),
        (b'{"id": "b", "turns": [{"user": "x"}, {"user": "y"}]}', "turns.0.assistant is missing"),
        (b'{"id": "a", "turns": [{"user": "x"}]}', "'a' stands already in line 1"),
        (b'{"id": "b", "turns": [{"user": "\xff"}]}', "no valid JSON"),
    ],
)
def test_a_broken_row_is_told_with_file_line_and_field(tmp_path: Path, row: bytes, told: str) -> None:
    path = write(tmp_path, GOOD, b"", row)
    with pytest.raises(UsageError) as caught:
        load_prompt_set(path)
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_last_answer_may_be_missing_but_no_earlier_one(tmp_path: Path) -> None:
    row = {"id": "a", "turns": [{"user": "x", "assistant": "y"}, {"user": "z"}]}
    assert len(load_prompt_set(write(tmp_path, orjson.dumps(row))).prompts[0].turns) == 2


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_set_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="holds no prompt"):
        load_prompt_set(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_prompt_set(tmp_path / "none.jsonl")

"""Files that a user names: what is no file, too large, or made to explode is refused at once, in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from qwenbench.errors import UsageError
from qwenbench.input_files import check_input, read_input, read_input_text, read_json
from qwenbench.yaml_reader import MOST_BYTES, parse_yaml_model, read_yaml_text


class Anything(BaseModel):
    """Takes whatever stands under `a`."""

    a: object = None


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"12345678")
    assert read_input(file, "--trace", 8) == b"12345678"
    assert check_input(file, "--trace", 8) == 8
    file.write_bytes(b"x" * 2000)
    with pytest.raises(UsageError, match=r"--trace .*x: is larger than 1 KiB"):
        read_input(file, "--trace", 1 << 10)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (os.mkfifo, "is a pipe"),
        (os.mkdir, "is a folder|Is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.symlink_to("/dev/tty"), "cannot be read|is a device"),
        (lambda path: None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None], named: str
) -> None:
    path = tmp_path / "x"
    make(path)
    for read in (read_input, check_input, read_input_text):
        with pytest.raises(UsageError, match=named):
            read(path, "--trace", 1 << 20)


def test_a_file_whose_size_is_not_told_is_bounded_too() -> None:
    with pytest.raises(UsageError, match="is larger than"):
        read_input(Path("/proc/kallsyms"), "LOG", 1 << 10)


@pytest.mark.parametrize("data", [b"[" + b"[]," * 2_500_000 + b"0]", b'{"a":' * 3_000_000])
def test_json_made_to_fill_memory_is_not_parsed(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UsageError, match=r"4,000,000 values|no JSON"):
        read_json(tmp_path / "x.json", "model", 1 << 30)


def test_text_that_is_no_utf8_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"one\ntwo \xff\n")
    with pytest.raises(UsageError, match="line 2: is not UTF-8"):
        read_input_text(tmp_path / "x", "scenario", 1 << 10)


LAUGHS = "a: &l0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (LAUGHS, "aliases written out"),
        ("a: &x [1, *x]\n", "refers to what it stands in"),
        ("a: &x {b: {c: *x}}\n", "refers to what it stands in"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a: " + "{b: " * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("a: 2024-99-99\n", "no valid YAML"),
        ("a: " + "9" * 5000, "no valid YAML"),
        ("a: [1, 2\n", "no valid YAML"),
    ],
)
def test_yaml_made_to_explode_is_refused(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        parse_yaml_model(Anything, text, "scenario x.yaml")


def test_an_alias_that_saves_typing_is_welcome() -> None:
    assert parse_yaml_model(Anything, "a: [&x {b: 1}, *x]\n", "f").a == [{"b": 1}, {"b": 1}]


def test_a_huge_yaml_file_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"a: 1\n" * MOST_BYTES)
    with pytest.raises(UsageError, match="256 KiB"):
        read_yaml_text(tmp_path / "x.yaml", "scenario")

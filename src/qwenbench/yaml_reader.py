"""YAML documents into pydantic models, with messages that name file, line and field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from qwenbench.errors import UsageError, near_miss
from qwenbench.input_files import KIB, read_input_text

M = TypeVar("M", bound=BaseModel)
MOST_BYTES = 256 * KIB
"""The largest YAML file: ten times the longest campaign that anybody would write."""
MOST_PROBLEMS = 8
"""Told at once."""
MOST_NODES = 20_000
"""With every alias written out."""


def read_yaml_text(path: Path, what: str) -> str:
    """The text of a YAML file that a user named. Raises UsageError as `read_input_text` does."""
    return read_input_text(path, what, MOST_BYTES)


def _refuse_explosion(root: yaml.Node | None, where: str) -> None:
    """Raises UsageError when aliases make the document refer to itself, or mean 10^9 nodes in ten lines."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            return 1
        line = node.start_mark.line + 1
        if id(node) in open_nodes:
            raise UsageError(f"{where}, line {line}: an alias refers to what it stands in.")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = node.value if isinstance(node, yaml.SequenceNode) else [n for pair in node.value for n in pair]
            sizes[id(node)] = 1 + sum(map(size, children))
            open_nodes.discard(id(node))
            if sizes[id(node)] > MOST_NODES:
                raise UsageError(f"{where}, line {line}: means more than {MOST_NODES} values, aliases written out.")
        return sizes[id(node)]

    if root is not None:
        size(root)


def _key_given_twice(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The second of two equal keys in a mapping of the document: YAML would silently take the last one."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = list(node.value)
    return next((found for child in children if (found := _key_given_twice(child)) is not None), None)


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int | None:
    """The line of a field in a parsed YAML document (the deepest part that exists)."""
    line = None
    for part in location:
        if not isinstance(node, yaml.MappingNode):
            break
        entry = next(((key, value) for key, value in node.value if key.value == part), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def parse_yaml_model(model: type[M], text: str, where: str) -> M:
    """Reads a YAML document into a pydantic model. Raises UsageError with file, line and field."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_explosion(node, where)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: no valid YAML: {getattr(error, 'problem', None) or error}.") from error
    except (ValueError, RecursionError, OverflowError) as error:  # a date of day 99, a number of 5,000 digits, depth
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UsageError(f"{where}: no valid YAML: {reason}.") from error
    twice = _key_given_twice(node)
    if twice is not None:
        raise UsageError(f"{where}, line {twice.start_mark.line + 1}: {twice.value!r} stands twice.")
    if not isinstance(data, dict):
        raise UsageError(f"{where}: a mapping of fields was expected, e.g. `name: my-scenario`.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors()
        told = [_told(node, problem["loc"], problem["msg"]) for problem in problems[:MOST_PROBLEMS]]
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise UsageError(f"{where}, {'; '.join(told)}{more}.") from error


def _told(node: yaml.Node | None, place: tuple[int | str, ...], message: str) -> str:
    """One problem of a file: line, field and what is wrong."""
    line_number = _line_of(node, place)
    line = f"line {line_number}, " if line_number else ""
    field = ".".join(str(part) for part in place) or "file"
    return f"{line}field {field}: {message.removeprefix('Value error, ')}"


def names_in(folder: Path) -> list[str]:
    """The names of the YAML files that come with qwenbench in this folder."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def named_file(
    named: str, folder: Path, what: str, *, others: Sequence[str] = (), otherwise: str = "a .yaml path"
) -> Path:
    """A YAML file by its path, or by its name where it is one of `folder`.

    Raises UsageError for an unknown name, with the near miss and what is known, `others` among it.
    """
    path, known = Path(named), names_in(folder)
    if path.suffix in (".yaml", ".yml") or "/" in named:
        return path
    if named in known:
        return folder / f"{named}.yaml"
    known += others
    raise UsageError(f"{what} {named!r}: unknown.{near_miss(named, known)} Known: {', '.join(known)}, or {otherwise}.")

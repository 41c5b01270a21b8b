"""The journal: one line per finished cell. What it holds is finished; what it lacks is done again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from qwenbench.errors import UsageError
from qwenbench.runfolder.damage import if_readable, tell_damage
from qwenbench.runfolder.files import regular, sync_folder


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished cell."""

    cell: str
    config: str
    launch: int
    point: Mapping[str, Any]
    """Its row of points.csv (unknown values None)."""
    finished_ns: int

    def line(self) -> bytes:
        """The entry as a line of the journal, without its end."""
        return orjson.dumps(asdict(self), option=orjson.OPT_SERIALIZE_NUMPY)


class Journal:
    """Append-only, fsynced line by line. A torn last line (power cut in mid-write) is ignored and overwritten."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        """All finished cells, oldest first; of a cell that was finished twice (--force) the last one counts.

        Raises UsageError for a whole line that is no entry: someone else wrote it, so nothing is guessed.
        """

        def refuse(number: int, error: Exception) -> None:
            raise UsageError(
                f"{self._path}, line {number}: no journal entry ({error}). Remove that line to redo its cell."
            ) from error

        return _entries(whole_lines(self._path), refuse)

    def readable_entries(self) -> list[Entry]:
        """The same for a reader: lines that are no entry are told and passed over, they cost their cell only."""

        def tell(number: int, error: Exception) -> None:
            tell_damage(self._path, f"line {number}: {error}", "its cell is taken from points.csv alone")

        return _entries(if_readable(_read_lines, self._path, "what it holds is missing") or (), tell)

    def append(self, entry: Entry) -> None:
        """Adds a cell, durably. Call it after the cell's own files are on disk."""
        append_line(self._path, entry.line())


def _entries(lines: Iterable[bytes], unusable: Callable[[int, Exception], None]) -> list[Entry]:
    found: dict[str, Entry] = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_entry(line)
        except (orjson.JSONDecodeError, TypeError) as error:
            unusable(number, error)
            continue
        found.pop(entry.cell, None)
        found[entry.cell] = entry
    return list(found.values())


def parse_entry(line: bytes) -> Entry:
    """Raises TypeError or JSONDecodeError for what is no entry."""
    entry = Entry(**orjson.loads(line))
    if not isinstance(entry.point, Mapping) or not isinstance(entry.cell, str):
        raise TypeError("no point in it")
    return entry


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file of lines, durably. A torn last line is overwritten."""
    whole = sum(len(known) + 1 for known in whole_lines(path))
    new = not path.exists()
    with path.open("w+b" if new else "r+b") as file:
        file.truncate(whole)
        file.seek(whole)
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def whole_lines(path: Path) -> list[bytes]:
    """The lines that were written whole; none where there is no file. Raises UsageError for an unreadable one."""
    try:
        return _read_lines(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _read_lines(path: Path) -> list[bytes]:
    return regular(path).read_bytes().split(b"\n")[:-1]

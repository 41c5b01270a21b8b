"""The journal: one line per finished cell. What it holds is finished; what it lacks is done again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished cell."""

    cell: str
    config: str
    launch: int
    point: Mapping[str, Any]
    """Its row of points.csv (unknown values None)."""
    finished_ns: int


class Journal:
    """Append-only, fsynced line by line. A torn last line (power cut in mid-write) is ignored and overwritten."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[Entry]:
        """All finished cells, oldest first; of a cell that was finished twice (--force) the last one counts."""
        found: dict[str, Entry] = {}
        for line in self._whole_lines():
            record = orjson.loads(line)
            found.pop(record["cell"], None)
            found[record["cell"]] = Entry(**record)
        return list(found.values())

    def append(self, entry: Entry) -> None:
        """Adds a cell, durably. Call it after the cell's own files are on disk."""
        line = orjson.dumps(
            {
                "cell": entry.cell,
                "config": entry.config,
                "launch": entry.launch,
                "point": dict(entry.point),
                "finished_ns": entry.finished_ns,
            },
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        whole = sum(len(known) + 1 for known in self._whole_lines())
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            file.truncate(whole)
            file.seek(whole)
            file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[bytes]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return data.split(b"\n")[:-1]

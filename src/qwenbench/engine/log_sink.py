"""A server's output on its way to server.log: as printed, line by line, without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

_LINE_END = re.compile(rb"[\r\n]")
_LONGEST_LINE = 1 << 20


class LogSink:
    """Appends complete lines to a log file, each masked as a whole so that no secret is cut in two.

    A carriage return ends a line too (progress bars), so a bar is seen while it moves. Not thread-safe.
    """

    def __init__(self, path: Path, mask: Callable[[str], str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_APPEND: a reader's offset stays valid and two writers never overwrite each other
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._mask = mask
        self._held = b""

    def feed(self, data: bytes) -> None:
        """Takes output as it was read and writes what is complete.

        Bytes that are no UTF-8 pass unchanged. A line without an end is held back, but not beyond 1 MiB.
        """
        held = self._held + data
        cut = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
        if cut == 0 and len(held) > _LONGEST_LINE:
            cut = len(held)
        self._held = held[cut:]
        if cut:
            self._write(held[:cut])

    def line(self, text: str) -> None:
        """Writes one line of its own (what the launcher has to say about the server)."""
        if self._held:
            self.feed(b"\n")
        self.feed(text.encode() + b"\n")

    def close(self) -> None:
        """Writes an unfinished last line, and makes the file durable."""
        if self._held:
            self._write(self._held)
            self._held = b""
        os.fsync(self._file)
        os.close(self._file)

    def _write(self, lines: bytes) -> None:
        text = self._mask(lines.decode("utf-8", "surrogateescape"))
        left = memoryview(text.encode("utf-8", "surrogateescape"))
        while left:
            left = left[os.write(self._file, left) :]


class LogReader:
    """Reads what was added to a log since the last call, by whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_lines(self) -> list[str]:
        """Lines completed since the last call; none while the file is not there."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        self._offset += cut
        return [line.decode("utf-8", "replace") for line in _LINE_END.split(data[:cut]) if line]


def tail(path: Path, lines: int = 40, most_bytes: int = 64 * 1024) -> list[str]:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            data = file.read()
    except FileNotFoundError:
        return []
    return [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()][-lines:]

"""A server's log: written with secrets masked, followed while it grows, its lines taken apart, its phases told."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_ANSI = re.compile(r"(?:\x1b|#033)\[[0-9;?]*[ -/]*[@-~]")
"""A colour; syslog writes the escape character as #033."""
_ACCESS = re.compile(r'"(?:GET|POST|HEAD|PUT|OPTIONS|DELETE) \S* HTTP/')
_PROCESS = re.compile(
    r"\((?P<name>[A-Za-z][\w-]*(?: [A-Z]+\d+)*)(?: rank=(?P<rank>\d+))?,? pid=(?P<pid>\d+)(?:, ?ip=(?P<ip>[\w.:]+))?\)"
)
_MESSAGE = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_CLOCK = re.compile(r"\b\d\d-\d\d (\d\d):(\d\d):(\d\d)\b")


class Process(NamedTuple):
    """A process as a line's prefix names it; workers of one name differ by rank, pid or address."""

    name: str = ""
    rank: str | None = None
    pid: str | None = None
    ip: str | None = None


def plain(line: str) -> str:
    """The line as the server wrote it: without colours, and taken out of a JSON log's envelope.

    Other wrappers (docker compose, kubectl, journald) put text before the line, which the patterns pass over.
    """
    if line.startswith("{") and '"log"' in line:
        try:
            record = json.loads(line)
        except ValueError:
            return line
        if isinstance(record, dict) and isinstance(record.get("log"), str):
            line = record["log"] if record["log"].endswith("\n") else record["log"] + "\n"
    return _ANSI.sub("", line) if "\x1b" in line or "#033" in line else line


def is_access_log(line: str) -> bool:
    """Whether this is one of the (many) lines that the HTTP server writes per request."""
    return " HTTP/" in line and _ACCESS.search(line) is not None


def clock_s(line: str, previous: float | None) -> float | None:
    """Seconds since midnight of the line's time stamp; the previous one where the line has none."""
    found = _CLOCK.search(line)
    if found is None:
        return previous
    hours, minutes, seconds = (int(part) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def process_of(line: str) -> Process:
    """The innermost process of the prefix (`Worker_TP0`), nameless when there is none."""
    level = _MESSAGE.search(line)
    names = list(_PROCESS.finditer(line[: level.start()] if level else line))
    return Process(**names[-1].groupdict()) if names else Process()


_WRAPPER = re.compile(
    r"(?:[A-Za-z][\w.-]*\s*\|\s"  # docker compose
    r"|\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:?\d\d)?\s(?:std(?:out|err) [FP] )?"  # docker logs -t, the kubelet's files
    r"|[A-Z][a-z]{2}\s+\d+ \d\d:\d\d:\d\d \S+ [^\s:\[]+(?:\[\d+\])?: "  # journald, syslog
    r"|\[(?:pod|container)/[^\]]*\] |\[\d{4}-\d\d-\d\d[ T][\d:.,]+\]\s?|\[/\S*\]:?\s"  # kubectl --prefix, supervisors
    r"|\[(?:rank|RANK)\s?\d+\]:(?:[IWE]\d{4} [\d:.]+ \d+ \S+\]\s?)?\s?"  # torch
    r"|\(?[A-Za-z][\w-]*(?: [A-Z]+\d+)*(?: rank=\d+)?,? pid=\d+(?:, ?ip=[\w.:]+)?\)\s?)"  # vLLM's and Ray's processes
)
_LEVEL = re.compile(
    r"(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL)"
    r"(?::?\s+(?:\d{4}-)?\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d+)? (?:\[[^\]]*\]|\S+\])\s?|:\s+)"
)


class Line(NamedTuple):
    process: Process
    level: str
    """DEBUG to CRITICAL; empty where the line has none (tracebacks, other programs)."""
    text: str
    """The message, with its indentation."""


def taken_apart(line: str) -> Line:
    """The line without what loggers and wrappers put before its message."""
    line = plain(line).rstrip("\r\n")
    process = process_of(line)
    at = 0
    while found := _WRAPPER.match(line, at):
        at = found.end()
    level = _LEVEL.match(line, at)
    if level is None:
        return Line(process, "", line[at:].rstrip())
    at = level.end()
    while found := _WRAPPER.match(line, at):  # a worker's own record, repeated by the process that reads it
        at = found.end()
    inner = _LEVEL.match(line, at)
    if inner is not None:
        return Line(process, inner["level"], line[inner.end() :].rstrip())
    return Line(process, level["level"], line[at:].rstrip())


_LINE_END = re.compile(rb"[\r\n]")
_LONGEST_LINE = 1 << 20
_TAIL_BYTES = 1 << 16


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


def tail(path: Path, lines: int = 40) -> list[str]:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read()
    except FileNotFoundError:
        return []
    return [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()][-lines:]


_WEIGHTS = re.compile(r"Loading (?:safetensors|pt|bin) checkpoint shards:.*?(\d+)/(\d+) ")
_GRAPHS = re.compile(r"Capturing CUDA graphs?[^:]*:.*?(\d+)/(\d+) ")
_BEGINS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("loading the model", re.compile(r"Starting to load model|Loading model from scratch")),
    ("profiling", re.compile(r"Model loading took|Loading model weights took")),
    ("compiling", re.compile(r"Using cache directory: .*torch\.compile|Dynamo bytecode transform")),
    ("profiling", re.compile(r"torch\.compile (?:took|takes) .* in total|Directly load AOT compilation")),
    ("making the KV cache", re.compile(r"Available KV cache memory")),
    ("warming up", re.compile(r"Graph capturing finished")),
    ("opening the server", re.compile(r"init engine \(")),
)
"""The phase that a line begins; the last one that matched holds."""


class StartPhases:
    """Follows a log; `now` may be asked at any time."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._phase: str | None = None

    def now(self) -> str | None:
        """What it does, e.g. `loading weights (4 of 8)`; None before the log tells anything."""
        for line in self._reader.new_lines():
            self._phase = _phase_of(plain(line)) or self._phase
        return self._phase


def _phase_of(line: str) -> str | None:
    if counted := _WEIGHTS.findall(line):
        return f"loading weights ({counted[-1][0]} of {counted[-1][1]})"
    if counted := _GRAPHS.findall(line):
        return f"capturing graphs ({counted[-1][0]} of {counted[-1][1]})"
    return next((phase for phase, begins in reversed(_BEGINS) if begins.search(line)), None)

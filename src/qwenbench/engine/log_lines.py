"""A line of a server's output apart from its message: who wrote it, when, and what a log collector put around it."""

from __future__ import annotations

import json
import re
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
    """A line of a log, taken apart."""

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

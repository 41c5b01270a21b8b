"""--reliability FILE writes what was tried and survived: docs/reliability.md."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ABOUT = {
    "Servers": (
        "A server that misbehaves in one place and is good everywhere else, asked by `qwenbench bench --timeout 2` "
        "with two streams. Each must end as it says here, with that exit status, within 5 s beyond the time-out after "
        "its first misbehaviour (the client's own start and self-check apart), under 400 MB in every process, without "
        "a traceback, a control character or a secret in what is printed and written, and with nothing sent to another "
        "host."
    ),
    "Kills": (
        "One part of a simulated sweep of four points is sent a signal at a moment drawn with a fixed seed; then "
        "`--resume`. No process may be left, no finished point may be done again, all four points must be there, "
        "and nothing in /dev/shm or `.tmp`."
    ),
    "Callbacks": (
        "A callback of the client process is made to throw, at its first or second call, under answers that are good, "
        "broken off, refused, not closed, and that never come. The point must end with its result or a message."
    ),
    "Damage": (
        "One file of a finished run is damaged; then report, recommend, compare, export, card, ledger and "
        "`sweep --resume` are run on it. Each must end with a sentence or do its work, never with a traceback."
    ),
}
COLUMNS = {
    "Servers": ("what it does", "how it ends", "exit", "seconds", "peak MB"),
    "Kills": ("what is hit, by which signal, when", "points kept of 4"),
    "Callbacks": ("callback", "throws at call"),
    "Damage": ("file", "damages"),
}
_gathered: list[tuple[str, list[str]]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability", type=Path, metavar="FILE", help="write what was tried and survived")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called in the process that brings all workers together."""
    if report.when == "call" and report.passed:
        _gathered.extend(value for name, value in report.user_properties if name == "fault")  # type: ignore[misc]


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("--reliability")
    if path is not None and not hasattr(session.config, "workerinput"):
        path.write_text("\n".join(_document(session.testsfailed)))


def _document(failed: int) -> Iterator[str]:
    yield "# What was tried, and survived\n"
    yield '<!-- made by: make test-faults PYTEST_ARGS="--reliability docs/reliability.md"; do not edit -->\n'
    machine = f"{platform.machine()}, Linux {platform.release()}"
    total = sum(len(_rows(kind)) for kind in ABOUT)
    yield f"`make test-faults` on {time.strftime('%Y-%m-%d')} ({machine}): {total} faults survived, {failed} not.\n"
    for kind, about in ABOUT.items():
        rows = _rows(kind)
        yield f"## {kind}: {len(rows)}\n\n{about}\n"
        yield from _table(COLUMNS[kind], _joined(rows) if kind in ("Damage", "Callbacks") else rows)
        yield ""


def _rows(kind: str) -> list[list[str]]:
    return sorted(row for of, row in _gathered if of == kind)


def _joined(rows: list[list[str]]) -> list[list[str]]:
    """One row for all that have the same first cell."""
    return [
        [first, ", ".join(last for of, last in rows if of == first)] for first in dict.fromkeys(row[0] for row in rows)
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)

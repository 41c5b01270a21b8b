"""Who is whose child: read from /proc, since a process group does not hold children that left it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


def _processes() -> Iterator[tuple[int, Path]]:
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            yield int(folder.name), folder


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands."""

    parent: int
    session: int


def places() -> dict[int, Place]:
    """pid -> place of every process that is visible and no zombie."""
    found: dict[int, Place] = {}
    for pid, folder in _processes():
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        # the command name may hold spaces and brackets: count from the last one
        fields = stat[stat.rindex(")") + 2 :].split()
        if fields[0] not in ("Z", "X"):
            found[pid] = Place(parent=int(fields[1]), session=int(fields[3]))
    return found


def descendants(root: int) -> list[int]:
    """Every process below `root` (itself not included), nearest first."""
    children: dict[int, list[int]] = {}
    for pid, place in places().items():
        children.setdefault(place.parent, []).append(pid)
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(0), [])
        found += below
        todo += below
    return found


def by_variable(name: str) -> dict[str, list[int]]:
    """Value -> processes of this user that were started with this environment variable (children inherit it)."""
    prefix = f"{name}=".encode()
    user = os.getuid()
    found: dict[str, list[int]] = {}
    for pid, folder in _processes():
        try:
            if folder.stat().st_uid != user:
                continue
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        for entry in environment.split(b"\0"):
            if entry.startswith(prefix):
                found.setdefault(entry[len(prefix) :].decode(errors="replace"), []).append(pid)
    return found


def with_variable(name: str, value: str) -> list[int]:
    """Processes of this user that were started with this environment variable and value."""
    return by_variable(name).get(value, [])


def in_sessions(leaders: Iterable[int]) -> list[int]:
    """Processes of this user in the sessions of these leaders (a session outlives its leader)."""
    wanted, user = set(leaders), os.getuid()
    return [pid for pid, place in places().items() if place.session in wanted and _user_of(pid) == user]


def _user_of(pid: int) -> int | None:
    try:
        return (_PROC / str(pid)).stat().st_uid
    except OSError:
        return None


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to each; those that are gone by now are passed over."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def listener_pid(port: int) -> int | None:
    """The process that listens on this TCP port of this machine; None when it cannot be told."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for pid, folder in _processes():
        try:
            if any(str(handle.readlink()) in inodes for handle in (folder / "fd").iterdir()):
                return pid
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = (_PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found

"""Servers whose qwenbench is gone: found by label, by launch.json and by their mark; removed when asked to.

Only what is this user's and whose owner is known to be dead counts. A container or process of a live run, of
another user or of another machine is never offered.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwenbench.engine.docker import command, labels
from qwenbench.engine.docker.container import remove
from qwenbench.engine.launch_file import NAME as LAUNCH_FILE
from qwenbench.engine.launch_file import read_launch_record
from qwenbench.engine.launch_mark import VARIABLE, owner_of
from qwenbench.engine.process_tree import by_variable, send
from qwenbench.process_identity import ProcessIdentity, host_name, user_name

_GRACE_S = 10.0
_POLL_S = 0.03
_LIST_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that a dead qwenbench has left behind."""

    kind: str
    """`process` or `container`."""
    name: str
    """What a user would call it: the container's name, or the server's process ids."""
    run_id: str | None
    pids: tuple[int, ...] = ()
    container: str | None = None


def find_leftovers(run_folder: Path | None) -> list[Leftover]:
    """Leftovers of one run, or of all of this user's runs when no folder is given.

    An engine that does not answer within 10 s has no containers to show.
    """
    run_id = run_folder.name if run_folder is not None else None
    return [*_processes(run_folder), *_containers(run_id)]


async def remove_leftover(leftover: Leftover) -> bool:
    """Stops and removes it: SIGTERM, 10 s, SIGKILL. True when it is gone."""
    if leftover.container is not None:
        await command.docker("stop", "-t", f"{_GRACE_S:.0f}", leftover.container, limit_s=_GRACE_S + command.QUICK_S)
        return await remove(leftover.container)
    send(leftover.pids, signal.SIGTERM)
    if not await _ended(leftover.pids, _GRACE_S):
        send(leftover.pids, signal.SIGKILL)
    return await _ended(leftover.pids, 2.0)


async def _ended(pids: tuple[int, ...], limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    wanted = set(pids)
    while True:
        left = wanted & {pid for found in by_variable(VARIABLE).values() for pid in found}
        if not left:
            return True
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)


def _is_dead(owner: ProcessIdentity | None) -> bool:
    """Whether the owner is known to be dead: one on another machine cannot be known to be."""
    return owner is not None and owner.host == host_name() and not owner.is_running()


def _processes(run_folder: Path | None) -> Iterator[Leftover]:
    marks = by_variable(VARIABLE)
    runs = dict(_marks_of_run(run_folder)) if run_folder is not None else None
    for mark, pids in marks.items():
        if runs is not None and mark not in runs:
            continue
        if _is_dead(owner_of(mark)):
            text = ", ".join(map(str, pids))
            yield Leftover("process", f"server processes {text}", runs[mark] if runs else None, tuple(pids))


def _marks_of_run(run_folder: Path) -> Iterator[tuple[str, str | None]]:
    for path in run_folder.glob(f"servers/**/{LAUNCH_FILE}"):
        try:
            record = read_launch_record(path)
        except (OSError, ValueError):
            continue  # half a file from a crash says nothing
        if VARIABLE in record.env:
            yield record.env[VARIABLE], record.run_id


def _containers(run_id: str | None) -> Iterator[Leftover]:
    wanted = f"label={labels.RUN}" if run_id is None else f"label={labels.RUN}={run_id}"
    for name, own in _list_containers(wanted, f"label={labels.OWNER}={user_name()}"):
        if _is_dead(labels.owner_of(own)):
            yield Leftover("container", name, own.get(labels.RUN), container=name)


def _list_containers(*filters: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    if not command.available():
        return
    try:
        ids = _say("ps", "--all", "--no-trunc", "--quiet", *(word for f in filters for word in ("--filter", f))).split()
        if not ids:
            return
        for found in json.loads(_say("container", "inspect", *ids)):
            yield found["Name"].lstrip("/"), found["Config"]["Labels"] or {}
    except (OSError, subprocess.SubprocessError, ValueError):
        return


def _say(*arguments: str) -> str:
    done = subprocess.run(
        [command.PROGRAM, *arguments], capture_output=True, text=True, timeout=_LIST_LIMIT_S, check=True
    )
    return done.stdout

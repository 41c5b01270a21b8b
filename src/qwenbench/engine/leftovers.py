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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwenbench.engine import launch_record
from qwenbench.engine.docker import command
from qwenbench.engine.docker.launcher import remove
from qwenbench.engine.launch_record import LaunchRecord, owner_of_labels, owner_of_mark, read_launch_record
from qwenbench.processes import (
    ProcessIdentity,
    boot_id,
    by_variable,
    descendants,
    host_name,
    in_sessions,
    process_start_time,
    send,
    user_name,
)

_GRACE_S = 10.0
_KILLED_S = 2.0
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
    processes: tuple[ProcessIdentity, ...] = ()
    container: str | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self.processes)


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
    await _end(leftover.processes, signal.SIGTERM, _GRACE_S)
    return await _end(leftover.processes, signal.SIGKILL, _KILLED_S)


async def _end(processes: Sequence[ProcessIdentity], number: signal.Signals, limit_s: float) -> bool:
    """Sends a signal to those that still run, and waits. True when none runs any more."""
    send([process.pid for process in processes if process.is_running()], number)
    deadline = time.monotonic() + limit_s
    while any(process.is_running() for process in processes):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_POLL_S)
    return True


def _is_dead(owner: ProcessIdentity | None) -> bool:
    """Whether the owner is known to be dead: one on another machine cannot be known to be."""
    return owner is not None and owner.host == host_name() and not owner.is_running()


def _processes(run_folder: Path | None) -> Iterator[Leftover]:
    marked = by_variable(launch_record.VARIABLE)
    if run_folder is None:
        for mark, pids in marked.items():
            if _is_dead(owner_of_mark(mark)):
                yield _leftover(None, pids)
        return
    for record in _records(run_folder):
        pids = marked.get(record.env.get(launch_record.VARIABLE, ""), [])
        if _is_dead(record.owner_process()) and (found := [*pids, *_session_of(record)]):
            yield _leftover(record.run_id, found)


def _leftover(run_id: str | None, pids: Sequence[int]) -> Leftover:
    everything = dict.fromkeys((*pids, *(child for pid in pids for child in descendants(pid))))
    text = ", ".join(map(str, everything))
    return Leftover("process", f"server processes {text}", run_id, tuple(map(ProcessIdentity.of, everything)))


def _session_of(record: LaunchRecord) -> list[int]:
    """What is left in the session that a server's first process led.

    vLLM's engine processes write their titles over their environment, so their mark cannot be read; a session's
    number is not given to another process while somebody is left in it.
    """
    if record.pid is None or record.start_time is None or record.boot_id != boot_id():
        return []
    leader = process_start_time(record.pid)
    if leader is not None and leader != record.start_time:
        return []  # the number belongs to somebody else now
    started = ((pid, process_start_time(pid)) for pid in in_sessions([record.pid]))
    return [pid for pid, start in started if start is not None and start >= record.start_time]


def _records(run_folder: Path) -> Iterator[LaunchRecord]:
    for path in run_folder.glob(f"servers/**/{launch_record.FILE}"):
        try:
            yield read_launch_record(path)
        except (OSError, ValueError):
            continue  # half a file from a crash says nothing


def _containers(run_id: str | None) -> Iterator[Leftover]:
    wanted = f"label={launch_record.RUN_LABEL}" if run_id is None else f"label={launch_record.RUN_LABEL}={run_id}"
    for name, own in _list_containers(wanted, f"label={launch_record.OWNER_LABEL}={user_name()}"):
        if _is_dead(owner_of_labels(own)):
            yield Leftover("container", name, own.get(launch_record.RUN_LABEL), container=name)


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

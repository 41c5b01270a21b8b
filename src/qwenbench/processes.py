"""Processes of this machine: which one is meant, who is whose child, who listens where.

A pid alone is reused, so a process is known by its pid, start time, boot id and host together.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNTOUCHED_S = 24 * 3600.0
"""A folder of whose process nothing can be told (another pid namespace's, an older version's) is left for so long."""


def boot_id() -> str | None:
    """The kernel's id of this boot; None where there is no /proc."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


def process_start_time(pid: int) -> float | None:
    """Start time in clock ticks since boot (/proc/PID/stat, field 22); None when there is no such process.

    Not psutil's, which is in wall-clock seconds and shifts with the clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the command name (field 2) may hold spaces and brackets: count from the last one
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else float(fields[19])


def command_line(pid: int) -> str:
    """How a process was started, its words separated by blanks; empty when it is gone or another user's."""
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


def host_name() -> str:
    """This machine's name."""
    return socket.gethostname()


def user_name() -> str:
    """Who runs this; the numeric id where it has no name (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, recognisable after pids were reused or the machine was restarted."""

    host: str
    boot_id: str | None
    pid: int
    start_time: float | None

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of a running process."""
        return cls(host_name(), boot_id(), pid, process_start_time(pid))

    @classmethod
    def current(cls) -> ProcessIdentity:
        """This process."""
        return cls.of(os.getpid())

    def on_this_boot(self) -> bool:
        """Whether it was started on this host since its last boot."""
        return self.host == host_name() and self.boot_id == boot_id()

    def is_running(self) -> bool:
        """Whether that very process still runs here. False for another host or boot: ask there."""
        return self.on_this_boot() and self.start_time is not None and process_start_time(self.pid) == self.start_time


def descendants(root: int) -> list[int]:
    """Every process below `root` that still runs (itself not included): a group does not hold those that left it."""
    try:
        below = psutil.Process(root).children(recursive=True)
    except psutil.Error:
        return []
    return [child.pid for child in below if process_start_time(child.pid) is not None]


def by_variable(name: str) -> dict[str, list[int]]:
    """Value -> processes of this user that were started with this environment variable (children inherit it)."""
    found: dict[str, list[int]] = {}
    for process in _of_this_user():
        with contextlib.suppress(psutil.Error, OSError):
            value = process.environ().get(name)
            if value is not None:
                found.setdefault(value, []).append(process.pid)
    return found


def in_sessions(leaders: Iterable[int]) -> list[int]:
    """Processes of this user in the sessions of these leaders (a session outlives its leader)."""
    wanted = set(leaders)
    found = []
    for process in _of_this_user():
        with contextlib.suppress(OSError):
            if os.getsid(process.pid) in wanted and process_start_time(process.pid) is not None:
                found.append(process.pid)
    return found


def _of_this_user() -> Iterator[psutil.Process]:
    user = os.getuid()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == user:
                yield process


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to each; those that are gone by now are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


_SHARED_MEMORY = Path("/dev/shm")


def shared_memory_of(pids: Iterable[int]) -> set[str]:
    """Segments of /dev/shm that these processes map or hold open, by name; unlinked ones are left out."""
    paths = []
    for pid in pids:
        with contextlib.suppress(OSError):
            paths += Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines()
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    paths.append(str(handle.readlink()))
    names = (path.partition("/dev/shm/")[2] for path in paths)
    return {name for name in names if name and not name.endswith("(deleted)")}


def remove_unused_shared_memory(names: Iterable[str]) -> list[str]:
    """Removes those of these segments that are still there, are this user's, and that no process of his maps any more;
    what was removed. A server that is killed has no time to do it."""
    wanted = set(names)
    if not wanted:
        return []
    wanted -= shared_memory_of(process.pid for process in _of_this_user())
    removed = []
    for name in sorted(wanted):
        path = _SHARED_MEMORY / name
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_uid == os.getuid():
                path.unlink()
                removed.append(name)
    return removed


def listener_pid(port: int) -> int | None:
    """The process that listens on this TCP port of this machine; None when it cannot be told."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                return connection.pid
    return None


def oom_kills() -> int:
    """How many processes this host's kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        rows = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("oom_kill ")), 0)


def own_folder(prefix: str, where: Path) -> TemporaryDirectory[str]:
    """A new folder that is removed with this process or, after a SIGKILL, by `remove_abandoned`."""
    me = ProcessIdentity.current()
    return TemporaryDirectory(prefix=f"{prefix}{me.pid}-{me.start_time}-{_pid_namespace()}-", dir=where)


def remove_abandoned(prefix: str, where: Path) -> None:
    """Removes what killed processes left of `own_folder`; one whose process still runs, or that is another's, stays."""
    for folder in where.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            state = folder.lstat()
            if state.st_uid == os.getuid() and _is_abandoned(folder.name.removeprefix(prefix), state.st_mtime):
                shutil.rmtree(folder)


def _is_abandoned(name: str, changed: float) -> bool:
    found = re.fullmatch(r"(\d+)-(\d+\.\d+)-(?:(\d+)-)?[^-]+", name)
    if found is None or found[3] not in (None, str(_pid_namespace())):
        return time.time() - changed > _UNTOUCHED_S
    return process_start_time(int(found[1])) != float(found[2])


def _pid_namespace() -> int:
    """Pids of containers mean other processes, and /dev/shm may be shared with them; 0 where there are none."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0

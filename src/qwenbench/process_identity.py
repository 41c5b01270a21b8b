"""Which process is meant: a pid alone is reused, so it goes with its start time, the boot id and the host."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """The kernel's id of this boot; None where there is no /proc."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return None


def process_start_time(pid: int) -> float | None:
    """Start time in clock ticks since boot (/proc/PID/stat, field 22); None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the command name (field 2) may hold spaces and brackets: count from the last one
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] == "Z" else float(fields[19])


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

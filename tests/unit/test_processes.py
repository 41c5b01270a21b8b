"""A process is recognised by pid, start time, boot id and host together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from qwenbench import processes
from qwenbench.processes import ProcessIdentity, process_start_time, user_name


def test_this_process_runs() -> None:
    me = ProcessIdentity.current()
    assert me.pid == os.getpid()
    assert me.is_running()


@pytest.mark.parametrize("change", [{"start_time": 1.0}, {"boot_id": "another"}, {"host": "elsewhere"}])
def test_a_reused_pid_another_boot_or_host_is_not_this_process(change: dict[str, object]) -> None:
    assert not replace(ProcessIdentity.current(), **change).is_running()  # type: ignore[arg-type] # values fit the field


def test_an_ended_process_does_not_run_and_neither_does_a_zombie() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = ProcessIdentity.of(child.pid)
    assert identity.is_running()
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not reaped: a zombie with the same start time
    assert not identity.is_running()
    child.communicate()
    assert not identity.is_running()
    assert process_start_time(child.pid) is None


def test_a_command_name_with_brackets_does_not_shift_the_fields() -> None:
    """/proc/PID/stat puts the name into brackets and escapes nothing."""
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b') Z 1 2 (', 0, 0, 0); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    before = process_start_time(os.getpid())
    child.stdout.readline()
    started = process_start_time(child.pid)
    child.communicate(b"\n")
    assert before is not None
    assert started is not None
    assert started >= before


def test_an_identity_without_a_start_time_is_never_running() -> None:
    """Where there was no /proc nothing may be taken for a living process (and be killed as one)."""
    assert not replace(ProcessIdentity.current(), start_time=None).is_running()


def test_a_user_without_a_name_is_told_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(processes.getpass, "getuser", nameless)
    assert user_name() == str(os.getuid())

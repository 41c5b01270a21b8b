"""A process is recognised by pid, start time, boot id and host together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwenbench import processes
from qwenbench.processes import ProcessIdentity, own_folder, process_start_time, remove_abandoned, user_name


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


def test_folders_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    prefix, me = "qwenbench-client-", ProcessIdentity.current()
    with own_folder(prefix, tmp_path) as own:
        namespace = own.split("-")[-2]
        dead = [f"{me.pid}-1.0-abc", "4194305-5.0-abc", f"4194305-5.0-{namespace}-abc", "x1y2z3"]
        kept = [f"{me.pid}-{me.start_time}-abc", "4194305-5.0-1-abc", "something-else-here"]
        for name in (*dead, *kept):
            (tmp_path / f"{prefix}{name}").mkdir()
            (tmp_path / f"{prefix}{name}" / "sent-1-0").write_bytes(b"x")
        os.utime(tmp_path / f"{prefix}x1y2z3", (0, 0))  # an older version's, without a pid, and untouched for years
        (tmp_path / f"{prefix}link").symlink_to(tmp_path)
        remove_abandoned(prefix, tmp_path)
        left = {Path(own).name, *(f"{prefix}{name}" for name in (*kept, "link"))}
        assert {path.name for path in tmp_path.iterdir()} == left

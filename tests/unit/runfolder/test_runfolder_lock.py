"""One writer per run folder, whoever the other is."""

from __future__ import annotations

import errno
import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qwenbench.errors import UsageError
from qwenbench.processes import ProcessIdentity, host_name
from qwenbench.runfolder.lock import RunLock

HOLD = """
import sys
from pathlib import Path
from qwenbench.runfolder.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A second process that holds the lock until it is told to let go."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def take(lock: Path, takeover: bool = False) -> None:
    with RunLock(lock, takeover):
        pass


def test_a_second_process_is_refused_with_the_holders_pid(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with other_process(lock) as child:
        with pytest.raises(UsageError, match=f"process {child.pid} on {host_name()} is writing to this run"):
            take(lock)
        with pytest.raises(UsageError, match="is writing to this run"):
            take(lock, takeover=True)  # --force is for hosts that have gone, not for living writers
        child.communicate("let go\n")
        take(lock)


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with other_process(lock) as child:
        child.kill()
        child.wait()
        assert lock.read_bytes()  # it had no time to clean up
        take(lock)


def test_another_hosts_lock_is_reported_and_can_be_taken_over(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"host": "far-away", "boot_id": "b", "pid": 7, "start_time": 1.0}))
    with pytest.raises(UsageError, match=r"process 7 on another host, far-away.*--force"):
        take(lock)
    assert "far-away" in lock.read_text()  # a refusal changes nothing
    take(lock, takeover=True)
    take(lock)


def test_the_file_names_its_holder_and_is_emptied_in_the_end(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with RunLock(lock):
        assert ProcessIdentity(**json.loads(lock.read_text())).is_running()
    assert lock.read_bytes() == b""


@pytest.mark.parametrize("content", ["", "garbage", "[]", '{"pid": 1}'])
def test_a_file_that_names_nobody_is_no_lock(tmp_path: Path, content: str) -> None:
    lock = tmp_path / ".lock"
    lock.write_text(content)
    take(lock)


def test_a_file_system_without_locks_is_not_taken_for_a_second_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match="cannot be locked: No locks available"):
        take(tmp_path / ".lock")

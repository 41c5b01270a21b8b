"""Leftover processes: those of a dead owner are found and ended, those of a live one are left alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwenbench.engine.launch_record import VARIABLE, new_mark, owner_of_mark
from qwenbench.engine.leftovers import Leftover, find_leftovers, remove_leftover
from qwenbench.processes import ProcessIdentity, by_variable, descendants, process_start_time

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process supervision needs Linux")

OWNER = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_engine_process import launch
async def main():
    server = await launch(Path({folder!r}), {port}, "--stubborn-child", "--bare-child", "--ignore-term")
    await server.wait_ready(20)
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A qwenbench-like process with a server below it, in a run folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path / "run-1" / "servers" / "c1"
    folder.mkdir(parents=True)
    code = OWNER.format(here=str(HERE), folder=str(folder), port=port)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    for pid in descendants(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.wait()
    process.stdout.close()


def _wait_until(what: str, condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


async def test_a_dead_owners_server_is_found_and_ended(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    run = tmp_path / "run-1"
    record = json.loads((run / "servers" / "c1" / "launch.json").read_text())
    mark = record["env"][VARIABLE]
    assert find_leftovers(run) == []  # its owner lives
    supervisor = next(pid for pid in descendants(owner.pid) if "supervisor" in Path(f"/proc/{pid}/cmdline").read_text())
    os.kill(supervisor, signal.SIGKILL)  # otherwise it would end the server itself
    owner.kill()
    owner.wait()
    _wait_until("the supervisor's end", lambda: process_start_time(supervisor) is None)

    found = find_leftovers(run)
    assert [(left.kind, left.run_id) for left in found] == [("process", "run-1")]
    assert set(found[0].pids) > set(by_variable(VARIABLE).get(mark, []))
    assert len(found[0].pids) == 3  # vLLM's engine writes its title over its environment: it has no mark
    assert [set(left.pids) for left in find_leftovers(None)].count(set(found[0].pids)) == 1
    assert find_leftovers(tmp_path / "another-run") == []

    # the first process goes away by itself: the engine that it leaves behind is found all the same
    os.kill(record["pid"], signal.SIGKILL)
    _wait_until("the server's end", lambda: process_start_time(record["pid"]) is None)
    found = find_leftovers(run)
    assert len(found[0].pids) == 2

    assert await remove_leftover(found[0])
    assert by_variable(VARIABLE).get(mark, []) == []
    assert not any(process.is_running() for process in found[0].processes)
    assert find_leftovers(run) == []


async def test_a_pid_that_was_reused_is_not_touched() -> None:
    own = ProcessIdentity.current()
    earlier = ProcessIdentity(own.host, own.boot_id, own.pid, (own.start_time or 0) - 1)
    assert not earlier.is_running()
    assert owner_of_mark(new_mark()) == own
    assert owner_of_mark("something else") is None
    assert await remove_leftover(Leftover("process", "none", None, ()))

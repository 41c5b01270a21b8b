"""A sweep that is stopped, killed, resumed or begun twice: nothing is left running, nothing is done again."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sweep_runs import (
    QUICK,
    free_port,
    journal,
    points,
    qwenbench,
    record,
    relatives,
    requests_of,
    started,
    sweep,
    wait_until,
)

from qwenbench.engine import leftovers
from qwenbench.engine.readiness import port_in_use

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process supervision needs Linux")
SLOW = "--vllm-arg=--sim-time-scale=0.5"
"""Given after QUICK's own, so it wins: a cell of 4 requests one by one takes a second, time enough to interfere."""


def options(folder: Path, port: int) -> tuple[str, ...]:
    """Two captures, two load points each; the second point of each is long."""
    load = ("--capture", "16,32", "--concurrency", "4,1", "--order", "listed", "--output-tokens", "40", SLOW)
    target = ("--out", str(folder.parent), "--run-id", folder.name)
    return ("sweep", "--launcher", "sim", *QUICK, *load, *target, "--port", str(port))


def in_second_cell(folder: Path, process: subprocess.Popen[str]) -> None:
    """Waits until the first cell is finished, so the second is under way."""
    wait_until(lambda: journal(folder) or process.poll() is not None, "the first cell never ended")
    assert process.poll() is None


def nothing_left(process: subprocess.Popen[str], port: int) -> None:
    assert relatives(process) == []
    assert not port_in_use("127.0.0.1", port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_mid_cell_then_resumed(tmp_path: Path, number: signal.Signals) -> None:
    folder, port = tmp_path / "a run" / "r", free_port()
    with started(*options(folder, port)) as process:
        in_second_cell(folder, process)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does it: every process of the group gets it
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=30)
        nothing_left(process, port)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert f"qwenbench sweep --resume '{folder}'" in err
    before = journal(folder)
    assert 0 < len(before) < 4
    assert record(folder / "run.json")["finished"] is None
    assert not list((folder / "servers").rglob("failure.json"))
    assert len(list((folder / "requests").iterdir())) == len(before)

    refused = qwenbench("sweep", "--resume", str(folder), "--requests", "7")
    assert refused.status == 2
    assert "plan has changed (load options: requests)" in refused.err
    assert journal(folder) == before

    resumed = qwenbench("sweep", "--resume", str(folder))
    assert resumed.completed, resumed.err
    after = journal(folder)
    assert after[: len(before)] == before
    assert len(after) == len({line["cell"] for line in after}) == len(points(folder)) == 4
    assert record(folder / "run.json")["finished"]
    assert (folder / "report.html").exists()
    again = qwenbench("sweep", "--resume", str(folder))
    assert again.completed
    assert journal(folder) == after


def test_a_resumed_cell_sends_what_an_undisturbed_one_sends(tmp_path: Path) -> None:
    folder, port = tmp_path / "r", free_port()
    with started(*options(folder, port)) as process:
        in_second_cell(folder, process)
        process.kill()
        process.wait(timeout=10)
        # its supervisor sees that it has gone: nobody has to clean up
        wait_until(lambda: not relatives(process), "the server outlived qwenbench", 15)
        assert not port_in_use("127.0.0.1", port)
    before = journal(folder)
    assert qwenbench("sweep", "--resume", str(folder)).completed
    assert journal(folder)[: len(before)] == before
    configs = ("cap16-seq16", "cap32-seq32")
    columns = ["request_id", "prompt_id", "requested_output_tokens", "input_tokens"]
    for level in (1, 4):
        name = f"l1.math.instruct-reasoning.c{level}.1"
        one, other = (requests_of(folder, f"{config}.{name}").select(columns) for config in configs)
        assert one.equals(other)


def test_a_server_whose_supervisor_was_killed_too_is_ended_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The port is still taken when --resume begins: by our own leftover, so it is no reason to refuse."""
    monkeypatch.setattr(leftovers, "_GRACE_S", 0.2)
    folder, port = tmp_path / "r", free_port()
    with started(*options(folder, port)) as process:
        in_second_cell(folder, process)
        server = record(folder / "servers" / "cap16-seq16" / "launch.json")["pid"]
        os.kill(server, signal.SIGSTOP)  # deaf to SIGTERM, as a server in the depths of a driver is
        for pid in relatives(process):
            if pid != server:
                os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait(timeout=10)
        wait_until(lambda: relatives(process) == [server], "only the server is left")
        assert port_in_use("127.0.0.1", port)
        resumed = qwenbench("sweep", "--resume", str(folder))
        assert relatives(process) == []
    assert resumed.completed, resumed.err
    assert "ending what an interrupted qwenbench left" in resumed.err
    assert len(points(folder)) == 4


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    folder, port = tmp_path / "r", free_port()
    with started(*options(folder, port)) as process:
        in_second_cell(folder, process)
        second = qwenbench("sweep", "--resume", str(folder))
        assert second.status == 2
        assert f"process {process.pid} on {socket.gethostname()} is writing to this run" in second.err
        assert process.poll() is None
        assert relatives(process)


def test_another_hosts_lock_needs_force(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert sweep(folder, "--capture", "16", "--concurrency", "2", "--requests", "2").completed
    holder = {"host": "elsewhere", "boot_id": None, "pid": 4711, "start_time": 1.0}
    (folder / ".lock").write_text(json.dumps(holder))
    refused = qwenbench("sweep", "--resume", str(folder))
    assert refused.status == 2
    assert "process 4711 on another host, elsewhere" in refused.err
    assert "--force" in refused.err
    assert qwenbench("sweep", "--resume", str(folder), "--force").completed
    assert (folder / ".lock").read_bytes() == b""


def test_stopped_while_the_server_starts(tmp_path: Path) -> None:
    folder, port = tmp_path / "r", free_port()
    hang = ("--vllm-arg=--sim-fail", "--vllm-arg=hang-at-start")
    with started(*options(folder, port), *hang) as process:
        wait_until((folder / "servers" / "cap16-seq16" / "server.log").exists, "no server was started")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        nothing_left(process, port)
    assert process.returncode == 130
    assert "--resume" in err
    assert journal(folder) == []
    assert not list(folder.rglob("failure.json"))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "r"
    monkeypatch.setattr("qwenbench.sweep.record.write_table", full)
    ended = sweep(folder, "--capture", "16", "--concurrency", "2")
    assert ended.status == 1
    assert ended.err.splitlines()[-1].startswith(f"qwenbench sweep: {folder}: No space left on device.")
    assert journal(folder) == []
    monkeypatch.undo()
    assert qwenbench("sweep", "--resume", str(folder)).completed

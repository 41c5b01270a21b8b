"""Parts killed at seeded moments: nothing is left running or lying about, and --resume ends with all points."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from sweep_runs import QUICK, free_port, journal, points, qwenbench, record, relatives, started, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="process supervision needs Linux")

KILLS = 40
SEED = 20261127
LATEST_S = 3.0
"""The sweep below takes about as long, once its first server is started."""
LIMIT_S = 60
PLAN = ("--launcher", "sim", "--capture", "16,32", "--concurrency", "1,2", "--order", "listed", "--no-report")
PARTS = ("sweep", "client", "server", "supervisor")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
POINTS = {(f"cap{capture}-seq{capture}", streams) for capture, streams in product((16, 32), ("1", "2"))}
MODULES = {
    "client": "qwenbench.load.worker",
    "supervisor": "qwenbench.engine.supervisor",
    "server": "qwenbench.simulator",
}


def kills() -> list[object]:
    """Every part with every signal in turn, each at a moment of its own."""
    moments = random.Random(SEED)
    pairs = [pair for _, pair in zip(range(KILLS), list(product(PARTS, SIGNALS)) * KILLS, strict=False)]
    cases = [(part, number, moments.uniform(0, LATEST_S)) for part, number in pairs]
    return [pytest.param(*case, id=f"{case[0]} {case[1].name} at {case[2]:.2f} s") for case in cases]


def find(part: str, process: subprocess.Popen[str], folder: Path) -> list[int]:
    """The processes of this part that run now; the sweep itself once it has a run (before, it has nothing to lose)."""
    if part == "sweep":
        return [process.pid] if (folder / "run.json").exists() and process.poll() is None else []
    found = []
    for pid in relatives(process):
        with contextlib.suppress(OSError):
            if MODULES[part] in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                found.append(pid)
    return found


def leftovers(folder: Path, pid: int) -> list[Path]:
    """Half-written files of the run, and what the killed command kept in memory."""
    return [*folder.rglob("*.tmp"), *Path("/dev/shm").glob(f"qwenbench-client-{pid}-*")]


def test_a_stopped_client_process_fails_its_point_and_the_run_goes_on(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, port = tmp_path / "r", free_port()
    target = ("--port", str(port), "--out", str(tmp_path), "--run-id", "r")
    with started("sweep", *PLAN, *QUICK, "--timeout", "2", *target) as process:
        wait_until(lambda: find("client", process, folder) and journal(folder), "no point was measured", LIMIT_S)
        for pid in find("client", process, folder):
            os.kill(pid, signal.SIGSTOP)
        out, err = process.communicate(timeout=LIMIT_S)
        wait_until(lambda: not relatives(process), f"still running: {relatives(process)}", LIMIT_S)
    done = journal(folder)
    record_property("fault", ("Kills", ["client, SIGSTOP, after the first point", str(len(done))]))
    assert process.returncode == 1, err
    assert "Traceback" not in out + err, err
    assert "it said nothing for" in err
    assert len(done) == len(POINTS) - 1, "one point is lost, and the others are measured by another process"
    ended = qwenbench("sweep", "--resume", str(folder))
    assert ended.completed, ended.err
    assert journal(folder)[: len(done)] == done
    assert len(points(folder)) == len(POINTS)


@pytest.mark.parametrize(("part", "number", "moment_s"), kills())
def test_a_part_is_killed_and_the_run_goes_on(
    part: str, number: signal.Signals, moment_s: float, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, port = tmp_path / "r", free_port()
    target = ("--port", str(port), "--out", str(tmp_path), "--run-id", "r")
    with started("sweep", *PLAN, *QUICK, *target) as process:
        wait_until(lambda: find(part, process, folder) or process.poll() is not None, f"no {part} was started", LIMIT_S)
        time.sleep(moment_s)  # the seeded moment: any other event would be a chosen one
        hit = find(part, process, folder)
        for pid in hit:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        out, err = process.communicate(timeout=LIMIT_S)
        wait_until(lambda: not relatives(process), f"still running: {relatives(process)}", LIMIT_S)
    done = journal(folder)
    record_property("fault", ("Kills", [f"{part}, {number.name}, {moment_s:.2f} s", str(len(done))]))
    assert "Traceback" not in out + err, err
    killed = part == "sweep" and number is signal.SIGKILL
    assert process.returncode in ((-signal.SIGKILL, 0) if killed else (0, 1, 2, 130)), err
    if not hit:
        assert len(done) == len(POINTS), "the part was gone before its moment, with the sweep still going"

    ended = qwenbench("sweep", "--resume", str(folder))
    assert ended.completed, ended.err
    assert journal(folder)[: len(done)] == done, "a finished point was done again"
    rows = points(folder)
    assert {(row["config_id"], row["concurrency"]) for row in rows} == POINTS
    assert len(rows) == len(POINTS)
    assert all(row["requests_failed"] == "0" for row in rows)
    assert record(folder / "run.json")["finished"]
    assert leftovers(folder, process.pid) == []

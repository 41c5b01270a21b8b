"""Hostile servers, mode by mode: the class of failure, the exit status, the time, the memory, and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hostile_server import BY_NAME, HostileServer, Mode, hostile_server

HERE = Path(__file__).parent
TIMEOUT_S = 2
MORE_S = 5
"""Beyond --timeout, from the first misbehaviour to the end."""
LIMIT_S = 60
"""After this a command is ended."""
MOST_MIB = 400
ENVIRONMENT = {"XS": "header-secret-5511", "KEY": "bearer-key-8833"}
OPTIONS = (
    *("--scenario", "math", "--concurrency", "2", "--requests", "2", "--output-tokens", "4", "--no-report"),
    *("--startup-timeout", "5", "--header-env", "X-Secret=XS", "--api-key-env", "KEY"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    with hostile_server() as one:
        yield one


@pytest.mark.parametrize("name", BY_NAME)
def test_a_hostile_server_costs_a_sentence(
    server: HostileServer,
    tmp_path: Path,
    name: str,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mode = BY_NAME[name]
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    url = f"http://127.0.0.1:{server.port}/{name}"
    command = [sys.executable, "-m", "qwenbench", "bench", "--url", url, *OPTIONS, *mode.options]
    timeout_s = TIMEOUT_S
    if mode.ends == "malformed" and not mode.name.startswith("endless"):
        timeout_s = 10  # what is wrong is seen at once: no busy machine shall reach the time limit first
    command += ["--timeout", str(timeout_s)]
    command += ["--out", str(tmp_path), "--run-id", "r"]
    runner = [sys.executable, str(HERE / "measured_command.py"), str(LIMIT_S), str(tmp_path / "cost.json")]
    ended = subprocess.run([*runner, *command], capture_output=True, text=True, check=True)
    cost = json.loads((tmp_path / "cost.json").read_text())
    said = ended.stdout + ended.stderr
    spent = [str(cost["status"]), f"{cost['seconds']:.0f}", f"{cost['peak_mib']:.0f}"]
    record_property("fault", ("Servers", [mode.name, mode.ends, *spent]))

    assert cost["status"] is not None, f"not over after {LIMIT_S} s: {said[-2000:]}"
    assert "Traceback" not in said, said[-4000:]
    found = how_it_ended(mode, tmp_path / "r", cost["status"], said)
    # a flood ends at its own limit or, on a busy machine, at the time's: both are limits that held
    flood = mode.name.startswith("endless") and mode.ends == "malformed"
    limits_held = set(found.split(", ")) <= {"malformed", "timeout"} or "no whole answer" in said
    assert found == mode.ends or (flood and limits_held), said[-2000:]
    assert cost["peak_mib"] < MOST_MIB
    # what is no waiting for the server: two interpreters (the second one is a client process), the client's self-check
    own_s = 2 * cost["start_s"] + self_check_s(tmp_path / "r")
    assert cost["ended"] - server.began.get(name, cost["ended"]) < timeout_s + MORE_S + own_s
    assert server.elsewhere == []
    assert all(line.isprintable() for line in said.splitlines()), "steers the terminal"
    assert len(ended.stderr) < 4000
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()) + said.encode()
    assert not any(value.encode() in written for value in ENVIRONMENT.values())


def self_check_s(run: Path) -> float:
    file = run / "run.json"
    timings = json.loads(file.read_text())["timings"] if file.exists() else None
    return sum(one.get("self_check", 0.0) for one in timings or [])


def how_it_ended(mode: Mode, run: Path, status: int, said: str) -> str:
    """What came of it, in the words of `Mode.ends`."""
    words = mode.ends.removeprefix("refused: ")
    if status == 2:
        return f"refused: {words if words in said else 'other words'}"
    rows = pq.read_table(next((run / "requests").glob("*.parquet")), columns=["error"])["error"].to_pylist()
    errors = set(rows) or {"no request"}
    found = "measured" if errors == {None} else ", ".join(sorted(str(error) for error in errors))
    if found == "measured" and status == 1 and "the client came" in said:
        return found  # a busy machine made the client late, so the point is invalid, as it must be
    if found == "measured" and status == 1 and "broken output" in said:
        return "broken output"
    return found if status == (found != "measured") else f"{found}, but exit status {status}"

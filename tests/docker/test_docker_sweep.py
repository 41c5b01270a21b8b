"""`qwenbench sweep` with the docker launcher on a real engine; the servers are the simulator in an image."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ENTRYPOINT, SERVER_IMAGE, docker, import_image

pytestmark = pytest.mark.timeout(300)
ENGINE = Path(__file__).with_name("engine.sh")
SMALL = ("--scenario", "math", "--concurrency", "2", "--requests", "4", "--output-tokens", "16")


def sweep_line(out: Path, port: int, *extra: str) -> list[str]:
    """A small sweep."""
    cache = str(out / "cache")
    own = ("--out", str(out), "--run-id", "run", "--port", str(port), "--cache-dir", cache, "--deployment", "generic")
    return [sys.executable, "-m", "qwenbench", "sweep", *own, *SMALL, *extra]


def until(condition: Callable[[], object], limit_s: float = 90) -> None:
    """Waits for something that is about to happen."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def points(out: Path) -> list[dict[str, str]]:
    """Rows of points.csv."""
    with (out / "run" / "points.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_sweep_of_three_captures(tmp_path: Path, port: int) -> None:
    done = subprocess.run(
        sweep_line(tmp_path, port, "--capture", "16,32,64"), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = points(tmp_path)
    assert sorted(int(row["capture"]) for row in rows) == [16, 32, 64]
    assert {row["requests_ok"] for row in rows} == {"4"}
    identity = docker("image", "inspect", "-f", "{{.Id}}", SERVER_IMAGE).strip()
    launches = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("servers/*/launch.json")]
    assert len(launches) == 3
    assert {launch["image_digest"] for launch in launches} == {identity}
    assert len({launch["container"] for launch in launches}) == 3
    assert docker("ps", "--all", "--quiet") == ""


def test_killed_in_mid_cell_then_resumed(tmp_path: Path, port: int) -> None:
    docker(
        "run", "-d", "--name", "live", "--label", "qwenbench.run=other", "--entrypoint", "sleep", SERVER_IMAGE, "600"
    )
    line = sweep_line(tmp_path, port, "--capture", "16,32", "--requests", "8", "--output-tokens", "150")
    journal = tmp_path / "run" / "journal.jsonl"
    owner = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: owner.poll() is not None or (journal.exists() and len(journal.read_text().splitlines()) >= 1))
    assert owner.poll() is None, owner.stderr and owner.stderr.read()
    finished = journal.read_text()
    until(lambda: len(docker("ps", "--quiet", "--filter", "label=qwenbench.run=run").split()) == 1)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    resumed = subprocess.run(
        [sys.executable, "-m", "qwenbench", "sweep", "--resume", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert journal.read_text().startswith(finished)  # no finished cell was redone
    assert sorted(row["capture"] for row in points(tmp_path)) == ["16", "32"]
    assert docker("ps", "--all", "--format", "{{.Names}}").split() == ["live"]
    docker("rm", "-f", "live")


def test_the_engine_stops_in_mid_cell(tmp_path: Path, port: int) -> None:
    line = sweep_line(tmp_path, port, "--capture", "16", "--requests", "12", "--output-tokens", "1500")
    owner = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "servers"
    until(lambda: any("POST /v1/chat" in path.read_text() for path in log.glob("*/server.log")))
    subprocess.run([ENGINE, "stop"], check=True)
    try:
        _, told = owner.communicate(timeout=120)
    finally:
        subprocess.run([ENGINE, "start"], check=True)
        for name in docker("ps", "--all", "--quiet", "--filter", "label=qwenbench.run=run").split():
            docker("rm", "-f", name)
    assert owner.returncode in (1, 2), told
    assert "Traceback" not in told
    failure = json.loads(next((tmp_path / "run").glob("servers/*/failure.json")).read_text())
    assert failure["class"] in ("no_engine", "docker_refused", "killed", "unknown"), failure


def test_no_secret_is_left_anywhere(tmp_path: Path, port: int, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "planted-secret-0123456789"
    monkeypatch.setenv("HF_TOKEN", secret)
    # a careless server: it prints its whole environment, then an error that holds the token
    code = "import os; print(dict(os.environ), flush=True); raise ValueError(os.environ['HF_TOKEN'])"
    import_image(folders / "server", "careless:1", ["python3", "-c", code])
    line = sweep_line(tmp_path, port, "--capture", "16", "--image", "careless:1")
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (1, 2)
    assert secret not in done.stdout + done.stderr
    assert "'HF_TOKEN': '***'" in next((tmp_path / "run").glob("servers/*/server.log")).read_text()
    failure = json.loads(next((tmp_path / "run").glob("servers/*/failure.json")).read_text())
    assert failure["evidence"] == "ValueError: ***"
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(secret.encode() not in path.read_bytes() for path in files)
    assert {path.owner() for path in files} == {tmp_path.owner()}


def test_no_engine_is_one_line(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nosuch.sock")
    line = sweep_line(tmp_path, port, "--capture", "16")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "Docker" in done.stderr
    assert not (tmp_path / "run").exists()


def test_releases_are_images_that_take_turns(tmp_path: Path, port: int, folders: Path) -> None:
    """Two tags of one image: a campaign each, no change, and what does not exist is told beside them."""
    for tag in ("v0.20.2", "v0.20.2-again"):
        import_image(folders / "server", f"vllm/vllm-openai:{tag}", [*ENTRYPOINT, "--sim-vllm-version", "0.20.2"])
    line = sweep_line(tmp_path, port, "--capture", "16", "--repeats", "2")
    line[line.index("sweep")] = "releases"
    images = "v0.20.2,vllm/vllm-openai:v0.20.2-again,qwenbench.invalid/none:1"
    done = subprocess.run(
        [*line, "--images", images, "--json"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["first_changed"] is None
    assert [(one["name"], one["vllm_version"]) for one in found["releases"] if one["usable"]] == [
        ("v0.20.2", "0.20.2"), ("v0.20.2-again", "0.20.2"),
    ]  # fmt: skip
    assert list(found["failed"]) == ["1"]
    assert docker("ps", "--all", "--quiet") == ""

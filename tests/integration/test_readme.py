"""README.md is true: each command in it runs, and what it shows is what the commands print."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_runs import Ended

from qwenbench.cli.main import dispatch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests" / "support")]

from report_runs import Recipe, plant  # noqa: E402

from readme import README, filled  # noqa: E402

LOG = ROOT / "tests" / "data" / "memory" / "h200-vllm-0.20.2" / "cap64-seq64.log.gz"
ANSWERING = re.compile(r"qwenbench (recommend|report|compare|card|export|deployment|plan|ledger|prompts)\b")
NOT_RUN_HERE = ("pip install", "docker build")
"""Installing is tried where a wheel is built; their files must be there."""


def commands() -> list[str]:
    """Every command line of README.md's shell blocks, without its remark."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), re.S | re.M)
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that README.md's commands name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "sk-readme")
    for number, name in enumerate(("BEFORE", "AFTER")):
        # enough requests that limits on p99 are judged, the same seeds on both sides
        plant(tmp_path / "results" / name, Recipe(run_id=name, repeats=3, seed=number, simulated=True))
    # recorded on a larger card at the utilisation that is an RTX 5090's budget there
    log = gzip.decompress(LOG.read_bytes()).decode()
    (tmp_path / "server.log").write_text(re.sub(r"('gpu_memory_utilization': )0\.2\d+", r"\g<1>0.95", log))
    shutil.copytree(ROOT / "scenarios" / "prompts", tmp_path / "prompts")
    scenario = (ROOT / "scenarios" / "math.yaml").read_text()
    (tmp_path / "my-scenario.yaml").write_text(scenario.replace("name: math", "name: my-scenario"))
    rows = ({"messages": [{"role": "user", "content": f"Question {n}: what is {n} times {n}?"}]} for n in range(40))
    (tmp_path / "DATA.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my-model").mkdir()
    return tmp_path


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("make ")])
def test_the_makefile_has_the_target(command: str) -> None:
    done = subprocess.run(["make", "-n", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_not_run_here_is_known_and_names_files_that_are_there() -> None:
    others = [line for line in commands() if not line.startswith(("make ", "qwenbench "))]
    assert all(line.startswith(NOT_RUN_HERE) for line in others), others
    assert (ROOT / "Dockerfile.bench").exists() and (ROOT / "pyproject.toml").exists()


@pytest.mark.parametrize("command", [line for line in commands() if ANSWERING.match(line)])
def test_a_command_that_answers_answers(command: str, here: Path) -> None:
    status = dispatch(shlex.split(command)[1:])
    # a gate may break: that is an answer
    assert status == 0 or (status == 1 and "--gate" in command), command


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("qwenbench sweep")])
def test_a_sweep_has_a_plan(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    if "--resume" in words:
        small = "--launcher sim --capture 16 --concurrency 1 --scenario math --requests 1 --output-tokens 8 --no-report"
        assert dispatch(["sweep", *small.split(), "--port", "24681"]) == 0
    status = dispatch([*words, *([] if "--dry-run" in words else ["--dry-run"])])
    if "--cluster" in words:  # needs Ray and a cluster, which are tried by tests/cluster
        assert status == 2 and "Ray" in capsys.readouterr().err
    else:
        assert status == 0 and "load points" in capsys.readouterr().out


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("qwenbench tune")])
def test_a_search_has_a_space(command: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)[1:]
    if "--resume" in words:
        small = "--launcher sim --capture 2,4 --users 2 --scenario math --output-tokens 4 --max-launches 1 --no-report"
        assert dispatch(["tune", *small.split(), "--port", "24687"]) in (0, 1)
    assert dispatch([*words, "--dry-run"]) == 0
    assert "configurations" in capsys.readouterr().out


def test_doctor_says_what_is_missing(here: Path) -> None:
    assert dispatch(["doctor"]) in (0, 1)


@pytest.fixture
def server() -> Iterator[str]:
    """A simulated server; its address."""
    line = [sys.executable, "-m", "qwenbench.simulator", "serve", "ig1/Qwen3.5-9B-NVFP4", "--port", "24683"]
    line += ["--served-model-name", "Qwen3.5-9B", "--sim-time-scale", "0.1"]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield "http://127.0.0.1:24683"
        process.terminate()


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("qwenbench bench")])
def test_bench_measures_a_server_that_is_there(
    command: str, here: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [server if word.startswith("http") else word for word in shlex.split(command)[1:]]
    small = ["--output-tokens", "8", "--startup-timeout", "60", "--requests", "2", "--run-id", "r", "--no-report"]
    small += [] if "--scenario" in words else ["--scenario", "math"]
    status = dispatch([*words, *small])
    told = capsys.readouterr()
    if "--cluster" in words:  # as for a sweep
        assert status == 2 and "Ray" in told.err
        return
    assert Ended(status, told.out, told.err).completed, told.err
    assert (here / "results" / "r" / "points.csv").exists()


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("qwenbench proxy")])
def test_the_proxy_serves_the_profiles(command: str, here: Path, server: str) -> None:
    words = [server if word.startswith("http") else word for word in shlex.split(command)[1:]]
    script = f"from qwenbench.cli.main import dispatch; dispatch({[*words, '--port', '24685']!r})"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, env=environment) as process:
        assert process.stderr is not None
        first = process.stderr.readline().decode()
        process.terminate()
    assert "24685" in first


def test_what_readme_shows_is_what_the_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "160")
    text = README.read_text(encoding="utf-8")
    assert filled(text) == text, "run .venv/bin/python bench/readme.py"


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert targets and [target for target in targets if not (ROOT / target).exists()] == []

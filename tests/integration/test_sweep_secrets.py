"""Random secrets planted in everything that takes one; afterwards no file and no line of output holds any of them."""

from __future__ import annotations

import base64
import json
import secrets
import sys
from pathlib import Path

import pytest
from sweep_runs import free_port, qwenbench

ECHO = Path(__file__).with_name("echoing_server.py")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Environment variables whose names, or whose use, say that they are secrets."""
    values = {
        name: secrets.token_urlsafe(24) + tail
        for name, tail in {"HF_TOKEN": "", "MY_API_KEY": "", "XS": '+/"q', "GIT_PAT": "", "PGPASS": "ü"}.items()
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return list(values.values())


def test_no_secret_comes_out_of_a_server_that_tells_all_it_knows(planted: list[str], tmp_path: Path) -> None:
    ended = qwenbench(
        *("sweep", "--out", str(tmp_path), "--run-id", "r", "--port", str(free_port()), "--deployment", "generic"),
        *("--launcher", "process", "--vllm-command", f"{sys.executable} {ECHO}", "--model", "some/model"),
        *("--capture", "16", "--concurrency", "2", "--scenario", "math", "--requests", "8", "--output-tokens", "4-8"),
        *("--header-env", "X-Secret=XS", "--save-text"),
    )
    assert (tmp_path / "r" / "points.csv").exists(), ended
    told = {file: file.read_bytes() for file in (tmp_path / "r").rglob("*") if file.is_file()}
    told |= {Path("stdout"): ended.out.encode(), Path("stderr"): ended.err.encode()}
    assert b"X-Secret" in told[tmp_path / "r" / "run.json"]
    log = next(data for file, data in told.items() if file.name == "server.log")
    assert b"ENV XS=***" in log, log[-2000:]
    for value in planted:
        spellings = (value, json.dumps(value)[1:-1], base64.b64encode(value.encode()).decode())
        for file, data in told.items():
            assert not any(spelled.encode() in data for spelled in spellings), file
    texts = next(file for file in told if file.name.endswith(".texts.json"))
    assert texts.stat().st_mode & 0o077 == 0

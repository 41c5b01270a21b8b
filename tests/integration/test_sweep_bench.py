"""`bench --url`: the same run folder from a server that is already there, which is left as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_runs import Ended, free_port, journal, points, qwenbench, record

from qwenbench.engine.readiness import port_in_use

KEY = "planted-key-0123456789"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A simulator behind an API key, as somebody else has started it."""
    port = free_port()
    words = ["serve", "ig1/Qwen3.5-9B-NVFP4", "--served-model-name", "mine", "--port", str(port)]
    words += ["--sim-time-scale", "0.2"]
    with subprocess.Popen(
        [sys.executable, "-m", "qwenbench.simulator", *words],
        env={**os.environ, "VLLM_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        for line in server.stdout:
            if "Application startup complete" in line:
                break
        yield f"http://127.0.0.1:{port}"
        assert server.poll() is None, "bench ended a server that was not its own"
        server.terminate()
        server.stdout.read()


def bench(url: str, out: Path, *arguments: str) -> Ended:
    load = (
        "--scenario",
        "math",
        "--concurrency",
        "1,2",
        "--requests",
        "2",
        "--output-tokens",
        "8",
        "--order",
        "listed",
    )
    return qwenbench("bench", "--url", url, "--out", str(out), *load, "--api-key-env", "SIM_KEY", *arguments)


def test_a_served_name_is_asked_for_and_the_model_keeps_its_own(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_KEY", KEY)
    names = ("--model", "some/folder-of-weights", "--served-model-name", "mine")
    assert bench(url, tmp_path, "--run-id", "named", *names).completed
    server = record(tmp_path / "named" / "servers" / "server" / "launch.json")["server"]
    assert (server["model"], server["served_model_name"]) == ("some/folder-of-weights", "mine")
    refused = bench(url, tmp_path, "--run-id", "other", "--served-model-name", "another")
    assert refused.status == 2 and "does not serve 'another' but mine" in refused.err


def test_bench_marks_the_simulator_and_resumes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_KEY", KEY)
    ended = bench(f"{url}/v1", tmp_path, "--run-id", "b", "--canary")
    assert ended.completed, ended.err
    assert "SIMULATED" in ended.out
    folder = tmp_path / "b"
    rows = points(folder)
    assert [(row["config_id"], row["simulated"], row["requests_ok"]) for row in rows] == [("server", "True", "2")] * 2
    # a simulated answer is right or wrong by chance only: the canary is not asked, and its accuracy is not known
    assert all(row["kv_cache_usage_peak"] and row["canary_accuracy"] == "" for row in rows)
    assert "--canary is left out" in ended.out + ended.err
    run = record(folder / "run.json")
    assert run["simulated"] is True
    assert run["versions"]["vllm"] == "0.26.0+simulated"
    assert record(folder / "servers" / "server" / "launch.json")["launcher"] == "url"
    for path in folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path

    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text(lines[0])
    refused = qwenbench("sweep", "--resume", str(folder))
    assert refused.status == 2
    assert "bench --url URL --resume" in refused.err
    again = qwenbench("bench", "--url", url, "--resume", str(folder))
    assert again.completed, again.err
    assert [line["cell"] for line in journal(folder)] == [line["cell"] for line in map(json.loads, lines)]
    assert port_in_use("127.0.0.1", int(url.rpartition(":")[2]))


def test_answers_without_usage_are_counted_by_tokenize(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIM_KEY", KEY)
    ended = bench(url, tmp_path, "--run-id", "b", "--extra-body", '{"stream_options": null}')
    assert ended.completed, ended.err
    assert "sends no usage that counts tokens: its /tokenize counts the answers' text instead" in ended.out + ended.err
    for row in points(tmp_path / "b"):
        assert (row["tokens_from"], row["length_controlled"], row["disagreements"]) == ("tokenize", "True", "")
        assert float(row["output_tokens_per_s"]) == pytest.approx(8 * float(row["requests_per_s"]), rel=0.01)


def test_bench_without_the_key(url: str, tmp_path: Path) -> None:
    ended = qwenbench("bench", "--url", url, "--out", str(tmp_path / "out"))
    assert ended.status == 2
    assert "--api-key-env" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_dead_engine_is_told_in_the_servers_own_words(tmp_path: Path) -> None:
    """vLLM answers 500 with its own words for a moment, then it is gone: the words are the evidence."""
    port = free_port()
    words = ["serve", "ig1/Qwen3.5-9B-NVFP4", "--served-model-name", "mine", "--port", str(port)]
    words += ["--sim-time-scale", "0.2", "--sim-fail", "die-under-load"]
    with subprocess.Popen(
        [sys.executable, "-m", "qwenbench.simulator", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        assert server.stdout is not None
        log = tmp_path / "theirs.log"
        with log.open("w") as file:
            for line in server.stdout:
                file.write(line)
                if "Application startup complete" in line:
                    break
        folder = tmp_path / "run"
        load = ("--scenario", "math", "--concurrency", "4", "--requests", "16", "--output-tokens", "64")
        ended = qwenbench(
            "bench", "--url", f"http://127.0.0.1:{port}", "--out", str(tmp_path), "--run-id", "run", *load
        )
        server.terminate()
        server.stdout.read()
    assert ended.status != 0
    failure = record(folder / "servers" / "server" / "failure.json")
    assert failure["class"] in ("engine_died", "unreachable"), failure
    assert "--server-log" in failure["advice"]
    assert failure["phase"] == "load"

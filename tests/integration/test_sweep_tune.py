"""`qwenbench tune` on the simulator: launches and probes of a search in a run folder that can be killed and resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from sweep_runs import free_port, journal, qwenbench, record, relatives, started, wait_until

from qwenbench.analysis.run import load_run
from qwenbench.report.answer import question_of

SPACE = ("--launcher", "sim", "--scenario", "math", "--output-tokens", "4-8", "--vllm-arg=--sim-time-scale=0.1")


def options(folder: Path, *more: str) -> tuple[str, ...]:
    target = ("--out", str(folder.parent), "--run-id", folder.name, "--port", str(free_port()))
    return ("tune", *SPACE, *target, *more)


def answers(folder: Path) -> list[dict[str, Any]]:
    """What the search was told, in order."""
    file = folder / "search.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if "answer" in line]


def test_a_search_ends_with_an_answer_its_path_and_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    goal = ("--users", "4", "--slo", "ttft_p50=60s", "--max-launches", "3")
    ended = qwenbench(*options(folder, *goal, "--capture", "2,4"))
    search = record(folder / "run.json")["search"]
    path = search["outcome"]["path"]
    assert {tried["config_id"] for tried in path} <= {"cap2-seq2", "cap4-seq4"} and 2 <= len(path) <= 3
    told = " ".join(ended.out.split())  # the terminal breaks lines
    assert "What the search launched" in told and "in a space of 2 configurations" in told
    assert "optimal" not in ended.out
    measured = {tried["config_id"] for tried in path if tried["value"] is not None}
    if measured == {"cap2-seq2", "cap4-seq4"}:  # a busy machine may leave one of them without a valid point
        assert ended.status == 0, ended.err
        assert search["outcome"]["config_id"] == "cap4-seq4"
        assert "of the best that was tried, at 95 %" in ended.out and "docker run" in ended.out
    launches = [one["step"] for one in answers(folder) if one["step"]["kind"] == "Launch"]
    assert len(launches) == len(path)
    probes = {(one["step"]["config_id"], one["step"]["number"], one["step"]["repeat"]) for one in answers(folder)
              if one["step"]["kind"] == "Probe"}  # fmt: skip
    assert {(line["config"], line["launch"], line["point"]["repeat"]) for line in journal(folder)} == probes
    assert "What the search launched" in (folder / "report.html").read_text()
    asked = question_of(load_run(folder))
    assert (asked.users, [str(limit) for limit in asked.limits]) == (4, ["ttft_p50 <= 60,000 ms"])


def test_a_configuration_that_does_not_start_is_data(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    goal = ("--users", "2", "--slo", "ttft_p50=60s", "--max-launches", "4", "--force")
    ended = qwenbench(*options(folder, *goal, "--capture", "2", "--vary", "max-model-len=auto,99999999"))
    outcome = record(folder / "run.json")["search"]["outcome"]
    failed = [tried for tried in outcome["path"] if tried["verdict"] == "failed"]
    assert [tried["config_id"] for tried in failed] == ["cap2-seq2-max-model-len-99999999"]
    assert failed[0]["dropped"]
    assert "Traceback" not in ended.err
    assert ended.status in (0, 1)


def test_a_search_that_was_stopped_goes_on_with_the_same_steps(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    goal = ("--users", "4", "--slo", "ttft_p50=60s", "--max-launches", "2", "--capture", "2,4,8")
    with started(*options(folder, *goal)) as process:
        wait_until(lambda: len(answers(folder)) >= 2 or process.poll() is not None, "the first probe never ended", 60)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert relatives(process) == []
    assert process.returncode == 130, err
    assert "qwenbench tune --resume" in err
    before = answers(folder)
    other = qwenbench("tune", "--resume", str(folder), "--users", "8")
    assert other.status == 2 and "goes on with what it seeks" in other.err
    resumed = qwenbench("tune", "--resume", str(folder))
    assert resumed.status in (0, 1), resumed.err
    after = answers(folder)
    assert after[: len(before)] == before
    steps = [json.dumps(one["step"], sort_keys=True) for one in after]
    assert len(steps) == len(set(steps)), "nothing is asked twice"
    path = record(folder / "run.json")["search"]["outcome"]["path"]
    assert len(path) == 2

    grown = qwenbench("tune", "--resume", str(folder), "--max-launches", "3")
    assert grown.status in (0, 1), grown.err
    longer = record(folder / "run.json")["search"]["outcome"]["path"]
    assert longer[:2] == path and len(longer) == 3
    assert answers(folder)[: len(after)] == after

    sent = qwenbench("tune", "--resume", str(folder), "--scenario", "code")
    assert sent.status == 2 and "what is sent stays as it was" in sent.err
    wider = qwenbench("tune", "--resume", str(folder), "--capture", "16", "--max-launches", "4")
    assert wider.status in (0, 1), wider.err
    search = record(folder / "run.json")["search"]
    assert search["space"] == 4 and search["outcome"]["path"][:3] == longer


def test_on_two_cards_launches_run_side_by_side(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    goal = ("--users", "4", "--slo", "ttft_p50=60s", "--max-launches", "4", "--capture", "2,4", "--devices", "0,1")
    ended = qwenbench(*options(folder, *goal))
    assert ended.status in (0, 1), ended.err
    path = record(folder / "run.json")["search"]["outcome"]["path"]
    assert {tried["card"] for tried in path} == {0, 1}
    begun = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    assert ["answer" in line for line in begun[:2]] == [False, False], "the second begins before the first is ready"


def test_the_most_requests_a_second_are_sought_with_an_open_loop(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    goal = ("--objective", "rate", "--slo", "ttft_p50=200ms", "--max-launches", "1", "--capture", "2,4")
    slower = "--vllm-arg=--sim-time-scale=0.5"  # a faster one holds more requests than the question needs
    ended = qwenbench(*options(folder, *goal, slower))
    assert ended.status in (0, 1), ended.err
    asked = [one["step"]["load"] / 100 for one in answers(folder) if one["step"]["kind"] == "Probe"]
    assert {line["point"]["rate"] for line in journal(folder)} == set(asked) and len(set(asked)) > 1
    assert "requests/s" in ended.out and "What the search launched" in (folder / "report.html").read_text()


def test_what_cannot_be_sought_is_refused_in_one_line(tmp_path: Path) -> None:
    for words, told in [
        ((), "give --users"),
        (("--users", "4", "--objective", "users", "--slo", "ttft_p99=1s"), "leave --users out"),
        (("--objective", "users"), "needs --slo"),
        (("--objective", "speed", "--users", "4"), "choose tokens, users, rate"),
        (("--users", "4", "--slo", "itl_p99=50ms"), "a search judges the share of requests"),
        (("--users", "4", "--slo", "output_tokens_per_s=50"), "a search judges the share of requests"),
        (("--users", "4", "--max-time", "soon"), "--max-time 'soon'"),
    ]:
        folder = tmp_path / "none"
        ended = qwenbench(*options(folder, *words))
        assert ended.status == 2 and told in ended.err, ended.err
        assert len(ended.err.splitlines()) == 1 and not folder.exists()


def test_the_space_is_shown_without_starting_anything(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    ended = qwenbench(*options(folder, "--users", "32", "--dry-run"))
    assert ended.status == 0, ended.err
    assert "cap32-seq32-max-num-batched-tokens-2048" in ended.out and "SIMULATED" in ended.out
    assert not folder.exists()

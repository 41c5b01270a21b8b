"""Each option of the sweep does what it says, seen in the run folder it leaves."""

from __future__ import annotations

import itertools
import json
import socket
from pathlib import Path

import pytest
from sweep_runs import free_port, journal, points, qwenbench, record, requests_of, sweep

ONE = ("--capture", "16", "--concurrency", "2", "--requests", "2")
"""One configuration, one tiny load point."""


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_dry_run_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    port = str(free_port())
    ended = sweep(tmp_path / "r", "--capture", "16,32", "--concurrency", "1,4", "--dry-run", "--port", port)
    assert ended.completed
    assert files(tmp_path) == []
    assert "2 configurations x 2 load points x 1 launches = 4 cells (SIMULATED)" in ended.out
    for capture in ("16", "32"):
        line = next(line for line in ended.out.splitlines() if f"--max-cudagraph-capture-size {capture}" in line)
        assert f"--max-num-seqs {capture}" in line
        assert f"--port {port}" in line
    assert "math.instruct-reasoning.c4.1" in ended.out


def test_repeats_relaunches_limits_and_an_order_as_listed(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    ended = sweep(
        folder, "--capture", "16", "--concurrency", "2,1", "--requests", "2", "--order", "listed",
        "--repeats", "2", "--relaunch-repeats", "2", "--slo", "ttft=60s,tpot=0.001ms",
    )  # fmt: skip
    assert ended.completed, ended.err
    rows = points(folder)
    assert [(row["launch"], row["repeat"], row["concurrency"]) for row in rows] == [
        (launch, repeat, level) for launch in "12" for repeat in "12" for level in "21"
    ]
    assert record(folder / "run.json")["order"] == [
        f"math.instruct-reasoning.c{level}.{repeat}" for repeat in (1, 2) for level in (2, 1)
    ]
    # no answer comes at a microsecond per token: a goodput of zero is known, not unknown
    assert {float(row["goodput_rps"]) for row in rows} == {0.0}
    relaunch = folder / "servers" / "cap16-seq16" / "relaunch-2"
    first, second = record(relaunch.parent / "launch.json"), record(relaunch / "launch.json")
    assert first["argv"] == second["argv"]
    assert first["pid"] != second["pid"]
    assert record(relaunch / "memory.json")["kv_cache_blocks"] > 0
    assert (relaunch / "server.log").exists()
    # launches repeat the work, repeats draw anew
    name = "math.instruct-reasoning.c2"
    columns = ["prompt_id", "requested_output_tokens"]
    one, again, other = (
        requests_of(folder, f"cap16-seq16.l{launch}.{name}.{repeat}").select(columns).to_pylist()
        for launch, repeat in ((1, 1), (2, 1), (1, 2))
    )
    assert one == again
    assert one != other
    with (folder / "points_summary.csv").open() as file:
        assert len(file.readlines()) == 1 + 2


def test_the_shuffled_order_is_recorded_and_kept_by_every_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    options = ("--vary", "max-num-batched-tokens=512,2048", "--capture", "16", "--concurrency", "1,2,3", "--seed", "5")
    assert sweep(folder, *options, "--requests", "2").completed
    order = record(folder / "run.json")["order"]
    assert order != sorted(order)
    cells = [line["cell"] for line in journal(folder)]
    configs = [f"cap16-seq16-max-num-batched-tokens-{value}" for value in (512, 2048)]
    assert cells == [f"{config}.l1.{point}" for config in configs for point in order]
    assert [row["vary_max_num_batched_tokens"] for row in points(folder)] == ["512"] * 3 + ["2048"] * 3


def test_until_ci_adds_repeats_and_a_resumed_run_goes_on_adding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenbench.sweep.launch.MOST_REPEATS", 3)
    folder = tmp_path / "r"
    assert sweep(folder, *ONE, "--until-ci", "0.0001%").completed
    assert [row["repeat"] for row in points(folder)] == ["1", "2", "3"]
    before = journal(folder)
    # as if it had been stopped after the planned cell
    (folder / "journal.jsonl").write_text(json.dumps(before[0]) + "\n")
    assert qwenbench("sweep", "--resume", str(folder)).completed
    assert [line["point"]["repeat"] for line in journal(folder)] == [1, 2, 3]
    assert journal(folder)[0] == before[0]


@pytest.mark.parametrize(("burstiness", "shape"), [((), "poisson"), (("--burstiness", "constant"), "constant")])
def test_an_open_loop(tmp_path: Path, burstiness: tuple[str, ...], shape: str) -> None:
    folder = tmp_path / "r"
    ended = sweep(folder, "--capture", "16", "--rate", "20", "--duration", "0.4", *burstiness)
    assert ended.completed, ended.err
    (row,) = points(folder)
    assert (row["load_shape"], row["rate"], row["concurrency"]) == (shape, "20.0", "")
    due = sorted(requests_of(folder, journal(folder)[0]["cell"])["scheduled_ns"].to_pylist())
    assert int(row["requests_ok"]) == len(due)
    assert due[-1] - due[0] <= 0.4e9  # arrivals are drawn to fill the duration, however many that are
    gaps = {round((later - earlier) / 1e6) for earlier, later in itertools.pairwise(due)}
    assert (gaps == {50}) == (shape == "constant")
    assert shape == "poisson" or len(due) in (8, 9)  # whether the last one still falls within the duration


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 0.1 * n, "input_tokens": 40 + n, "output_tokens": 5 + n} for n in range(4)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "r"
    ended = sweep(folder, "--capture", "16", "--scenario", "synthetic", "--trace", str(trace))
    assert ended.completed, ended.err
    (row,) = points(folder)
    assert (row["load_shape"], row["rate"], row["concurrency"], row["requests_ok"]) == ("trace", "", "", "4")
    sent = requests_of(folder, journal(folder)[0]["cell"])
    assert sent["output_tokens"].to_pylist() == [5, 6, 7, 8]
    due = sent["scheduled_ns"].to_pylist()
    assert [round((later - due[0]) / 1e6) for later in due] == [0, 100, 200, 300]


def test_a_duration_ends_a_closed_loop(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert sweep(folder, "--capture", "16", "--concurrency", "2", "--duration", "0.5").completed
    (row,) = points(folder)
    assert int(row["requests_ok"]) > 4  # more than --requests


def test_all_profiles_and_synthetic_prompts_through_completions(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    ended = sweep(
        folder, *ONE, "--profile", "all", "--scenario", "synthetic", "--input-tokens", "100-200",
        "--endpoint", "completions",
    )  # fmt: skip
    assert ended.completed, ended.err
    rows = points(folder)
    assert len({row["profile"] for row in rows}) == 4
    assert set(record(folder / "run.json")["profiles"]) == {row["profile"] for row in rows}
    for line in journal(folder):
        sent = requests_of(folder, line["cell"])
        assert sent["error"].to_pylist() == [None, None]
        assert all(50 <= tokens <= 400 for tokens in sent["input_tokens"].to_pylist())
    assert "POST /v1/completions" in (folder / "servers" / "cap16-seq16" / "server.log").read_text()


def test_two_devices_run_two_servers_side_by_side(tmp_path: Path) -> None:
    folder, port = tmp_path / "r", free_port(2)
    options = ("--capture", "16,32", "--concurrency", "2", "--devices", "0,1", "--port", str(port))
    assert sweep(folder, *options).completed
    servers = [record(folder / "servers" / f"cap{size}-seq{size}" / "launch.json")["server"] for size in (16, 32)]
    assert [server["port"] for server in servers] == [port, port + 1]
    assert len(points(folder)) == 2


def test_the_second_devices_port_counts_too(tmp_path: Path) -> None:
    port = free_port(2)
    with socket.create_server(("127.0.0.1", port + 1)):
        ended = sweep(tmp_path / "r", "--capture", "16,32", "--devices", "0,1", "--port", str(port))
    assert ended.status == 2
    assert f"Port {port + 1} " in ended.err
    assert files(tmp_path) == []


def test_too_few_devices_for_a_configuration(tmp_path: Path) -> None:
    ended = sweep(tmp_path / "r", *ONE, "--devices", "0", "--vary", "tensor-parallel-size=2")
    assert ended.status == 2
    assert "needs 2 cards" in ended.err
    assert files(tmp_path) == []


def test_a_campaign_is_a_run_per_sweep(tmp_path: Path) -> None:
    campaign = tmp_path / "mine.yaml"
    campaign.write_text(
        "name: mine\nsweeps:\n"
        "  - name: small\n    options: {capture: [16], concurrency: [1]}\n"
        "  - name: large\n    options: {capture: [32], concurrency: [2]}\n"
    )
    out = tmp_path / "out"
    arguments = ("--campaign", str(campaign), "--out", str(out), "--run-id", "c", "--port", str(free_port()))
    quick = ("--scenario", "math", "--requests", "2", "--output-tokens", "8", "--vllm-arg=--sim-time-scale=0.2")
    assert qwenbench("sweep", "--launcher", "sim", *arguments, *quick).completed
    assert sorted(path.name for path in out.iterdir()) == ["c-large", "c-small"]
    assert [row["config_id"] for row in points(out / "c-small")] == ["cap16-seq16"]
    assert [row["config_id"] for row in points(out / "c-large")] == ["cap32-seq32"]


def test_a_campaign_is_checked_as_a_whole_before_it_begins(tmp_path: Path) -> None:
    campaign = tmp_path / "mine.yaml"
    campaign.write_text(
        "name: mine\nsweeps:\n"
        "  - name: good\n    options: {capture: [16]}\n"
        "  - name: bad\n    options: {capture: [16], scenario: [maths]}\n"
    )
    out = tmp_path / "out"
    ended = qwenbench(
        "sweep", "--launcher", "sim", "--campaign", str(campaign), "--out", str(out), "--port", str(free_port())
    )
    assert ended.status == 2
    assert "Did you mean 'math'?" in ended.err
    assert not out.exists()
    resumed = qwenbench("sweep", "--campaign", str(campaign), "--resume", "x")
    assert resumed.status == 2
    assert "--resume" in resumed.err


def test_two_kinds_of_load_at_once_are_refused(tmp_path: Path) -> None:
    for given in (("--rate", "1", "--concurrency", "2"), ("--burstiness", "2", "--concurrency", "2")):
        ended = qwenbench("sweep", "--launcher", "sim", "--out", str(tmp_path / "out"), *given)
        assert ended.status == 2, given
        assert given[0] in ended.err
    assert files(tmp_path) == []


SECRET = "planted-secret-0123456789"


def test_no_secret_reaches_a_file_or_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_HEADER", SECRET)
    monkeypatch.setenv("VLLM_API_KEY", SECRET)  # the simulator's key as well: without the header it refuses
    folder = tmp_path / "r"
    monkeypatch.setenv("BEARER", f"Bearer {SECRET}")
    ended = sweep(
        folder, *ONE, "--header-env", "Authorization=BEARER", "--header-env", "X-Other=MY_HEADER", "--save-text"
    )
    assert ended.completed, ended.err
    assert points(folder)[0]["requests_failed"] == "0"
    seen = [ended.out + ended.err, *(path.read_bytes().decode("latin-1") for path in files(folder) if path.is_file())]
    for text in seen:
        assert SECRET not in text
    assert record(folder / "run.json")["options"]["header_env"] == {"Authorization": "BEARER", "X-Other": "MY_HEADER"}
    assert "cap16-seq16" in (folder / "points.csv").read_text()


def test_a_password_in_an_argument_for_vllm_is_refused_and_not_repeated(tmp_path: Path) -> None:
    argument = '--vllm-arg={"url": "http://someone:pass-word@localhost/x"}'
    ended = sweep(tmp_path / "r", *ONE, "--vllm-arg=--hf-overrides", argument)
    assert ended.status == 2
    assert "holds a secret" in ended.err
    assert "pass-word" not in ended.out + ended.err
    assert not (tmp_path / "r").exists()


def test_a_prompt_that_is_too_long_is_an_error_row(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    load = ("--scenario", "synthetic", "--input-tokens", "50-600", "--requests", "8")
    ended = sweep(folder, "--capture", "16", "--concurrency", "2", *load, "--vllm-arg=--max-model-len=256")
    assert ended.completed, ended.err
    (row,) = points(folder)
    assert int(row["requests_ok"]) + int(row["requests_failed"]) == 8
    assert int(row["requests_ok"]) > 0
    failed = [sent for sent in requests_of(folder, journal(folder)[0]["cell"]).to_pylist() if sent["error"]]
    assert len(failed) == int(row["requests_failed"]) > 0
    for sent in failed:
        assert (sent["error"], sent["status"]) == ("http_status", 400)
        assert "maximum context length" in sent["error_detail"]
        assert sent["ttft_ms"] is None
        assert sent["output_tokens"] is None


def test_a_load_point_without_one_answer_is_a_failed_cell(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    load = ("--scenario", "synthetic", "--input-tokens", "600")
    ended = sweep(folder, *ONE, *load, "--vllm-arg=--max-model-len=256")
    assert ended.status == 1
    (row,) = points(folder)
    assert (row["requests_ok"], row["valid"]) == ("0", "False")
    assert row["output_tokens_per_s"] == ""
    assert "every request failed" in ended.err


def test_text_is_kept_only_when_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    assert sweep(folder, *ONE, "--save-text").completed
    (texts,) = folder.glob("requests/*.texts.json")
    assert len(record(texts)) == 2

"""What a sweep leaves: every file of the contract, and figures that agree with each other."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sweep_runs import QUICK, Ended, free_port, journal, metrics_of, points, qwenbench, record, requests_of, sweep

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.engine.startup_log import StartupLog
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.observe.ledger import MemoryLedger
from qwenbench.observe.metrics import METRICS_SCHEMA
from qwenbench.observe.nvml import NVML_SCHEMA

CONFIGS = ("cap16-seq16", "cap32-seq32")
LEVELS = ("1", "4")
CACHING = "--vllm-arg=--enable-prefix-caching"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """Two captures, two load points each, prefix caching on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = sweep(folder, "--capture", "16,32", "--concurrency", "1,4", "--seed", "7", CACHING)
    return folder, ended


@pytest.fixture(scope="module")
def long_prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A scenario of two prompts, each of more than one KV block (528 tokens), so that they can be found again."""
    folder = tmp_path_factory.mktemp("scenario")
    rows = [{"id": name, "turns": [{"user": " ".join([name] * 900)}]} for name in ("harbour", "lantern")]
    (folder / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "long.yaml").write_text("name: long\nprompts: set.jsonl\noutput_tokens: 16\n")
    return str(folder / "long.yaml")


@pytest.fixture(scope="module")
def natural(tmp_path_factory: pytest.TempPathFactory, long_prompts: str) -> Path:
    """The same math load once more, and the long prompts, with whatever the cache finds."""
    folder = tmp_path_factory.mktemp("natural") / "run"
    options = ("--scenario", f"math,{long_prompts}", "--prefix-reuse", "natural", "--concurrency", "4")
    assert sweep(folder, "--capture", "16", "--seed", "7", *options, CACHING).completed
    return folder


def cell(config: str, level: str, scenario: str = "math") -> str:
    profile = "instruct-reasoning" if scenario == "math" else "instruct-general"
    return f"{config}.l1.{scenario}.{profile}.c{level}.1"


def test_it_succeeds_and_says_simulated(whole: tuple[Path, Ended]) -> None:
    folder, ended = whole
    assert ended.completed, ended.err
    assert "SIMULATED" in ended.out
    assert str(folder / "report.html") in ended.out
    if any(row["valid"] == "True" for row in points(folder)):  # a busy machine may leave nothing to answer with
        assert "Deploy cap" in ended.out and "docker run" in ended.out, "it ends with the answer"


def test_output_that_goes_to_no_terminal_is_plain(whole: tuple[Path, Ended]) -> None:
    _, ended = whole
    assert "\x1b" not in ended.out + ended.err
    assert "\r" not in ended.out + ended.err
    done = [line for line in ended.err.splitlines() if re.match(r"\[\d/4 points", line)]
    assert len(done) == 4


def test_run_json_holds_the_conditions(whole: tuple[Path, Ended]) -> None:
    folder, _ = whole
    run = record(folder / "run.json")
    assert (run["schema_version"], run["run_id"], run["simulated"], run["seed"]) == (1, "run", True, 7)
    assert run["notice"].startswith("SIMULATED")
    assert run["command_line"][0] == "qwenbench"
    assert set(run["versions"]) == {"qwenbench", "python", "vllm", "driver"}
    assert run["versions"]["vllm"] == "0.26.0"
    assert run["versions"]["driver"] is None
    assert run["hardware"]["card"] == "rtx-5090"
    assert sorted(run["order"]) == ["math.instruct-reasoning.c1.1", "math.instruct-reasoning.c4.1"]
    math = run["scenarios"]["math"]
    assert "name: math" in math["text"]
    assert len(math["sha256"]) == len(math["prompts_sha256"]) == 64
    assert math["effective"]["output_tokens"]["max"] == 16
    assert list(run["configurations"]) == list(CONFIGS)
    assert run["started"]
    assert run["finished"]


def test_every_cell_is_in_the_journal_and_in_points_csv(whole: tuple[Path, Ended]) -> None:
    folder, _ = whole
    lines = journal(folder)
    assert {line["cell"] for line in lines} == {cell(config, level) for config in CONFIGS for level in LEVELS}
    rows = points(folder)
    assert [(row["config_id"], row["concurrency"]) for row in rows] == [
        (line["config"], str(line["point"]["concurrency"])) for line in lines
    ]
    with (folder / "points.csv").open() as file:
        assert next(csv.reader(file)) == list(COLUMN_NAMES)
    for row in rows:
        assert row["simulated"] == "True"
        assert row["valid"] in ("True", "False")
        assert row["capture"] == row["max_num_seqs"] == row["config_id"][3:5]
        assert (row["requests_ok"], row["requests_failed"]) == ("4", "0")
        assert float(row["output_tokens_per_s"]) > 0
        assert float(row["ttft_ms_p50"]) > 0
        assert row["ttft_ms_p99"] == ""  # four values say nothing about a 99th percentile
        assert row["goodput_rps"] == row["canary_accuracy"] == row["rate"] == ""
        assert int(row["requests_that_fit"]) > 0
        assert row["length_controlled"] == "True"


def test_the_summary_has_a_row_per_load_point(whole: tuple[Path, Ended]) -> None:
    folder, _ = whole
    with (folder / "points_summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    counted = {(row["config_id"], row["concurrency"]): row["valid"] == "True" for row in points(folder)}
    for row in rows:  # a busy machine may have made a point invalid: then it is not counted
        valid = counted[row["config_id"], row["concurrency"]]
        assert row["output_tokens_per_s_n"] == str(int(valid))
        assert not valid or float(row["output_tokens_per_s"]) > 0
        assert row["output_tokens_per_s_low"] == row["output_tokens_per_s_high"] == ""  # one repeat has no interval


@pytest.mark.parametrize("config", CONFIGS)
def test_a_server_folder_is_complete(whole: tuple[Path, Ended], config: str) -> None:
    folder, _ = whole
    server = folder / "servers" / config
    launch = record(server / "launch.json")
    assert launch["launcher"] == "sim"
    assert launch["simulated"] is True
    assert launch["argv"][1:4] == ["-m", "qwenbench.simulator", "serve"]
    assert launch["argv"][-2:] == ["--sim-time-scale=0.2", "--enable-prefix-caching"]
    assert launch["pid"] > 0
    assert launch["start_time"] > 0
    for key in ("boot_id", "host", "owner", "owner_pid", "owner_start_time"):
        assert launch[key], key
    assert launch["run_id"] == "run"
    assert launch["env_names"] == [] or all(isinstance(name, str) for name in launch["env_names"])
    assert "image_digest" in launch
    memory = record(server / "memory.json")
    assert list(memory) == list(MemoryLedger(StartupLog()).to_json())
    assert memory["vllm_version"] == "0.26.0"
    assert memory["capture_effective"] == int(config[3:5])
    assert memory["vram_peak_mib"] >= memory["vram_ready_mib"] > 0
    assert "SIMULATED" in (server / "server.log").read_text()
    assert not (server / "failure.json").exists()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("level", LEVELS)
def test_requests_and_the_servers_own_counters_agree(whole: tuple[Path, Ended], config: str, level: str) -> None:
    folder, _ = whole
    name = cell(config, level)
    requests, metrics = requests_of(folder, name), metrics_of(folder, config, name)
    assert requests.schema.equals(REQUEST_SCHEMA)
    assert metrics.schema.equals(METRICS_SCHEMA)
    assert requests.num_rows == 4
    assert requests["output_tokens"].to_pylist() == requests["requested_output_tokens"].to_pylist()
    for column, counter in (("output_tokens", "generation_tokens_total"), ("input_tokens", "prompt_tokens_total")):
        values = metrics[counter].to_pylist()
        assert sum(requests[column].to_pylist()) == values[-1] - values[0], counter
    nvml = folder / "servers" / config / "samples" / f"{name}.nvml.parquet"
    assert pq.read_table(nvml).schema.equals(NVML_SCHEMA)


def test_nothing_is_won_from_a_warm_prefix_cache(natural: Path, long_prompts: str, tmp_path: Path) -> None:
    """The prompts repeat in the warm-up, in the load point and in its repeat; only --prefix-reuse natural gains.

    What it gains is won within its own points: prompts of the warm-up are salted in every mode.
    """
    rate = {row["scenario"]: float(row["prefix_hit_rate"]) for row in points(natural)}
    assert rate["long"] > 0.2
    folder = tmp_path / "run"
    options = ("--scenario", long_prompts, "--concurrency", "4", "--repeats", "2")
    assert sweep(folder, "--capture", "16", *options, CACHING).completed
    assert [float(row["prefix_hit_rate"]) for row in points(folder)] == [0.0, 0.0]
    for line in journal(folder):
        assert min(requests_of(folder, line["cell"])["input_tokens"].to_pylist()) > 528


def test_the_same_seed_sends_the_same_requests(whole: tuple[Path, Ended], natural: Path) -> None:
    """Between configurations, and between runs."""
    folder, _ = whole
    columns = ["request_id", "prompt_id", "requested_output_tokens", "input_tokens"]
    one, other = (requests_of(folder, cell(config, "4")).select(columns).to_pylist() for config in CONFIGS)
    assert one == other
    again = requests_of(natural, cell("cap16-seq16", "4")).select(columns).to_pylist()
    assert again == one
    assert requests_of(folder, cell("cap16-seq16", "1")).select(columns).to_pylist() != one


def test_every_artefact_says_simulated(whole: tuple[Path, Ended]) -> None:
    folder, _ = whole
    assert "SIMULATED" in (folder / "report.html").read_text()
    for path in (folder / "servers").rglob("launch.json"):
        assert json.loads(path.read_text())["simulated"] is True


def test_no_text_and_no_half_written_file_is_kept(whole: tuple[Path, Ended]) -> None:
    folder, _ = whole
    assert not list(folder.rglob("*.texts.json"))
    assert not list(folder.rglob("*.tmp"))
    assert (folder / ".lock").read_bytes() == b""


def test_what_a_configuration_holds_is_one_figure_for_a_scenario(whole: tuple[Path, Ended]) -> None:
    """210, 131 and 150 were told of one configuration: each point took its own requests' lengths."""
    folder, _ = whole
    for config in CONFIGS:
        assert len({row["requests_that_fit"] for row in points(folder) if row["config_id"] == config}) == 1


def test_requests_that_are_too_long_are_told_before_the_load(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = sweep(folder, "--capture", "4", "--concurrency", "1", "--vllm-arg=--max-model-len=64")
    told = [line for line in ended.err.splitlines() if "those will fail" in line]
    assert len(told) == 1 and "math: its longest requests take" in told[0] and "takes 64" in told[0]
    assert ended.err.index("those will fail") < ended.err.index("1 stream")


def test_a_server_that_says_it_is_the_simulator_is_believed_however_it_was_started(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = f"{sys.executable} -m qwenbench.simulator serve"
    options = ("--launcher", "process", "--vllm-command", command, *QUICK, "--concurrency", "1", "--no-report")
    target = ("--out", str(tmp_path), "--run-id", "run", "--port", str(free_port()))
    ended = qwenbench("sweep", *options, "--capture", "16", *target)
    assert ended.completed, ended.err
    assert "SIMULATED" in ended.out and "docker run" not in ended.out.partition("SIMULATED")[0]
    resumed = qwenbench("sweep", "--resume", str(folder), "--capture", "32", "--no-report")
    assert resumed.completed, resumed.err
    assert [(row["config_id"], row["simulated"]) for row in points(folder)] == [
        ("cap16-seq16", "True"), ("cap32-seq32", "True"),
    ]  # fmt: skip
    meta = record(folder / "run.json")
    assert meta["simulated"] is True and meta["notice"].startswith("SIMULATED")
    assert [record(folder / "servers" / name / "launch.json")["simulated"] for name in CONFIGS[:2]] == [True, True]

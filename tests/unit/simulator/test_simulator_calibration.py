"""bench/calibrate_simulator.py's parts: a fit to loads of a known model finds that model again."""

import copy
import gzip
import itertools
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwenbench.errors import UsageError
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.simulator.hosts import measure_host
from qwenbench.simulator.recorded import (
    Load,
    ServerFacts,
    compare,
    figures,
    judged,
    read_run_folder,
    simulate,
    strangeness,
)
from qwenbench.simulator.replay import Planned, Replayed
from qwenbench.simulator.steptime import StepModel, StepSettings, StepShape, typical_host

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))

from simulator_calibration.fit import fit, model_for, start
from simulator_calibration.loads import read_folder
from simulator_calibration.measures import engine_steps
from simulator_calibration.transfer import elsewhere, uncertainty, with_typical_host


def server(capture: int, seqs: int, machine: str = "here", card: str = "h100") -> ServerFacts:
    settings = StepSettings(min(capture, seqs), capture, flashinfer_sampler=False)
    return ServerFacts(f"cap{capture}-seq{seqs}", machine, card, "0.26.0", seqs, 2048, 1053, settings)


def quiet(calibration: dict[str, Any]) -> dict[str, Any]:
    for card in calibration["cards"].values():
        card["jitter"] = 0.005
    for host in calibration["hosts"].values():
        host["times"]["jitter"] = 0.01
    return calibration


def made(facts: ServerFacts, concurrency: int, calibration: dict[str, Any], prompt: int = 522) -> Load:
    """A load as a server with these times would have left it."""
    number = max(4, 2 * concurrency)
    plan = Load(facts, f"c={concurrency}", concurrency, [Replayed(0.0, Planned(prompt, 96))] * number)
    requests, preemptions = simulate(plan, model_for(calibration, plan))
    return replace(plan, requests=requests, preemptions=preemptions)


FACTS = (server(64, 64), server(64, 256))
TRUTH = quiet(start([Load(FACTS[0], "", 1, [])]))
LOADS = [
    made(FACTS[0], 1, TRUTH),
    made(FACTS[0], 1, TRUTH, prompt=100),
    made(FACTS[0], 16, TRUTH, prompt=200),
    made(FACTS[0], 64, TRUTH),
    made(FACTS[1], 128, TRUTH),
]


def test_fit_finds_a_slower_host_again() -> None:
    truth = copy.deepcopy(TRUTH)
    truth["hosts"]["here"]["times"]["launch_ms"] *= 1.4
    truth["hosts"]["here"]["times"]["eager_ms"] *= 1.4
    loads = [made(load.server, load.concurrency, truth, load.requests[0].planned.prompt_tokens) for load in LOADS]
    found = fit(loads, TRUTH, steps=(1.15, 1.05), hosts_only=True)
    for load, shape in ((loads[2], StepShape(8, 200, prompts=1)), (loads[4], StepShape(128))):
        expected, got = (max(model_for(times, load).step_ms(shape, load.server.settings)) for times in (truth, found))
        assert got == pytest.approx(expected, rel=0.12)
    assert all(not compare(load, model_for(found, load)).beyond for load in loads)


def test_a_slower_machine_is_less_odd_than_one_slow_kind_of_step() -> None:
    usual = dict(TRUTH["hosts"]["here"]["times"])
    slower = {name: 1.4 * value for name, value in usual.items()}
    assert strangeness(usual, usual) == 0
    assert strangeness(slower, usual) < 1 < strangeness(usual | {"launch_ms": 1.4 * usual["launch_ms"]}, usual)


def test_a_load_compared_with_its_own_model_is_not_off() -> None:
    for load in LOADS:
        comparison = compare(load, model_for(TRUTH, load))
        assert comparison.beyond == [] and abs(comparison.residual("itl_p50_ms") or 0) < 0.01


def test_a_wrong_model_is_found_beyond_its_limits() -> None:
    model = model_for(TRUTH, LOADS[3])
    slow = StepModel(replace(model.gpu, decode_ms=tuple(ms * 1.3 for ms in model.gpu.decode_ms)), model.host)
    assert "itl_p50_ms" in compare(LOADS[3], slow).beyond


def test_one_off_stalls_are_left_out_or_judged_from_after_the_first_wave() -> None:
    load = LOADS[3]
    assert judged(load) is False
    stalled = [
        Replayed(item.start + (1.0 if index >= 64 else 0.0), item.planned, [at + 1.0 for at in item.token_times])
        for index, item in enumerate(load.requests)
    ]
    assert judged(replace(load, requests=stalled)) is True
    after, before = (figures(requests, 64, after_first_wave=True) for requests in (stalled, load.requests))
    assert after.ttft_p50_ms == pytest.approx(before.ttft_p50_ms)
    assert after.tokens_per_s == pytest.approx(before.tokens_per_s)
    late = [
        Replayed(item.start, item.planned, [at + (5.0 if at > 2.0 else 0.0) for at in item.token_times])
        for item in load.requests
    ]
    assert judged(replace(load, requests=late)) is None


def test_engine_steps_are_found_in_token_times() -> None:
    model = model_for(TRUTH, LOADS[3])
    steps = engine_steps(LOADS[3].requests)
    full = [step for before, step in itertools.pairwise(steps) if step.tokens == 64 and not before.firsts]
    assert len(full) > 80
    expected = max(model.step_ms(StepShape(64, 0, 64 * (522 + 48)), FACTS[0].settings))
    assert statistics.median(step.milliseconds for step in full) == pytest.approx(expected, rel=0.02)


def test_an_interval_holds_what_went_wrong_elsewhere() -> None:
    slow = copy.deepcopy(TRUTH)
    slow["hosts"] = {"here": TRUTH["hosts"]["here"], "there": copy.deepcopy(TRUTH["hosts"]["here"])}
    slow["hosts"]["there"]["times"]["launch_ms"] *= 3
    far = made(server(64, 64, "there"), 16, slow, prompt=200)
    compared = elsewhere(slow, [LOADS[2], far])
    found = uncertainty([(name, items) for name, items in compared.items()])["other_host"]["tokens_per_s"]
    assert found[0] < 0.9 and found[1] > 1.1  # recorded over simulated, both ways
    assert with_typical_host(slow)["hosts"]["typical"]["times"]["launch_ms"] == pytest.approx(65 * 3**0.5)


def test_a_recorders_folder_is_read_with_what_bears_on_speed(tmp_path: Path) -> None:
    folder = tmp_path / "h100-vllm-0.26.0"
    folder.mkdir()
    rows = [{"start": 0.0, "prompt_tokens": 500, "completion_tokens": 2, "reads": [[0.05, 1], [0.06, 1]]}]
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    argv = ["--max-cudagraph-capture-size", "1024", "--max-num-seqs", "64", "--max-num-batched-tokens", "1024"]
    load = {"file": "a.json.gz", "streams": 1, "prompt_tokens": [500, 500, 500], "output_tokens": "2-2"}
    run: dict[str, Any] = {"name": "pair-x", "argv": [*argv, "--no-async-scheduling"], "env": {}}
    run["loads"] = [load | {"profile": "instruct-general"}]
    (folder / "results.json").write_text(json.dumps([run]))
    (folder / "pair-x.log").write_text("version 0.26.0\nFlashInfer top-p/top-k sampling disabled via X=0.\n")
    (folder / "pair-x.metrics1.txt").write_text('vllm:cache_config_info{num_gpu_blocks="1053"} 1.0\n')
    (found,) = read_folder(tmp_path)
    facts = found.server
    assert (facts.card, facts.version, facts.machine) == ("h100", "0.26.0", "h100-vllm-0.26.0-pair")
    assert facts.max_num_batched_tokens == 1024 and facts.num_blocks == 1053
    assert facts.settings == StepSettings(64, 1024, flashinfer_sampler=False, async_scheduling=False)
    assert found.requests[0].planned == Planned(500, 2, 0.0, filtered=True, penalised=True)


def test_run_folder_is_read_and_a_simulated_one_is_not(tmp_path: Path) -> None:
    row = dict.fromkeys(REQUEST_SCHEMA.names) | {
        "sent_ns": 10_000_000_000, "process": 0, "stream": 2, "input_tokens": 30, "output_tokens": 4,
        "ttft_ms": 50.0, "decode_ms": 30.0, "e2e_ms": 80.0, "itl_ms": [10.0], "gaps_merged": 2,
    }  # fmt: skip
    later = row | {"sent_ns": 10_100_000_000, "itl_ms": [5.0, 5.0, 5.0], "gaps_merged": 0, "decode_ms": 15.0}
    failed = row | {"error": "reset"}
    (tmp_path / "requests").mkdir()
    table = pa.Table.from_pylist([later, row, failed], schema=REQUEST_SCHEMA)
    pq.write_table(table, tmp_path / "requests" / "cap64-seq64.l1.math.c1.1.parquet")
    (tmp_path / "points.csv").write_text(
        "config_id,capture,max_num_seqs,kv_cache_blocks\ncap64,8,8,9\ncap64-seq64,64,64,1072\n"
    )
    (tmp_path / "run.json").write_text(json.dumps({"simulated": False}))
    (load,) = read_run_folder(tmp_path)
    assert load.server.num_blocks == 1072 and load.label == "l1.math.c1.1"
    assert [item.token_times for item in load.requests] == [
        pytest.approx([0.05, 0.06, 0.07, 0.08]),
        pytest.approx([0.15, 0.155, 0.16, 0.165]),
    ]
    assert load.streams is not None and load.streams[0][1].think_s == pytest.approx(0.02)
    log = tmp_path / "servers" / "cap64-seq64" / "server.log"
    log.parent.mkdir(parents=True)
    args = "(APIServer pid=1) INFO 11-27 00:00:01 [utils.py:1] non-default args: {'max_num_batched_tokens': 8192"
    log.write_text(f"{args}}}\n")
    assert read_run_folder(tmp_path)[0].server.max_num_batched_tokens == 8192
    log.write_text(f"{args}, 'tensor_parallel_size': 2}}\n")
    assert read_run_folder(tmp_path) == [], "a server over two cards is not simulated"
    (tmp_path / "run.json").write_text(json.dumps({"simulated": True}))
    assert read_run_folder(tmp_path) == []


def write_run(folder: Path, load: Load) -> Path:
    """A run folder as a sweep would have left it of this load."""
    (folder / "requests").mkdir(parents=True)
    rows = []
    for number, item in enumerate(load.requests):
        gaps = [1e3 * (after - before) for before, after in itertools.pairwise(item.token_times)]
        ttft = 1e3 * (item.token_times[0] - item.start)
        rows.append(
            dict.fromkeys(REQUEST_SCHEMA.names)
            | {"sent_ns": int(1e9 * (10 + item.start)), "process": 0, "stream": number, "gaps_merged": 0}
            | {"input_tokens": item.planned.prompt_tokens, "output_tokens": item.planned.output_tokens}
            | {"ttft_ms": ttft, "decode_ms": sum(gaps), "e2e_ms": ttft + sum(gaps), "itl_ms": gaps}
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA), folder / "requests" / "c.l1.math.c.1.parquet")
    (folder / "points.csv").write_text("config_id,capture,max_num_seqs,kv_cache_blocks\nc,64,64,1053\n")
    hardware = {"gpus": [{"name": "NVIDIA H100 80GB HBM3"}]}
    (folder / "run.json").write_text(
        json.dumps({"simulated": False, "hardware": hardware, "versions": {"vllm": "0.26.0"}})
    )
    return folder


def test_a_host_is_measured_from_a_run(tmp_path: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["hosts"]["here"]["times"]["launch_ms"] *= 2
    load = made(FACTS[0], 16, truth, prompt=200)
    single = replace(load, requests=load.requests[:16], streams=None)
    host, lines = measure_host(write_run(tmp_path / "run", single))
    assert host.name == "run" and host.launch_ms > 1.4 * typical_host().launch_ms
    assert len(lines) == 1 and "simulated / measured" in lines[0]
    (tmp_path / "run" / "run.json").write_text(json.dumps({"simulated": True}))
    with pytest.raises(UsageError, match="no measured load"):
        measure_host(tmp_path / "run")

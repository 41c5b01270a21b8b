"""bench/calibrate_simulator.py's parts: a fit to loads of a known model finds that model again."""

import itertools
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.simulator.replay import Planned, Replayed
from qwenbench.simulator.steptime import calibrated_model

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))

from simulator_calibration.compare import compare, simulate
from simulator_calibration.fit import fit
from simulator_calibration.loads import Load, ServerFacts, read_run_folder
from simulator_calibration.measures import engine_steps, figures

MODEL = replace(calibrated_model(), jitter=0.005)
SERVERS = {
    64: ServerFacts("cap64", 64, 64, 2048, 1072),
    256: ServerFacts("cap64-seq256", 64, 256, 2048, 1072),
    16: ServerFacts("cap16", 16, 16, 2048, 1074),
}


def made(seqs: int, concurrency: int, model=MODEL) -> Load:
    """A load as a server with this model would have left it."""
    number = max(3, 2 * concurrency)
    plan = Load(SERVERS[seqs], f"c={concurrency}", concurrency, [Replayed(0.0, Planned(522, 128))] * number)
    requests, preemptions = simulate(plan, model)
    return replace(plan, requests=requests, preemptions=preemptions)


LOADS = [made(64, 1), made(16, 16), made(64, 16), made(64, 64), made(16, 64), made(256, 128), made(256, 256)]


def test_fit_finds_the_model_again():
    found = fit(LOADS)
    for batch in (1, 16, 64):
        assert found.decode_ms(batch, 64) == pytest.approx(MODEL.decode_ms(batch, 64), rel=0.05)
    for batch in (128, 214):
        assert found.decode_ms(batch, 64) == pytest.approx(MODEL.decode_ms(batch, 64), rel=0.05)
    for decodes in (10, 60, 200):
        full = 2048 - decodes
        assert found.mixed_ms(decodes, full) == pytest.approx(MODEL.mixed_ms(decodes, full), rel=0.1)
    assert found.frontend_ms + found.mixed_ms(0, 522) == pytest.approx(
        MODEL.frontend_ms + MODEL.mixed_ms(0, 522), rel=0.1
    )


def test_a_load_compared_with_its_own_model_is_not_off():
    for load in LOADS:
        comparison = compare(load, MODEL)
        assert comparison.beyond == [] and abs(comparison.residual("itl_p50_ms") or 0) < 0.01


def test_a_wrong_model_is_found_beyond_its_limits():
    slow = replace(MODEL, captured_ms=tuple(value * 1.3 for value in MODEL.captured_ms))
    assert "itl_p50_ms" in compare(LOADS[3], slow).beyond


def test_stall_in_the_first_wave_leaves_the_figures_alone():
    load = LOADS[3]
    stalled = [
        Replayed(item.start + (1.0 if index >= 64 else 0.0), item.planned, [at + 1.0 for at in item.token_times])
        for index, item in enumerate(load.requests)
    ]
    assert figures(stalled, 64).ttft_p50_ms == pytest.approx(figures(load.requests, 64).ttft_p50_ms)
    assert figures(stalled, 64).tokens_per_s == pytest.approx(figures(load.requests, 64).tokens_per_s)


def test_engine_steps_are_found_in_token_times():
    steps = engine_steps(LOADS[3].requests)
    full = [step for before, step in itertools.pairwise(steps) if step.tokens == 64 and not before.firsts]
    assert len(full) > 100
    expected = max(MODEL.step_ms(64, 0, 64 * (522 + 64), 64))
    assert statistics.median(step.milliseconds for step in full) == pytest.approx(expected, rel=0.02)


def test_run_folder_is_read_and_a_simulated_one_is_not(tmp_path: Path):
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
    (tmp_path / "run.json").write_text(json.dumps({"simulated": True}))
    assert read_run_folder(tmp_path) == []

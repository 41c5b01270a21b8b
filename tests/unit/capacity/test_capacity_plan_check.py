"""Predicted beside measured, on the recorded servers as if they were one run."""

from __future__ import annotations

import gzip
from pathlib import Path

from qwenbench.capacity.model_shape import SEED_SHAPE
from qwenbench.capacity.plan_check import check_plans, config_of_log
from qwenbench.engine.startup_log import StartupLog, parse_startup_log

DATA = Path(__file__).parents[2] / "data" / "memory" / "h200-vllm-0.20.2"
BLOCKS = {
    "cap64-seq64": 1072,
    "cap16-seq16": 1074,
    "cap32-seq32": 1074,
    "cap64-seq256": 1072,
    "cap64-seq64-noest": 1079,
}


def logs(names: list[str]) -> dict[str, StartupLog]:
    return {name: parse_startup_log(gzip.decompress((DATA / f"{name}.log.gz").read_bytes()).decode()) for name in names}


def test_the_first_configuration_predicts_the_others():
    checks = check_plans(logs(list(BLOCKS)), BLOCKS, SEED_SHAPE, cuda_total_gib=139.80)
    assert [check.config_id for check in checks] == list(BLOCKS)[1:]
    for check in checks:
        assert check.probe_id == "cap64-seq64"
        assert check.within
        assert abs(check.error) < 0.005
        assert abs(check.predicted_blocks / check.measured_blocks - 1) < 0.005


def test_a_first_start_that_was_cut_off_calibrates_nothing():
    broken = {"cap64-seq64-fp8kv": None, "cap16-seq16": 1074, "cap32-seq32": 1074}
    checks = check_plans(logs(list(broken)), broken, SEED_SHAPE, cuda_total_gib=139.80)
    assert [(check.config_id, check.probe_id) for check in checks] == [("cap32-seq32", "cap16-seq16")]
    assert check_plans({}, {}, SEED_SHAPE, cuda_total_gib=139.80) == []


def test_a_measured_value_that_is_missing_stays_missing():
    pair = logs(["cap16-seq16", "cap64-seq64-fp8kv"])
    (check,) = check_plans(pair, {}, SEED_SHAPE, cuda_total_gib=139.80)
    assert (check.measured_gib, check.measured_blocks, check.error, check.within) == (None, None, None, None)


def test_the_configuration_as_the_log_repeats_it():
    config = config_of_log(logs(["cap64-seq256"])["cap64-seq256"])
    assert (config.capture, config.max_num_seqs, config.gpu_memory_utilization) == (64, 256, 0.21546)
    assert config.flag("max-model-len") == "auto"
    assert config.env == {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "1"}

"""Clocks and what held them back; a drafter's counters: columns of a point."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from qwenbench.analysis.server_samples import clock_columns, drafting_columns, throttle_note
from qwenbench.analysis.window import Window
from qwenbench.observe.metrics import METRICS_SCHEMA, parse_metrics
from qwenbench.observe.nvml import NVML_SCHEMA


def nvml(*rows: tuple[int, str, float | None, int | None], limit: float | None = 575.0) -> pa.Table:
    values = [
        {"t_ns": t, "gpu": gpu, "sm_clock_mhz": clock, "throttle": bits, "power_limit_w": limit}
        for t, gpu, clock, bits in rows
    ]
    return pa.Table.from_pylist(values, schema=NVML_SCHEMA)


def test_clocks_and_reasons_of_the_window() -> None:
    samples = nvml((0, "a", 300.0, 0x1), (10, "a", 2400.0, 0x4), (20, "a", 2000.0, 0x24), (30, "a", 2200.0, 0))
    row = clock_columns(samples, Window("steady", 5, 30))
    assert row["sm_clock_mhz_mean"] == pytest.approx(2200.0)
    assert row["power_limit_w"] == 575.0
    assert row["throttled_share"] == pytest.approx(2 / 3)
    assert row["throttle_reasons"] == "power limit 67%, heat (software) 33%"
    note = throttle_note(row)
    assert note is not None
    assert "heat" in note


def test_a_card_at_its_power_limit_is_no_news() -> None:
    row = clock_columns(nvml((0, "a", 2400.0, 0x4), (1, "a", 2400.0, 0x4)), None)
    assert (row["throttled_share"], row["throttle_reasons"]) == (1.0, "power limit 100%")
    assert throttle_note(row) is None
    assert throttle_note({"throttle_reasons": None}) is None


def test_limits_of_two_cards_add_up_and_what_is_not_told_is_unknown() -> None:
    assert clock_columns(nvml((0, "a", 1.0, 0), (0, "b", 1.0, 0)), None)["power_limit_w"] == 1150.0
    silent = clock_columns(nvml((0, "a", None, None), limit=None), None)
    assert set(silent.values()) == {None}
    assert clock_columns(None, None) == {}


def test_a_drafters_counters() -> None:
    """Recorded, H200 with MTP of three tokens and random weights: nothing was accepted."""
    rows = [
        {"t_ns": 0, "drafts_total": 100.0, "drafted_tokens_total": 300.0, "accepted_tokens_total": 20.0},
        {"t_ns": 1, "drafts_total": 200.0, "drafted_tokens_total": 600.0, "accepted_tokens_total": 170.0},
    ]
    row = drafting_columns(pa.Table.from_pylist(rows, schema=METRICS_SCHEMA))
    assert row == {
        "drafted_tokens": 300,
        "accepted_tokens": 150,
        "acceptance_rate": pytest.approx(0.5),
        "acceptance_length": pytest.approx(2.5),
    }
    assert drafting_columns(pa.Table.from_pylist([{"t_ns": 0}], schema=METRICS_SCHEMA)) == {}


def test_vllms_own_names_are_read() -> None:
    text = Path(__file__).parents[2] / "data" / "metrics" / "h200-vllm-0.26.0-mtp3.txt"
    values = parse_metrics(text.read_text()).values
    assert values["drafted_tokens_total"] == 3 * values["drafts_total"] > 0
    assert values["accepted_tokens_total"] == 0

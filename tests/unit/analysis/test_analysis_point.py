from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest
from analysis_records import at_ms, request, table
from point_contexts import point_context

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.analysis.point import summarise_point
from qwenbench.capacity.kv import KvGroup, KvLayout
from qwenbench.errors import UsageError
from qwenbench.load.client_error import invalid_reason as client_reason
from qwenbench.load.spec import ClientHealth
from qwenbench.observe.metrics import METRICS_SCHEMA
from qwenbench.observe.nvml import NVML_SCHEMA


def point(
    rows: list[dict[str, Any]],
    metrics: Iterable[dict[str, Any]] = (),
    nvml: Iterable[dict[str, Any]] = (),
    **fields: Any,
) -> dict[str, Any]:
    return summarise_point(
        table(rows),
        pa.Table.from_pylist(list(metrics), schema=METRICS_SCHEMA),
        pa.Table.from_pylist(list(nvml), schema=NVML_SCHEMA),
        point_context(**fields),
    )


def back_to_back(count: int, length_ms: float = 1000, **fields: Any) -> list[dict[str, Any]]:
    return [request(i * length_ms, (i + 1) * length_ms, **fields) for i in range(count)]


def test_every_column_is_there_and_unknown_ones_are_none() -> None:
    row = point(back_to_back(4), vary={"kv-cache-dtype": "fp8"})
    assert tuple(row) == (*COLUMN_NAMES, "vary_kv_cache_dtype")
    assert row["vary_kv_cache_dtype"] == "fp8"
    for name in ("goodput_rps", "ttfo_ms_p50", "ttft_ms_p99", "prefix_hit_rate", "broken_share", "vram_peak_mib",
                 "energy_j_per_output_token", "preemptions", "requests_that_fit", "itl_ms_mean"):  # fmt: skip
        assert row[name] is None, name
    assert (row["valid"], row["invalid_reason"]) == (True, None)


def test_rates_are_over_the_window() -> None:
    row = point(back_to_back(4, ttft_ms=100.0, decode_ms=900.0, output_tokens=10, input_tokens=50))
    assert (row["window"], row["duration_s"]) == ("steady", 4.0)
    assert row["requests_per_s"] == pytest.approx(1.0)
    assert row["output_tokens_per_s"] == pytest.approx(10.0)
    assert row["input_tokens_per_s"] == pytest.approx(50.0)
    assert row["total_tokens_per_s"] == pytest.approx(60.0)
    assert row["tpot_ms_mean"] == pytest.approx(100.0)


def test_tokens_outside_the_window_do_not_count() -> None:
    # two streams; the second one begins at 500 ms and ends for good at 4500 ms: window 500..4000 ms
    late = [request(500 + i * 1000, 1500 + i * 1000) for i in range(4)]
    rows = [row | {"ttft_ms": 0.0, "decode_ms": 1000.0, "output_tokens": 11} for row in back_to_back(4) + late]
    row = point(rows, concurrency=2)
    assert row["duration_s"] == 3.5
    # stream one: half of its first request, all of three; stream two: three, and half of its last.
    # each whole request has 11 tokens; the first token falls on the start, 10 follow over a second; a start that
    # is exactly the window's start is outside (start, end]
    first = 10 * 0.5 + 3 * 11
    second = (11 - 1) + 2 * 11 + (1 + 10 * 0.5)
    assert row["output_tokens_per_s"] == pytest.approx((first + second) / 3.5)
    assert row["output_tokens_per_s_per_user"] == pytest.approx(row["output_tokens_per_s"] / 2)
    assert row["requests_per_s"] == pytest.approx(7 / 3.5)  # the last one ends after the window


def test_failures_are_counted_and_never_measured() -> None:
    rows = back_to_back(5)
    rows[2] |= {"error": "timeout", "ttft_ms": 99_999.0, "output_tokens": None}
    row = point(rows)
    assert (row["requests_ok"], row["requests_failed"], row["valid"]) == (4, 1, True)
    assert row["ttft_ms_mean"] == 0.0


def test_all_failed_is_invalid() -> None:
    row = point([r | {"error": "refused", "e2e_ms": None} for r in back_to_back(4)])
    assert (row["valid"], row["invalid_reason"]) == (False, "every request failed (refused x 4)")
    assert row["requests_per_s"] is None
    assert point([])["invalid_reason"] == "no request was sent"


def test_p99_needs_100_values_and_percentiles_are_linear() -> None:
    rows = [row | {"ttft_ms": float(i)} for i, row in enumerate(back_to_back(99))]
    few = point(rows)
    assert (few["ttft_ms_p50"], few["ttft_ms_p90"], few["ttft_ms_p99"]) == (49.0, pytest.approx(88.2), None)
    more = point([*rows, request(99_000, 100_000, ttft_ms=99.0)])
    assert more["ttft_ms_p99"] == pytest.approx(98.01)


def test_merged_gaps_empty_the_itl_columns_above_one_percent() -> None:
    fine = point(back_to_back(4, itl_ms=[10.0] * 99, gaps_merged=1))
    assert (fine["merged_share"], fine["itl_ms_p50"], fine["itl_ms_p99"]) == (0.01, 10.0, 10.0)
    bad = point(back_to_back(4, itl_ms=[10.0] * 98, gaps_merged=2))
    assert (bad["merged_share"], bad["itl_ms_p50"], bad["itl_ms_mean"]) == (0.02, None, None)
    assert bad["ttft_ms_mean"] == 0.0


def test_goodput_counts_what_met_every_limit() -> None:
    rows = back_to_back(4, itl_ms=[5.0, 15.0], ttft_ms=100.0)
    rows[0]["ttft_ms"] = 2000.0
    rows[1]["itl_ms"] = [40.0, 40.0]
    rows[2]["itl_ms"] = []  # too short for a gap: cannot miss that limit
    assert point(rows, slo={"ttft": 1000.0})["goodput_rps"] == pytest.approx(3 / 4)
    assert point(rows, slo={"ttft": 1000.0, "itl": 10.0})["goodput_rps"] == pytest.approx(2 / 4)
    assert point(rows, slo={"ttft": float("inf")})["goodput_rps"] == pytest.approx(1.0)
    rows[3]["output_tokens"] = 1  # too short for a TPOT (the others take 1000 ms a token)
    assert point(rows, slo={"tpot": 999.0})["goodput_rps"] == pytest.approx(1 / 4)
    rows[3]["ttft_ms"] = None  # its first token never came
    assert point(rows, slo={"ttft": float("inf")})["goodput_rps"] == pytest.approx(3 / 4)
    with pytest.raises(UsageError, match="ttfz"):
        point(rows, slo={"ttfz": 1.0})


def test_requests_that_fit_uses_the_p95_request() -> None:
    # the recorded server: 1072 blocks of 528 tokens, 3 state blocks, 522 + 128 tokens each
    rows = back_to_back(4, input_tokens=522, output_tokens=128)
    layout = KvLayout(528, 4096, 8, (KvGroup("full", 528), *[KvGroup("state", 528, state_blocks=1)] * 3))
    row = point(rows, kv_cache_blocks=1072, layout=layout)
    assert row["requests_that_fit"] == 1071 // 5
    # one block is vLLM's own: 1075 of them hold 214 requests, not 215
    row = point(rows, kv_cache_blocks=1075, layout=layout)
    assert row["requests_that_fit"] == 214
    assert point(rows, kv_cache_blocks=1072)["requests_that_fit"] is None


def test_gauges_peak_and_counters_grow() -> None:
    samples = [
        {"t_ns": at_ms(i * 1000), "running": float(i), "waiting": float(5 - i), "kv_cache_usage": i / 10,
         "preemptions_total": 3.0 + i, "prefix_queries_total": 100.0 * i, "prefix_hits_total": 25.0 * i}
        for i in range(5)
    ]  # fmt: skip
    row = point(back_to_back(4), metrics=samples)
    assert (row["running_peak"], row["waiting_peak"], row["kv_cache_usage_peak"]) == (4, 5, 0.4)
    assert (row["preemptions"], row["prefix_hit_rate"]) == (4, 0.25)


def test_prefix_hits_from_usage_where_the_server_has_no_counters() -> None:
    assert point(back_to_back(4, cached_tokens=4))["prefix_hit_rate"] == pytest.approx(0.4)


def card(uuid: str, seconds: int, watts: float, used: float = 1000.0) -> list[dict[str, Any]]:
    return [
        {"t_ns": at_ms(s * 1000), "gpu": uuid, "used_mib": used + s, "power_w": watts, "energy_j": 500.0 + watts * s}
        for s in range(seconds + 1)
    ]


def test_energy_and_vram_of_all_cards() -> None:
    rows = back_to_back(20, output_tokens=10, ttft_ms=100.0, decode_ms=900.0)
    nvml = card("GPU-a", 25, 100.0) + card("GPU-b", 25, 300.0, used=5000.0)
    row = point(rows, nvml=nvml, vram_before_mib={"GPU-a": 10.0, "GPU-b": 500.0}, budget_gib=4000 / 1024)
    assert row["power_w_mean"] == pytest.approx(400.0)
    assert row["energy_j_per_output_token"] == pytest.approx(400.0 / 10.0)
    assert (row["vram_before_mib"], row["vram_peak_mib"], row["vram_over_budget_mib"]) == (500.0, 5025.0, 525.0)


def test_a_neighbours_memory_is_not_over_the_servers_budget() -> None:
    """A recorded run: 48,953 MiB were held by another process, the server itself was 1,923 MiB over 30,506."""
    rows = back_to_back(20, output_tokens=10, ttft_ms=100.0, decode_ms=900.0)
    held = card("GPU-a", 25, 100.0, used=81_405.0)
    known: dict[str, Any] = {"nvml": held, "vram_before_mib": {"GPU-a": 48_953.0}, "budget_gib": 30_506.0 / 1024}
    assert point(rows, **known)["vram_over_budget_mib"] == pytest.approx(81_430.0 - 48_953.0 - 30_506.0)
    told = [{**row, "own_mib": 32_429.0 if number > 3 else None} for number, row in enumerate(held)]
    row = point(rows, **(known | {"nvml": told}))
    assert (row["vram_own_peak_mib"], row["vram_over_budget_mib"]) == (32_429.0, 1_923.0)
    assert row["vram_peak_mib"] == 81_430.0


def test_energy_covers_the_sampled_part_only_and_needs_ten_seconds() -> None:
    rows = back_to_back(20, output_tokens=10, ttft_ms=100.0, decode_ms=900.0)
    assert point(rows, nvml=card("a", 12, 100.0))["energy_j_per_output_token"] == pytest.approx(10.0)
    assert point(rows, nvml=card("a", 9, 100.0))["energy_j_per_output_token"] is None
    backwards = card("a", 20, 100.0)
    backwards[10]["energy_j"] = 0.0
    assert point(rows, nvml=backwards)["energy_j_per_output_token"] is None


def test_simulated_cards_come_from_the_servers_own_metrics() -> None:
    samples = [
        {"t_ns": at_ms(s * 1000), "vram_used_mib": 30000.0 + s, "power_w": 200.0, "energy_j": 200.0 * s}
        for s in range(21)
    ]
    rows = back_to_back(20, output_tokens=10, ttft_ms=100.0, decode_ms=900.0)
    row = point(rows, metrics=samples, nvml=card("real", 25, 50.0), simulated=True)
    assert row["vram_peak_mib"] == 30020.0
    assert row["energy_j_per_output_token"] == pytest.approx(20.0)


def test_what_makes_a_point_invalid() -> None:
    rows = back_to_back(10, broken=[])
    assert point(rows, client_invalid_reason="the client was saturated")["invalid_reason"] == "the client was saturated"
    rows[0]["broken"] = ["loop"]
    one = point(rows)
    assert (one["broken_share"], one["valid"]) == (0.1, True)
    rows[1]["broken"] = ["loop", "mojibake"]
    assert point(rows)["invalid_reason"] == "20.0% of the answers were broken output (loop 2, mojibake 1)"
    rows[2]["broken"] = None  # not judged
    assert point(rows)["broken_share"] == pytest.approx(2 / 9)


def test_a_clock_step_is_told_once() -> None:
    health = ClientHealth(1, "kernel", 0.1, 0.0, 0.0, clock_step_ms=1.5)
    reason = point(back_to_back(10), client_invalid_reason=client_reason(health, None, 1.0, 1.0))["invalid_reason"]
    assert reason.count("clock") == 1 and "1.5 ms" in reason


def test_stalls_are_gaps_over_two_and_a_half_medians() -> None:
    # 8 gaps of 10 ms and 2 of 60: 120 of 200 ms; 25 ms is none yet
    row = point(back_to_back(4, itl_ms=[10.0] * 8 + [60.0, 60.0]))
    assert (row["itl_stall_share"], row["itl_stall_ms_p50"]) == (pytest.approx(0.6), 60.0)
    none = point(back_to_back(4, itl_ms=[10.0] * 9 + [25.0]))
    assert (none["itl_stall_share"], none["itl_stall_ms_p50"]) == (0.0, None)
    assert point(back_to_back(4, itl_ms=[10.0] * 98, gaps_merged=2))["itl_stall_share"] is None
    assert point(back_to_back(4))["itl_stall_share"] is None


def test_a_load_that_is_not_what_its_name_says_is_told() -> None:
    # four streams asked for; the second pair of sessions ends half-way
    rows = [request(0, 1000), request(0, 1000), request(0, 500), request(0, 500)]
    row = point(rows, concurrency=4)
    assert (row["window"], row["in_flight_mean"]) == ("whole", pytest.approx(3.0))
    assert row["window_note"].startswith("3.0 of 4 streams were under way")
    full = point(back_to_back(4))
    assert (full["in_flight_mean"], full["window_note"]) == (pytest.approx(1.0), None)


def test_a_window_in_which_nothing_ended_gives_no_rate() -> None:
    # the only answer came from before the ramp's end and lasted beyond the schedule; nothing else was answered
    rows = [request(0, 900), *(request(start, start + 100, error="timeout") for start in (2000, 3000))]
    row = point(rows, concurrency=None, load_shape="poisson", ramp_s=1.0, schedule_start_ns=at_ms(0))
    assert row["window"] == "whole" and row["requests_per_s"] == pytest.approx(1 / 3.1)


def test_the_servers_own_clock_stands_beside_the_clients() -> None:
    samples = [
        {"t_ns": at_ms(i * 1000), "running": 4.0, "waiting": 0.0, "iteration_tokens_count": 100.0 * i,
         "iteration_tokens_sum": 1000.0 * i, "queue_time_sum": 0.5 * i, "queue_time_count": 10.0 * i,
         "prefill_time_sum": 1.0 * i, "prefill_time_count": 10.0 * i,
         "iteration_tokens_buckets": [(1.0, 10.0 * i), (8.0, 80.0 * i), (float("inf"), 100.0 * i)]}
        for i in range(5)
    ]  # fmt: skip
    row = point(back_to_back(4), metrics=samples)
    assert (row["server_steps"], row["server_tokens_per_step"]) == (400, 10.0)
    assert row["server_prefill_step_share"] == pytest.approx(0.2)  # 4 ran at most: more than 8 tokens is a prefill
    assert (row["server_queue_ms_mean"], row["server_prefill_ms_mean"]) == (50.0, 100.0)
    assert point(back_to_back(4))["server_steps"] is None


def test_gpu_utilisation_over_the_window() -> None:
    nvml = [{"t_ns": at_ms(s * 1000), "gpu": uuid, "util_pct": pct if 0 <= s <= 4 else 0.0}
            for s in range(-2, 8) for uuid, pct in (("a", 60.0), ("b", 80.0))]  # fmt: skip
    assert point(back_to_back(4), nvml=nvml)["gpu_util_mean"] == pytest.approx(70.0)
    assert point(back_to_back(4))["gpu_util_mean"] is None


def test_open_loop_latencies_count_from_the_schedule_and_there_are_no_users() -> None:
    rows = [request(i * 100 + 50, i * 100 + 150, scheduled_ns=at_ms(i * 100), e2e_ms=150.0) for i in range(50)]
    row = point(rows, load_shape="poisson", concurrency=None, rate=10.0, ramp_s=1.0, schedule_start_ns=at_ms(0))
    assert (row["window"], row["duration_s"]) == ("steady", pytest.approx(3.9))
    assert row["output_tokens_per_s_per_user"] is None
    assert row["requests_per_s"] == pytest.approx(39 / 3.9, rel=0.02)


def test_bound_is_read_from_samples_within_the_window_only() -> None:
    # the window is 0..4 s; before and after it the queue is long
    samples = [
        {"t_ns": at_ms(t), "running": 16.0, "waiting": 0.0 if 0 <= t <= 4000 else 50.0, "kv_cache_usage": 0.2,
         "preemptions_total": 0.0}
        for t in range(-3000, 8000, 500)
    ]  # fmt: skip
    row = point(back_to_back(4), metrics=samples, max_num_seqs=16, capture_effective_full=8)
    assert row["bound"] == "graph-miss"
    assert row["bound_all"].startswith("graph-miss (more than 8 running in 100%")
    assert point(back_to_back(4), client_saturated=True)["bound"] == "client"
    assert point(back_to_back(4))["bound"] is None

"""What a long prompt did to the others' gaps, with times planted by hand."""

from __future__ import annotations

from analysis_records import request, table

from qwenbench.analysis.server_samples import interference


def test_gaps_during_a_prefill_are_told_apart() -> None:
    # tokens every 10 ms from 0 to 1000 ms, but for the one at which a long prompt held them up from 500 to 700 ms
    gaps = [10.0] * 50 + [210.0] + [10.0] * 29
    stream = request(0, 1000, ttft_ms=0.0, itl_ms=gaps)
    long = request(500, 760, ttft_ms=200.0, input_tokens=32768)
    told = interference(table([stream]), table([long]))
    assert told == (
        "1 prompts of 32768 tokens beside (TTFT 200 ms): the others' ITL p50/p99 was 210.0/210.0 ms while one was "
        "read, 10.0/10.0 ms otherwise"
    )


def test_nothing_is_claimed_without_a_prefill_or_without_times() -> None:
    stream = request(0, 1000, itl_ms=[10.0] * 99)
    assert interference(table([stream]), table([])) is None
    assert interference(table([stream]), table([request(0, 9, error="cancelled", ttft_ms=None)])) is None
    long = request(500, 760, ttft_ms=200.0)
    assert interference(table([stream | {"gaps_merged": 3}]), table([long])) is None

"""The small parts: addresses, sources, the sent log, clocks, calls, process counts, validity, comparison."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_streams import DONE, decoded, delta, events, usage

from qwenbench.errors import RunError, UsageError
from qwenbench.load.client_error import ClientError, compare, invalid_reason
from qwenbench.load.client_process import SentEntry, SentLog, read_sent_log
from qwenbench.load.clock import ClockWatch, TimedCalls, clock_gap_ns, now_ns
from qwenbench.load.records import to_table
from qwenbench.load.source import SessionSource, encode, shares
from qwenbench.load.spec import ClientHealth, Target, address_of, default_processes
from qwenbench.load.truth.timing import ServedRequest, Timing
from qwenbench.load.worker import ask_for_short_slices
from qwenbench.workload.sessions import SessionPlan, TurnPlan


@pytest.mark.parametrize("url", ["http://h:8000", "http://h:8000/", "http://h:8000/v1", "http://h:8000/v1/"])
def test_base_url_with_and_without_v1(url: str) -> None:
    address = address_of(Target(url))
    assert (address.host, address.port, address.path) == ("h", 8000, "/v1/chat/completions")


def test_prefix_ipv6_default_port_and_endpoint() -> None:
    address = address_of(Target("http://[::1]/serve", endpoint="completions"))
    assert (address.host_header, address.path) == ("[::1]", "/serve/v1/completions")
    assert address_of(Target("https://h")).port == 443


@pytest.mark.parametrize("url", ["h:8000", "http://", "http://h:99999", "file:///etc/passwd"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError):
        address_of(Target(url))


def test_credentials_in_a_url_are_not_repeated() -> None:
    assert "pass" not in repr(address_of(Target("http://user:pass@h:1")))


def plan(index: int) -> SessionPlan:
    return SessionPlan(f"s{index}", "t", (TurnPlan(f"r{index}", 0, "p", "en", {"n": index}),))


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_every_session_is_sent_by_exactly_one_process(count: int, streams: int, processes: int, lazy: bool) -> None:
    plans = [plan(index) for index in range(count)]
    parts = shares(plans, streams, processes) if not lazy else shares(_Endless(plans), streams, processes)
    taken = []
    for part in parts:
        source = SessionSource(part, ahead=3)
        while (one := source.take()) is not None:
            assert one.plan.session_id == f"s{one.index}" and one.first_body == b'{"n":%d}' % one.index
            assert one.index % streams % processes == part.process
            taken.append(one.index)
    assert sorted(taken) == list(range(count))


class _Endless(Sequence[SessionPlan]):
    """A sequence that is neither list nor tuple."""

    def __init__(self, plans: list[SessionPlan]) -> None:
        self._plans = plans

    def __len__(self) -> int:
        return len(self._plans)

    def __getitem__(self, index: Any) -> Any:
        return self._plans[index]


def test_answers_replace_assistant_messages_in_order_and_leave_the_plan_alone() -> None:
    messages = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant", "user")]
    turn = TurnPlan("r", 2, "p", "en", {"messages": messages})
    assert encode(turn, ["A"]).count(b'"content":"A"') == 1
    assert b'"content":"A"},{"role":"user","content":"user"},{"role":"assistant","content":"B"' in encode(
        turn, ["A", "B"]
    )
    assert messages[1]["content"] == "assistant"


def test_sent_log_survives_a_torn_last_entry(tmp_path: Path) -> None:
    path = tmp_path / "log"
    entries = [SentEntry(now_ns(), 5, index, 2, 1) for index in range(3)]
    log = SentLog(path)
    for entry in entries:
        log.add(entry)
    log.close()
    with path.open("ab") as file:
        file.write(b"torn")
    assert read_sent_log(path) == entries
    assert read_sent_log(tmp_path / "none") == []


def test_a_clock_that_steps_and_comes_back_is_seen() -> None:
    gaps = iter([10**18, 10**18 + 200_000, 10**18 - 5_000_000, 10**18])
    watch = ClockWatch(lambda: next(gaps))
    watch.look()
    assert watch.step_ms == 0.2
    watch.look()
    watch.look()
    assert watch.step_ms == 5.0


def test_the_real_clocks_do_not_part() -> None:
    assert abs(clock_gap_ns() - clock_gap_ns()) < 50e6


async def test_timed_calls_run_in_order_of_due_times_and_never_early() -> None:
    calls = TimedCalls(asyncio.get_running_loop())
    start = now_ns()
    called: list[tuple[int, int]] = []
    finished = asyncio.Event()

    def call(number: int, due: int) -> None:
        assert now_ns() >= due
        called.append((number, due))
        if number == 0:
            calls.at(start, lambda: call(9, start))  # long due: at once
        if len(called) == 4:
            finished.set()

    for number, after_ms in enumerate([2, 7, 4]):
        due = start + after_ms * 1_000_000
        calls.at(due, partial(call, number, due))
    await asyncio.wait_for(finished.wait(), 10)
    calls.close()
    assert [number for number, _ in called] == [0, 9, 2, 1]


def test_processes_from_streams_and_cores() -> None:
    assert [default_processes(streams, 16) for streams in (1, 256, 257, 600, 9000)] == [1, 1, 2, 3, 8]
    assert (default_processes(400, 2), default_processes(400, 1)) == (1, 1)


def test_short_slices_leave_priority_and_policy_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert ask_for_short_slices() in (True, False)
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) == (before, os.SCHED_OTHER)


HEALTH = ClientHealth(1, "kernel", 0.4, 1.0, 2.0, 0.01, 14.0)
ERROR = ClientError(64, 0.5, 3.0, 0.1, 0.4, 0.1, 0.9, 0.0, 100, 1, "kernel")


def test_valid_points() -> None:
    assert invalid_reason(HEALTH, ERROR, 50.0, 10.0) is None
    assert invalid_reason(HEALTH, None, None, None) is None
    assert invalid_reason(HEALTH, replace(ERROR, mean_ms=9.9), 200.0, 10.0) is None, "5 % of 200 ms is 10 ms"
    assert invalid_reason(HEALTH, replace(ERROR, itl_mean_ms=0.9), 50.0, 20.0) is None


@pytest.mark.parametrize(
    ("health", "error", "word"),
    [
        (replace(HEALTH, clock_step_ms=1.2), ERROR, "clock"),
        (replace(HEALTH, cpu_share_max=0.95), ERROR, "core"),
        (replace(HEALTH, stamp_source="user", loop_lag_p99_ms=3.0), ERROR, "lagged"),
        (HEALTH, replace(ERROR, mean_ms=2.6), "TTFT"),
        (HEALTH, replace(ERROR, itl_mean_ms=0.6), "ITL"),
    ],
)
def test_invalid_points_name_their_reason(health: ClientHealth, error: ClientError, word: str) -> None:
    reason = invalid_reason(health, error, 50.0, 10.0)
    assert reason is not None and word in reason and "\n" not in reason


def test_a_client_that_was_kept_from_the_cpu_is_no_judge() -> None:
    starved = replace(HEALTH, loop_lag_p99_ms=40.0)
    assert "late to its sockets" in (invalid_reason(starved, ERROR, 50.0, 10.0, 0.3) or "")
    assert invalid_reason(starved, ERROR, 50.0, 10.0, 0.01) is None, "it lagged while nothing came"
    assert invalid_reason(HEALTH, ERROR, 50.0, 10.0, 0.3) is None, "the server sent them together"


def test_compare_leaves_the_servers_lateness_out() -> None:
    """The client saw 52 and +13 ms; the server really sent at 51.5 and +12.9: that much is the client's."""
    row = decoded(events([(52, delta(content="a")), (65, delta(content="b")), (66, usage()), (66, DONE)])).row
    base = 10**18
    served = [ServedRequest("r1", base, (base + 51_500_000, base + 64_400_000))]
    error = compare(to_table([row]), served, Timing(50, 10), 1, "kernel", 1)
    assert error.mean_ms == pytest.approx(0.5)
    assert error.itl_mean_ms == pytest.approx(0.1, abs=1e-5)
    assert error.server_late_mean_ms == pytest.approx(np.mean([1.5, 4.4]))
    with pytest.raises(RunError):
        compare(to_table([row]), [], Timing(50, 10), 1, "kernel", 1)

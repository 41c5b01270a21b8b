"""Whole load points against the built-in truth server, in real client processes."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from load_faulty_server import Call, faulty_server, good

from qwenbench.analysis.request_arrays import RequestArrays
from qwenbench.analysis.window import window_of
from qwenbench.errors import UsageError
from qwenbench.load.client_error import measure_client_error
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.load.run import LoadClient, run_load
from qwenbench.load.spec import ClosedLoop, Enough, LoadProgress, LoadSpec, OpenLoop, Target
from qwenbench.load.truth.process import truth_server
from qwenbench.load.truth.timing import Timing
from qwenbench.workload.sessions import SessionPlan, TurnPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[LoadClient]:
    async with LoadClient() as one:
        yield one


def session(index: int, tokens: int = 5, turns: int = 1, **fields: object) -> SessionPlan:
    def turn(number: int) -> TurnPlan:
        name = f"r{index}.{number}"
        messages = [{"role": "user", "content": "hi"}]
        for past in range(number):
            messages += [{"role": "assistant", "content": f"recorded {past}"}, {"role": "user", "content": "go on"}]
        payload = {"messages": messages, "max_completion_tokens": tokens, "request_id": name}
        return TurnPlan(name, number, f"p{index}", "en", payload, tokens, think_s=0.02 if number else 0.0)

    return SessionPlan(f"s{index}", "test", tuple(map(turn, range(turns))), **fields)  # type: ignore[arg-type]


class LazySessions(Sequence[SessionPlan]):
    """Sessions made when they are asked for; longer than any point."""

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> SessionPlan:  # type: ignore[override]
        return session(index)


async def test_closed_loop_keeps_to_the_truth_and_to_its_concurrency(client: LoadClient) -> None:
    seen: list[LoadProgress] = []
    async with truth_server(Timing(20, 5)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(4), [session(index) for index in range(22)], processes=2)
        result = await client.run(spec, on_progress=seen.append)
        served = {one.request_id: one for one in await server.take_served()}
    table = result.requests
    assert table.schema == REQUEST_SCHEMA
    assert table.num_rows == 22 and table["error"].null_count == 22
    assert set(table["process"].to_pylist()) == {0, 1} and set(table["stream"].to_pylist()) == {0, 1, 2, 3}
    rows = table.to_pylist()
    for row in rows:
        truth = served[row["request_id"]]
        assert row["chunks"] == row["output_tokens"] == 5
        assert row["ttft_ms"] >= truth.ttft_ms - 0.5, "no token can be seen before it was sent"
        assert result.started_ns <= row["sent_ns"] < row["ended_ns"] <= result.ended_ns
        assert len(row["itl_ms"]) + row["gaps_merged"] == 4
    assert seen[-1].ttft_ms == pytest.approx(np.mean([row["ttft_ms"] for row in rows]))
    edges = sorted([(row["sent_ns"], 1) for row in rows] + [(row["ended_ns"], -1) for row in rows])
    assert max(np.cumsum([step for _, step in edges])) == 4
    assert result.health.stamp_source in ("kernel", "user") and result.health.processes == 2
    assert result.health.clock_step_ms < 1
    last = seen[-1]
    assert (last.sent, last.done, last.failed, last.in_flight, last.output_tokens) == (22, 22, 0, 0, 110)


async def test_open_loop_sends_on_schedule_whatever_the_server_does(client: LoadClient) -> None:
    plans = [session(index, start_s=0.03 * index) for index in reversed(range(20))]
    async with truth_server(Timing(200, 5)) as server:
        result = await client.run(LoadSpec(Target(server.base_url), OpenLoop(33), plans))
    rows = sorted(result.requests.to_pylist(), key=lambda row: row["scheduled_ns"])
    assert [round((row["scheduled_ns"] - result.started_ns) / 1e6) for row in rows] == [30 * i for i in range(20)]
    for row in rows:
        assert row["error"] is None
        assert row["waited_ms"] == pytest.approx((row["sent_ns"] - row["scheduled_ns"]) / 1e6)
        assert row["ttft_ms"] >= 199.5 + row["waited_ms"]
    assert rows[5]["sent_ns"] < rows[0]["ended_ns"], "an arrival does not wait for an answer"


async def test_turns_follow_each_other_and_feed_answers_back(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        await call.write(good(2, text=f"{call.number}!"))

    plan = session(0, turns=3, feed_back=True)
    async with faulty_server(behave) as server:
        spec = LoadSpec(Target(f"http://127.0.0.1:{server.port}"), ClosedLoop(1), [plan], save_text=True)
        result = await client.run(spec)
        sent = [body["messages"] for body in server.bodies]
    assert [message["content"] for message in sent[2]] == ["hi", "0!0!", "go on", "1!1!", "go on"]
    assert dict(result.texts) == {"r0.0": "0!0!", "r0.1": "1!1!", "r0.2": "2!2!"}
    first, second, _ = result.requests.to_pylist()
    assert second["ready_ns"] - first["ended_ns"] == 20_000_000, "think time passes before the stream is ready"
    assert second["sent_ns"] >= second["ready_ns"]


async def test_duration_ends_a_lazy_endless_list(client: LoadClient) -> None:
    async with truth_server(Timing(10, 2)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(3), LazySessions(), duration_s=0.3)
        result = await client.run(spec)
        served = await server.take_served()
    assert result.requests["error"].null_count == result.requests.num_rows == len(served)
    assert max(result.requests["sent_ns"].to_pylist()) <= result.started_ns + 0.3e9 + 0.2e9
    assert len(served) >= 3


class LazyTalks(LazySessions):
    """Conversations of one, two or three turns, with a pause between their turns."""

    def __getitem__(self, index: int) -> SessionPlan:  # type: ignore[override]
        return session(index, turns=1 + index % 3)


@pytest.mark.parametrize("processes", [1, 2])
async def test_streams_are_refilled_until_there_is_enough_and_then_drain(client: LoadClient, processes: int) -> None:
    enough = Enough(completions=30, median_requests=4)
    async with truth_server(Timing(20, 5)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(6), LazyTalks(), enough=enough, processes=processes)
        result = await client.run(spec)
        served = await server.take_served()
    rows = result.requests.to_pylist()
    assert result.requests["error"].null_count == len(rows) == len(served)
    assert len(rows) >= 30
    window = window_of(RequestArrays.of(result.requests), "closed", 6)
    assert window is not None and window.kind == "steady"
    assert sum(row["sent_ns"] < window.end_ns for row in rows) >= len(rows) - 6, "the drain sends nothing new"
    talks = {row["session_id"] for row in rows}
    cut = [talk for talk in talks if sum(row["session_id"] == talk for row in rows) < 1 + int(talk[1:]) % 3]
    assert len(cut) <= 6, "only what was under way at the end is cut"


async def test_a_point_that_never_has_enough_ends_with_its_sessions(client: LoadClient) -> None:
    async def fail(call: Call) -> None:
        await call.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")

    async with faulty_server(fail) as server:
        target = Target(f"http://127.0.0.1:{server.port}")
        spec = LoadSpec(target, ClosedLoop(4), [session(i) for i in range(8)], enough=Enough(4, 1))
        result = await client.run(spec)
    assert result.requests.num_rows == 8
    assert result.requests["error"].null_count == 0


async def test_thinking_streams_send_nothing_after_the_wind_down(client: LoadClient) -> None:
    def talk(index: int) -> SessionPlan:
        plan = session(index, turns=2)
        return replace(plan, turns=(plan.turns[0], replace(plan.turns[1], think_s=3600.0)))

    async with truth_server(Timing(10, 2)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(3), [talk(i) for i in range(3)], enough=Enough(3, 0))
        result = await asyncio.wait_for(client.run(spec), 30)  # and not an hour
    assert result.requests.num_rows == 3


async def test_stop_records_what_was_in_flight_as_cancelled(client: LoadClient) -> None:
    stop = asyncio.Event()
    async with truth_server(Timing(10, 200)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(3), [session(i, tokens=100) for i in range(9)])
        result = await client.run(spec, stop=stop, on_progress=lambda told: stop.set() if told.sent else None)
    rows = result.requests.to_pylist()
    assert [row["error"] for row in rows] == ["cancelled"] * 3
    assert all(row["ttft_ms"] is not None and row["chunks"] >= 1 for row in rows)


async def test_a_stop_that_came_before_the_start_sends_nothing_more(client: LoadClient) -> None:
    stop = asyncio.Event()
    stop.set()
    async with truth_server(Timing(10, 200)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(2), [session(i, tokens=100) for i in range(9)])
        result = await client.run(spec, stop=stop)
    assert set(result.requests["error"].to_pylist()) <= {"cancelled"}
    assert result.requests.num_rows <= 2


async def test_answers_are_judged_when_asked_for(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        await call.write(good(300, text="spam ") if call.number else good(3, text="Paris. "))

    async with faulty_server(behave) as server:
        target = Target(f"http://127.0.0.1:{server.port}")
        spec = LoadSpec(target, ClosedLoop(1), [session(0), session(1)], judge_text=True)
        fine, loops = (await client.run(spec)).requests["broken"].to_pylist()
        unjudged = await client.run(LoadSpec(target, ClosedLoop(1), [session(2)]))
    assert fine == [] and loops
    assert unjudged.requests["broken"].to_pylist() == [None]


async def test_a_killed_client_process_loses_no_record() -> None:
    async with LoadClient() as own, truth_server(Timing(10, 150)) as server:
        await own.start(2)
        victim = own._processes[0].pid

        def kill(told: LoadProgress) -> None:
            if told.in_flight == 4:
                os.kill(victim, signal.SIGKILL)

        # long enough for several reports of progress (one a second), whatever else the machine does
        plans = [session(index, tokens=25) for index in range(4)]
        spec = LoadSpec(Target(server.base_url), ClosedLoop(4), plans, processes=2)
        result = await own.run(spec, on_progress=kill)
        errors = {row["request_id"]: row["error"] for row in result.requests.to_pylist()}
        assert errors == {"r0.0": "client", "r1.0": None, "r2.0": "client", "r3.0": None}
        lost = next(row for row in result.requests.to_pylist() if row["error"])
        assert "signal 9" in lost["error_detail"] and lost["sent_ns"] >= result.started_ns
        # and the next point has a whole set of processes again
        again = await own.run(spec)
        assert again.requests["error"].null_count == 4


async def test_processes_are_kept_between_points(client: LoadClient) -> None:
    async with truth_server(Timing(5, 1)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(1), [session(0)])
        await client.run(spec)
        before = {process.pid for process in client._processes}
        await client.run(spec)
    assert {process.pid for process in client._processes} == before


async def test_run_load_ends_its_processes() -> None:
    async with truth_server(Timing(5, 1)) as server:
        spec = LoadSpec(Target(server.base_url + "/v1/"), ClosedLoop(1), [session(0)], cpus=(_any_cpu(),))
        result = await run_load(spec)
    assert result.requests["error"].to_pylist() == [None]
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children.read_text().split()]
        assert sum(b"qwenbench.load.worker" in command for command in commands) <= 2, "only the fixture's"


def _any_cpu() -> int:
    return min(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "spec",
    [
        LoadSpec(Target("ftp://x"), ClosedLoop(1), [session(0)]),
        LoadSpec(Target("http://x", endpoint="images"), ClosedLoop(1), [session(0)]),
        LoadSpec(Target("http://x", headers={"A": "b\r\nc"}), ClosedLoop(1), [session(0)]),
        LoadSpec(Target("http://x"), ClosedLoop(0), [session(0)]),
        LoadSpec(Target("http://x"), ClosedLoop(1), [session(0)], processes=0),
        LoadSpec(Target("http://x"), ClosedLoop(1), [session(0)], cpus=(9999,)),
        LoadSpec(Target("http://no-such-host.invalid"), ClosedLoop(1), [session(0)]),
    ],
)
async def test_what_cannot_be_used_is_refused_in_one_line(client: LoadClient, spec: LoadSpec) -> None:
    with pytest.raises(UsageError) as raised:
        await client.run(spec)
    assert "\n" not in str(raised.value)


async def test_self_check_measures_once_and_remembers(client: LoadClient, tmp_path: Path) -> None:
    first = await measure_client_error(2, client=client, cache_dir=tmp_path)
    again = await measure_client_error(2, client=client, cache_dir=tmp_path)
    assert not first.cached and again.cached
    assert again.mean_ms == first.mean_ms >= 0
    assert first.requests > 4 and first.p99_ms >= first.mean_ms / 100


async def test_many_streams_are_read_in_rounds_without_losing_a_time(client: LoadClient) -> None:
    """From 100 streams on the client rests between reads; the kernel's stamps must not suffer from it."""
    async with truth_server(Timing(60, 20)) as server:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(100), [session(index) for index in range(200)])
        result = await client.run(spec)
        served = {one.request_id: one for one in await server.take_served()}
    assert result.requests["error"].null_count == result.requests.num_rows == 200
    for row in result.requests.to_pylist():
        truth = served[row["request_id"]]
        assert row["chunks"] == 5 and row["ttft_ms"] >= truth.ttft_ms - 0.5

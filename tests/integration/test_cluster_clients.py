"""A load split over several client nodes, whose clocks are seconds apart: begun together, joined on one clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
import pytest
from test_load_run import LazySessions

from qwenbench.analysis.request_arrays import RequestArrays
from qwenbench.analysis.window import window_of
from qwenbench.cluster import load_node
from qwenbench.cluster.clients import Offset, RemoteClients, worst_error
from qwenbench.cluster.fleet import LostError
from qwenbench.cluster.load_node import LoadNode
from qwenbench.errors import UsageError
from qwenbench.load.client_error import ClientError
from qwenbench.load.clock import NS_PER_S, now_ns
from qwenbench.load.spec import ClosedLoop, Enough, LoadProgress, LoadResult, LoadSpec, OpenLoop, Target
from qwenbench.load.truth.process import truth_server
from qwenbench.load.truth.timing import Timing
from qwenbench.sweep.options import SweepOptions
from qwenbench.workload.sessions import SessionPlan

STAMPS = ("scheduled_ns", "ready_ns", "sent_ns", "ended_ns")


class Elsewhere:
    """A node in this process whose clock is `ahead_s` ahead."""

    def __init__(self, name: str, ahead_s: float, options: SweepOptions) -> None:
        self.name = name
        self._ahead = int(ahead_s * NS_PER_S)
        self._node = LoadNode(options)
        self.gone_after: str | None = None
        self.called: list[str] = []

    async def call(self, method: str, *arguments: Any, limit_s: float = 60.0) -> Any:
        self.called.append(method)
        if self.gone_after in self.called[:-1]:
            raise LostError(f"{self.name}: it died")
        if method == "clock":
            return now_ns() + self._ahead
        if method == "go":
            arguments = (arguments[0] - self._ahead,)
        value = await getattr(self._node, method)(*arguments)
        if not isinstance(value, LoadResult):
            return value
        table = value.requests
        for name in STAMPS:
            table = table.set_column(table.column_names.index(name), name, pc.add(table[name], self._ahead))
        return replace(value, requests=table, ended_ns=value.ended_ns + self._ahead)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> SweepOptions:
    monkeypatch.setattr(load_node, "plain_environment", lambda: None)
    return SweepOptions()


@asynccontextmanager
async def nodes(options: SweepOptions, *ahead_s: float) -> AsyncIterator[list[Elsewhere]]:
    hosts = [Elsewhere(f"node{number}", ahead, options) for number, ahead in enumerate(ahead_s)]
    try:
        yield hosts
    finally:
        for host in hosts:
            host.gone_after = None
            await host.call("close")


class Timed(LazySessions):
    """A session every 20 ms, 24 of them."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> SessionPlan:  # type: ignore[override]
        if index >= len(self):
            raise IndexError
        return replace(super().__getitem__(index), start_s=0.02 * index)


async def test_a_closed_loop_is_full_over_all_nodes_until_there_is_enough(options: SweepOptions) -> None:
    async with truth_server(Timing(20, 5)) as server, nodes(options, 5.0, -3.0) as hosts:
        clients = RemoteClients(hosts, "auto")
        await clients.check(server.base_url)
        spec = LoadSpec(Target(server.base_url), ClosedLoop(7), LazySessions(), enough=Enough(40, 4), processes=1)
        told: list[LoadProgress] = []
        result = await clients.run(spec, on_progress=told.append)
        served = await server.take_served()
    rows = result.requests.to_pylist()
    assert result.client_lost is None and result.health.processes == 2
    assert {row["request_id"] for row in rows} == {one.request_id for one in served}
    assert len(rows) == len(served) >= 40, "every session once"
    assert {row["stream"] for row in rows} == set(range(7))
    assert all(row["stream"] % 2 == row["process"] for row in rows)
    assert all(result.started_ns - NS_PER_S < row["sent_ns"] <= row["ended_ns"] < now_ns() for row in rows)
    window = window_of(RequestArrays.of(result.requests), "closed", 7)
    assert window is not None and window.kind == "steady", "both nodes' streams were there at one time"
    assert told[-1].done >= 40
    first, second = clients.to_json()
    assert abs(first["clock_offset_ms"] - 5000) <= first["clock_error_ms"] + 1
    assert abs(second["clock_offset_ms"] + 3000) <= second["clock_error_ms"] + 1
    assert first["connect_ms"] is not None and "clock +5" in clients.told()


async def test_an_open_loop_keeps_to_one_schedule(options: SweepOptions) -> None:
    async with truth_server(Timing(10, 2)) as server, nodes(options, 4.0, 0.0, -4.0) as hosts:
        result = await RemoteClients(hosts, "auto").run(LoadSpec(Target(server.base_url), OpenLoop(50.0), Timed()))
    rows = result.requests.to_pylist()
    assert sorted(row["session_id"] for row in rows) == sorted(f"s{index}" for index in range(24))
    due = {row["session_id"]: row["scheduled_ns"] - result.started_ns for row in rows}
    assert all(abs(due[f"s{index}"] - index * 20e6) < 15e6 for index in range(24)), due


async def test_fewer_streams_than_nodes_leave_nodes_out(options: SweepOptions) -> None:
    async with truth_server(Timing(10, 2)) as server, nodes(options, 0.0, 0.0) as hosts:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(1), [LazySessions()[index] for index in range(3)])
        result = await RemoteClients(hosts, "auto").run(spec)
        assert not hosts[1].called
    assert result.requests.num_rows == 3


@pytest.mark.parametrize("after", ["prepare", "go"])
async def test_a_lost_node_makes_the_point_lost_and_ends_the_others(options: SweepOptions, after: str) -> None:
    async with truth_server(Timing(10, 500)) as server, nodes(options, 0.0, 0.0) as hosts:
        hosts[1].gone_after = after
        spec = LoadSpec(Target(server.base_url), ClosedLoop(2), LazySessions())
        result = await RemoteClients(hosts, "auto").run(spec)
        assert result.client_lost is not None and result.client_lost.startswith("node1: it died; ")
        if after == "go":
            assert "stop" in hosts[0].called


SHORT = LoadSpec(Target(""), ClosedLoop(4), [LazySessions()[index] for index in range(8)], processes=1)


async def test_another_node_takes_a_lost_ones_place_for_the_next_load(options: SweepOptions) -> None:
    async with truth_server(Timing(10, 5)) as server, nodes(options, 0.0, 2.0, 3.0, 4.0) as hosts:
        used, spares = hosts[:2], iter(hosts[2:])

        async def spare() -> Elsewhere | None:
            return next(spares, None)

        clients = RemoteClients(used, "auto", spare)
        await clients.check(server.base_url)
        spec = replace(SHORT, target=Target(server.base_url))
        hosts[1].gone_after = "hello"
        hosts[2].gone_after = "hello"
        lost = await clients.run(spec)
        result = await clients.run(spec)
    assert lost.client_lost is not None and not lost.requests.num_rows
    assert "node1: it died; its streams come from node3, clock +" in lost.client_lost
    assert result.client_lost is None and result.requests.num_rows == 8
    assert result.requests.filter(pc.equal(result.requests["stream"], 1)).num_rows == 2
    assert "news" in hosts[3].called and "prepare" not in hosts[2].called
    assert {one["node"] for one in clients.to_json()} == {"node0", "node1", "node3"}


async def test_the_nodes_that_are_left_share_a_lost_ones_streams(options: SweepOptions) -> None:
    async with truth_server(Timing(10, 5)) as server, nodes(options, 0.0, 2.0) as hosts:
        clients = RemoteClients(hosts, "auto")
        await clients.check(server.base_url)
        spec = replace(SHORT, target=Target(server.base_url))
        hosts[1].gone_after = "hello"
        lost = await clients.run(spec)
        result = await clients.run(spec)
        assert lost.client_lost == "node1: it died; its streams come from node0 from the next load on"
        assert result.client_lost is None and set(result.requests["stream"].to_pylist()) == set(range(4))
        hosts[0].gone_after = "hello"
        for _ in range(2):
            last = await clients.run(spec)
            assert last.client_lost == "node0: it died; no other node is left that could send its streams"


async def test_the_user_stops_all(options: SweepOptions) -> None:
    stop = asyncio.Event()
    async with truth_server(Timing(10, 500)) as server, nodes(options, 0.0, 0.0) as hosts:
        spec = LoadSpec(Target(server.base_url), ClosedLoop(2), LazySessions())
        result = await RemoteClients(hosts, "auto").run(spec, stop=stop, on_progress=lambda _: stop.set())
    assert set(result.requests["error"].to_pylist()) == {"cancelled"}


async def test_a_server_that_a_node_cannot_reach_and_a_missing_variable_are_one_line(options: SweepOptions) -> None:
    async with nodes(options, 0.0) as hosts:
        with pytest.raises(UsageError, match=r"node node0: it cannot reach http://127\.0\.0\.1:1: .*that every node"):
            await RemoteClients(hosts, "auto").check("http://127.0.0.1:1")
    async with nodes(SweepOptions(header_env={"X-Key": "QWENBENCH_TEST_UNSET"}), 0.0) as hosts:
        with pytest.raises(UsageError, match=r"node node0: .*QWENBENCH_TEST_UNSET is not set"):
            await RemoteClients(hosts, "auto").check()


def test_the_error_is_the_worst_nodes_in_each_figure() -> None:
    good = ClientError(8, 0.1, 9.0, None, None, 0.1, 0.2, 0.0, 90, 1, "kernel", 50.0)
    other = ClientError(8, 0.4, 1.0, 0.2, 0.3, 0.0, 0.1, 0.1, 80, 2, "user", 40.0, cached=True)
    worst = worst_error([good, other], 16)
    assert worst == ClientError(16, 0.4, 9.0, 0.2, 0.3, 0.1, 0.2, 0.1, 80, 3, "user", 40.0, cached=False)


def test_clocks_that_drift_apart_widen_the_offsets_error() -> None:
    assert Offset(100, 10).with_later(Offset(160, 20)) == Offset(130, 50)

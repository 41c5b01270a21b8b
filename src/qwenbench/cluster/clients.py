"""Load from other nodes than the sweep's own, as one client: split over them, begun at one moment, joined again.

All times of a request are of one node's clock, so no clock is in a latency. To lay the nodes' rows beside each other
and beside the server's samples, each clock's offset is measured by round trips (as NTP does; RFC 5905, section 8): the
shortest of several leaves the least error, half of its length.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from qwenbench.bounded_http import WaitLimit
from qwenbench.cluster.fleet import LostError
from qwenbench.cluster.load_node import Hello, LoadNode
from qwenbench.cluster.node import LOOK_S
from qwenbench.cluster.ray_fleet import answer_of, node_name, pinned
from qwenbench.errors import UsageError
from qwenbench.load.client_error import ClientError
from qwenbench.load.clients import Client
from qwenbench.load.clock import NS_PER_MS, now_ns
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.load.run import OnProgress, count_waits, total_progress
from qwenbench.load.spec import (
    ClientHealth,
    Decided,
    LoadProgress,
    LoadResult,
    LoadSpec,
    default_processes,
    streams_to_open,
)
from qwenbench.sweep.options import SweepOptions

_ROUND_TRIPS = 20
_LEAD_NS = 250 * NS_PER_MS
"""From the agreement to the agreed moment: it has to arrive everywhere before."""
_PREPARE_S, _CHECK_S, _SILENCE_S = 150.0, 60.0, 60.0
_STAMPS = ("scheduled_ns", "ready_ns", "sent_ns", "ended_ns")


class Host(Protocol):
    """A node with a LoadNode."""

    @property
    def name(self) -> str:
        """For people."""

    async def call(self, method: str, *arguments: Any, limit_s: float = _SILENCE_S) -> Any:
        """Calls the LoadNode. Raises what that raises (UsageError, RunError), and LostError when it is gone."""


class RayHost:
    """A LoadNode as a Ray actor on one node; it ends with the process that made it."""

    def __init__(self, ray: ModuleType, node: Mapping[str, Any], options: SweepOptions) -> None:
        self.name = node_name(node)
        self._ray = ray
        self._actor = pinned(ray.remote(LoadNode), node, max_restarts=0, max_concurrency=8).remote(options)

    async def call(self, method: str, *arguments: Any, limit_s: float = _SILENCE_S) -> Any:
        """See Host."""
        try:
            return await answer_of(self._ray, getattr(self._actor, method).remote(*arguments), limit_s)
        except LostError as error:
            raise LostError(f"{self.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a node's clock is ahead of ours."""

    ns: int
    error_ns: int

    def with_later(self, later: Offset) -> Offset:
        """Over a time at whose ends it was measured: the middle, its error with what the clocks drifted apart."""
        drift = abs(later.ns - self.ns) // 2
        return Offset((self.ns + later.ns) // 2, max(self.error_ns, later.error_ns) + drift)


async def measure_offset(host: Host) -> Offset:
    """By the shortest of some round trips. Raises LostError."""
    found = []
    for _ in range(_ROUND_TRIPS):
        before = now_ns()
        there = await host.call("clock")
        after = now_ns()
        found.append(Offset(there - (before + after) // 2, (after - before + 1) // 2))
    return min(found, key=lambda offset: offset.error_ns)


@dataclass
class _Known:
    """A node, and what is known of it. It is a Host as well."""

    host: Host
    cores: int = 1
    connect_ms: float | None = None
    offset: Offset | None = None
    """Of its clock, when it was known worst."""
    lost: str | None = None
    """Why it can send nothing more."""

    @property
    def name(self) -> str:
        return self.host.name

    async def call(self, method: str, *arguments: Any, limit_s: float = _SILENCE_S) -> Any:
        """See Host."""
        try:
            return await self.host.call(method, *arguments, limit_s=limit_s)
        except LostError as error:
            self.lost = str(error)
            raise

    def keep(self, offset: Offset) -> None:
        if self.offset is None or offset.error_ns > self.offset.error_ns:
            self.offset = offset

    async def look(self, base_url: str | None) -> None:
        """Raises UsageError for a node that can send nothing, LostError."""
        hello: Hello = await self.call("hello", limit_s=LOOK_S)
        if hello.problem is not None:
            raise UsageError(f"--cluster: node {self.name}: {hello.problem}")
        self.cores = hello.cores
        if base_url is not None:
            try:
                self.connect_ms = await self.call("reach", base_url)
            except UsageError as error:
                advice = "Give the server an address that every node reaches, and open its port to them."
                raise UsageError(f"--cluster: node {self.name}: {error}. {advice}") from None
        self.keep(await measure_offset(self))

    def to_json(self) -> dict[str, Any]:
        clock = self.offset
        return {
            "node": self.name,
            "clock_offset_ms": None if clock is None else round(clock.ns / NS_PER_MS, 4),
            "clock_error_ms": None if clock is None else round(clock.error_ns / NS_PER_MS, 4),
            "connect_ms": None if self.connect_ms is None else round(self.connect_ms, 4),
        }

    def __str__(self) -> str:
        told = self.name
        if self.offset is not None:
            told += f", clock {self.offset.ns / NS_PER_MS:+.2f} ms ± {self.offset.error_ns / NS_PER_MS:.2f}"
        return told if self.connect_ms is None else f"{told}, connects in {self.connect_ms:.2f} ms"


async def _none() -> None:
    return None


class RemoteClients:
    """Nodes that send a load together; the sweep's Clients, and its one Client.

    A node that is lost costs the point under way; for the next one another node takes its place, or the ones that are
    left take its streams.
    """

    def __init__(
        self, hosts: Sequence[Host], cluster: str, spare: Callable[[], Awaitable[Host | None]] = _none
    ) -> None:
        """`spare`: a further node of the cluster; None when there is none."""
        self.cluster = cluster
        self._known = [_Known(host) for host in hosts]
        self._gone: list[_Known] = []
        self._spare = spare
        self._base_url: str | None = None

    async def check(self, base_url: str | None = None) -> None:
        """Looks at the nodes, their clocks and, where a URL is given, their ways to it. Raises UsageError."""
        self._base_url = base_url
        try:
            await asyncio.gather(*(known.look(base_url) for known in self._known))
        except LostError as error:
            raise UsageError(f"--cluster: a node cannot be used: {error}") from None

    def told(self) -> str:
        """The nodes, their clocks and their ways to the server, as a line."""
        nodes = "; ".join(map(str, self._known))
        return f"the load comes from {nodes}. Each latency is of one node's clock and holds its way to the server"

    def to_json(self) -> list[dict[str, Any]]:
        """See Clients."""
        return [known.to_json() for known in (*self._known, *self._gone)]

    def client(self) -> AbstractAsyncContextManager[Client]:
        """See Clients."""
        return nullcontext(self)

    async def measure_error(self, concurrency: int) -> ClientError | None:
        """Each node's at its share of the streams, all at once; of each figure the worst node's. See Clients."""
        hosts = self._known[:concurrency]
        share = -(-concurrency // len(hosts))
        try:
            found = await asyncio.gather(*(host.call("measure_error", share, limit_s=_CHECK_S) for host in hosts))
        except LostError:
            return None
        return worst_error(found, concurrency)

    async def run(
        self,
        spec: LoadSpec,
        *,
        on_progress: OnProgress | None = None,
        stop: asyncio.Event | None = None,
        decided: Decided | None = None,
        limit: WaitLimit | None = None,
    ) -> LoadResult:
        """See LoadClient.run, but that nothing else than the plan decides when a load ends, and that each node waits
        for answers as long as one request may take. A node that is lost makes the result `client_lost`, which says who
        sends its streams from now on."""
        assert decided is None, "searches run on one machine"
        hosts = self._known[: streams_to_open(spec)]
        streams = -(-streams_to_open(spec) // len(hosts))
        processes = spec.processes or default_processes(streams, min(host.cores for host in hosts))
        bare = replace(spec, target=replace(spec.target, headers={}), processes=processes)
        began = now_ns()
        try:
            before = await asyncio.gather(*map(measure_offset, hosts))
            shares = [replace(bare, part=(number, len(hosts))) for number in range(len(hosts))]
            await _all(hosts, "prepare", [(share,) for share in shares], limit_s=_PREPARE_S)
            started_ns = now_ns() + _LEAD_NS + max(offset.error_ns for offset in before)
            await _all(hosts, "go", [(started_ns + offset.ns,) for offset in before])
            results = await _Watch(hosts, on_progress, stop).results()
            after = await asyncio.gather(*map(measure_offset, hosts))
        except LostError as error:
            health = ClientHealth(len(hosts), "unknown", 0.0, None, None, 0.0)
            told = f"{error}; {await self._without_the_lost()}"
            return LoadResult(REQUEST_SCHEMA.empty_table(), began, now_ns(), health, client_lost=told)
        offsets = [first.with_later(last) for first, last in zip(before, after, strict=True)]
        for host, offset in zip(hosts, offsets, strict=True):
            host.keep(offset)
        result = joined(results, [offset.ns for offset in offsets], started_ns)
        if limit is not None and result.client_lost is None:
            count_waits(result, limit)
        return result

    async def _without_the_lost(self) -> str:
        """Puts another node in the place of each that is lost, as long as there are any; in words."""
        lost = [known for known in self._known if known.lost is not None]
        self._known = [known for known in self._known if known.lost is None]
        self._gone += lost
        told: list[str] = []
        while len(told) < len(lost) and (host := await self._spare()) is not None:
            new = _Known(host)
            with contextlib.suppress(UsageError, LostError):  # then the next one
                await new.look(self._base_url)
                self._known.append(new)
                told.append(str(new))
        if not self._known:
            self._known, self._gone = lost, [known for known in self._gone if known not in lost]
            return "no other node is left that could send its streams"
        where = ", ".join(told if len(told) == len(lost) else [known.name for known in self._known])
        return f"its streams come from {where} from the next load on"


async def _all(
    hosts: Sequence[Host], method: str, arguments: Sequence[tuple[Any, ...]], limit_s: float = _SILENCE_S
) -> None:
    calls = [host.call(method, *given, limit_s=limit_s) for host, given in zip(hosts, arguments, strict=True)]
    await asyncio.gather(*calls)


class _Watch:
    """A load under way on several nodes."""

    def __init__(self, hosts: Sequence[Host], on_progress: OnProgress | None, stop: asyncio.Event | None) -> None:
        self._hosts = hosts
        self._on_progress = on_progress
        self._stop = stop
        self._parts = [LoadProgress(0, 0, 0, 0, 0) for _ in hosts]
        self._over = [False for _ in hosts]
        self._winding_down = len(hosts) == 1  # one node alone sees itself when it has enough

    async def results(self) -> list[LoadResult]:
        """Waits for all. Raises LostError when a node is lost; the others are stopped then."""
        stopping = asyncio.ensure_future(self._stop_when_asked())
        try:
            return await asyncio.gather(*(self._follow(number) for number in range(len(self._hosts))))
        except BaseException:
            await asyncio.gather(*(host.call("stop") for host in self._hosts), return_exceptions=True)
            raise
        finally:
            stopping.cancel()

    async def _follow(self, number: int) -> LoadResult:
        while True:
            news = await self._hosts[number].call("news")
            if isinstance(news, LoadResult):
                self._over[number] = True
                return news
            self._parts[number] = news
            if self._on_progress is not None:
                self._on_progress(total_progress(self._parts))
            enough = [over or part.enough for over, part in zip(self._over, self._parts, strict=True)]
            if all(enough) and not self._winding_down:
                self._winding_down = True
                await _all(self._hosts, "wind_down", [()] * len(self._hosts))

    async def _stop_when_asked(self) -> None:
        if self._stop is not None:
            await self._stop.wait()
            await _all(self._hosts, "stop", [()] * len(self._hosts))


def joined(results: Sequence[LoadResult], ahead_ns: Sequence[int], started_ns: int) -> LoadResult:
    """What nodes measured together, on our clock; their clocks are so far ahead of it.

    The client's health is the worst node's in each figure.
    """
    tables = []
    for result, ahead in zip(results, ahead_ns, strict=True):
        table = result.requests
        for name in _STAMPS:
            index = table.column_names.index(name)
            table = table.set_column(index, table.schema.field(index), pc.subtract(table[name], pa.scalar(ahead)))
        tables.append(table)
    requests = pa.concat_tables(tables).sort_by("sent_ns")
    healths = [result.health for result in results]
    tokens = [int(pc.sum(result.requests["output_tokens"]).as_py() or 0) for result in results]
    costs = [health.cpu_us_per_token for health in healths]
    spent = [cost * count for cost, count in zip(costs, tokens, strict=True) if cost is not None]
    health = ClientHealth(
        processes=sum(one.processes for one in healths),
        stamp_source=min((one.stamp_source for one in healths), key=lambda source: source == "kernel"),
        cpu_share_max=max(one.cpu_share_max for one in healths),
        loop_lag_p99_ms=_largest(one.loop_lag_p99_ms for one in healths),
        loop_lag_max_ms=_largest(one.loop_lag_max_ms for one in healths),
        clock_step_ms=max(one.clock_step_ms for one in healths),
        cpu_us_per_token=sum(spent) / sum(tokens) if len(spent) == len(costs) and any(tokens) else None,
    )
    texts = {name: text for result in results for name, text in result.texts.items()}
    ended = max(result.ended_ns - ahead for result, ahead in zip(results, ahead_ns, strict=True))
    lost = next((result.client_lost for result in results if result.client_lost is not None), None)
    waited_s = min(result.waited_s for result in results)
    return LoadResult(requests, started_ns, ended, health, texts, lost, waited_s)


def worst_error(found: Sequence[ClientError], concurrency: int) -> ClientError:
    """The error of clients that send `concurrency` streams together: of each figure the worst one's."""
    return ClientError(
        concurrency=concurrency,
        mean_ms=max(one.mean_ms for one in found),
        p99_ms=max(one.p99_ms for one in found),
        itl_mean_ms=_largest(one.itl_mean_ms for one in found),
        itl_p99_ms=_largest(one.itl_p99_ms for one in found),
        server_late_mean_ms=max(one.server_late_mean_ms for one in found),
        server_late_p99_ms=max(one.server_late_p99_ms for one in found),
        merged_share=max(one.merged_share for one in found),
        requests=min(one.requests for one in found),
        processes=sum(one.processes for one in found),
        stamp_source=min((one.stamp_source for one in found), key=lambda source: source == "kernel"),
        measured_at=min(one.measured_at for one in found),
        cached=all(one.cached for one in found),
    )


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

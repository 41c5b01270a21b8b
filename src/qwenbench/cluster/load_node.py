"""On a node: the Ray actor that sends a load, or its share of one. Every time is taken there, by that node's clock."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass, replace

from qwenbench.cluster.node import plain_environment
from qwenbench.errors import UsageError
from qwenbench.load.client_error import ClientError, measure_client_error
from qwenbench.load.clock import now_ns
from qwenbench.load.run import LoadClient
from qwenbench.load.spec import LoadProgress, LoadResult, LoadSpec, Target, address_of
from qwenbench.sweep.context import resolve_headers
from qwenbench.sweep.options import SweepOptions

_NEWS_S = 1.0
_CONNECTS = 5
_CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Hello:
    """What a node tells of itself."""

    name: str
    cores: int
    problem: str | None = None
    """Why it can send nothing."""


class LoadNode:
    """A client machine. For each load: `prepare`, `go`, then `news` until it is a result."""

    def __init__(self, options: SweepOptions) -> None:
        plain_environment()
        self._options = options
        self._client = LoadClient()
        self._headers: dict[str, str] = {}

    async def hello(self) -> Hello:
        """Who it is; headers are made of its own environment, so that no secret passes over Ray."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        try:
            self._headers = resolve_headers(self._options)
        except UsageError as error:
            return Hello(socket.gethostname(), cores, str(error))
        return Hello(socket.gethostname(), cores)

    async def clock(self) -> int:
        """CLOCK_REALTIME here, in ns."""
        return now_ns()

    async def reach(self, base_url: str) -> float | None:
        """The shortest of a few connects to the server, in ms; None through a proxy.

        Raises UsageError when none comes about.
        """
        address = address_of(Target(base_url))
        if address.proxied:
            return None
        times = []
        for _ in range(_CONNECTS):
            began = time.perf_counter()
            try:
                opening = asyncio.open_connection(address.host, address.port)
                _, writer = await asyncio.wait_for(opening, _CONNECT_S)
            except (OSError, TimeoutError) as error:
                raise UsageError(f"it cannot reach {base_url}: {error or 'no answer'}") from None
            times.append((time.perf_counter() - began) * 1000)
            writer.close()
        return min(times)

    async def measure_error(self, concurrency: int) -> ClientError:
        """See measure_client_error. Raises RunError."""
        return await measure_client_error(concurrency)

    async def prepare(self, spec: LoadSpec) -> None:
        """Opens the connections of a load that `go` begins. Raises UsageError and RunError as LoadClient does."""
        self._progress = LoadProgress(0, 0, 0, 0, 0)
        self._winding_down = False
        self._stop = asyncio.Event()
        self._start: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        ready = asyncio.Event()

        def tell(progress: LoadProgress) -> None:
            self._progress = progress

        async def start_at() -> int:
            ready.set()
            return await self._start

        own = replace(spec, target=replace(spec.target, headers=self._headers))
        running = self._client.run(
            own, on_progress=tell, stop=self._stop, decided=lambda _: self._winding_down, start_at=start_at
        )
        self._running: asyncio.Future[LoadResult] = asyncio.ensure_future(running)
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait({self._running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._running.done():
            self._running.result()

    async def go(self, start_ns: int) -> None:
        """Lets the streams go at this CLOCK_REALTIME ns of this node."""
        if not self._start.done():
            self._start.set_result(start_ns)

    async def news(self) -> LoadProgress | LoadResult:
        """How far the load is, after a second at most; its result, once it has ended."""
        await asyncio.wait({self._running}, timeout=_NEWS_S)
        return self._running.result() if self._running.done() else self._progress

    async def wind_down(self) -> None:
        """Sends nothing new, and finishes what is under way."""
        self._winding_down = True

    async def stop(self) -> None:
        """Ends the load early."""
        self._stop.set()

    async def close(self) -> None:
        """Ends the client processes."""
        await self._client.close()

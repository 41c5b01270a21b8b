"""Who sends a sweep's load, and how late that client is: this machine, or others (cluster/clients.py)."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from qwenbench.bounded_http import WaitLimit
from qwenbench.load.client_error import ClientError, measure_client_error
from qwenbench.load.run import LoadClient, OnProgress
from qwenbench.load.spec import Decided, LoadResult, LoadSpec


class Client(Protocol):
    """Sends one load after the other."""

    async def run(
        self,
        spec: LoadSpec,
        *,
        on_progress: OnProgress | None = None,
        stop: asyncio.Event | None = None,
        decided: Decided | None = None,
        limit: WaitLimit | None = None,
    ) -> LoadResult:
        """See LoadClient.run."""


class Clients(Protocol):
    """The machines that a sweep's loads come from."""

    @property
    def cluster(self) -> str | None:
        """The address of the cluster that they are of; None: they are of none."""

    def client(self) -> AbstractAsyncContextManager[Client]:
        """A client for one server at a time."""

    async def measure_error(self, concurrency: int) -> ClientError | None:
        """How late these clients are at so many streams in all, see measure_client_error; None: one of them is gone."""

    def to_json(self) -> list[dict[str, Any]]:
        """Other machines than the sweep's own, for run.json: their names, clocks and ways to the server."""


class OwnClients:
    """This machine."""

    cluster = None

    def client(self) -> AbstractAsyncContextManager[Client]:
        """See Clients."""
        return LoadClient()

    async def measure_error(self, concurrency: int) -> ClientError | None:
        """See Clients."""
        return await measure_client_error(concurrency)

    def to_json(self) -> list[dict[str, Any]]:
        """See Clients."""
        return []

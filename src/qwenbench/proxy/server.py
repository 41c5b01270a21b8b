"""The proxy as a listening server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qwenbench.errors import UsageError
from qwenbench.proxy.client_side import ClientConnection
from qwenbench.proxy.relay import ProxyOptions, Relay
from qwenbench.proxy.target_side import TargetAddress, TargetPool

GRACE_S = 5.0
"""At the end answers under way get so long to finish."""
_BACKLOG = 1024


@asynccontextmanager
async def serving(target: TargetAddress, options: ProxyOptions, host: str, port: int) -> AsyncIterator[int]:
    """Serves until the block ends; gives the port (port 0: a free one).

    Raises UsageError when the address cannot be bound.
    """
    loop = asyncio.get_running_loop()
    pool = TargetPool(target)
    relay = Relay(options, pool)
    clients: set[ClientConnection] = set()
    try:
        server = await loop.create_server(lambda: ClientConnection(relay.handle, clients), host, port, backlog=_BACKLOG)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"--host {host} --port {port}: cannot be bound: {reason}. Is it taken? Try --port 0."
        ) from error
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await _drained(clients)
        for client in list(clients):
            client.abort()
        pool.close()
        await asyncio.sleep(0)


async def _drained(clients: set[ClientConnection]) -> None:
    """Returns when no client is being answered, or after GRACE_S."""
    loop = asyncio.get_running_loop()
    end = loop.time() + GRACE_S
    while clients and loop.time() < end:
        for client in list(clients):
            client.close_when_idle()
        await asyncio.sleep(0.02)

"""The proxy as a listening server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qwenbench.errors import UsageError
from qwenbench.http1.reading import Limits
from qwenbench.http1.server import HttpServer
from qwenbench.proxy.relay import ProxyOptions, Relay
from qwenbench.proxy.target import TargetAddress, TargetPool

GRACE_S = 5.0
"""At the end answers under way get so long to finish."""


@asynccontextmanager
async def serving(
    target: TargetAddress, options: ProxyOptions, host: str, port: int, *, limits: Limits | None = None
) -> AsyncIterator[int]:
    """Serves until the block ends; gives the port (port 0: a free one).

    Raises UsageError when the address cannot be bound.
    """
    pool = TargetPool(target)
    server = HttpServer(Relay(options, pool).handle, limits=limits)
    try:
        bound = await server.start(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"--host {host} --port {port}: cannot be bound: {reason}. Is it taken? Try --port 0."
        ) from error
    try:
        yield bound
    finally:
        await server.close(GRACE_S)
        pool.close()
        await asyncio.sleep(0)

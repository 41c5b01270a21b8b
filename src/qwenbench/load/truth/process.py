"""The truth server as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from qwenbench.errors import RunError
from qwenbench.load.truth.timing import ServedRequest, Timing

_START_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class RunningTruth:
    """A truth server that answers at `base_url`."""

    base_url: str
    timing: Timing

    async def take_served(self) -> list[ServedRequest]:
        """Every request served since the last call."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.base_url}/served") as answer:
            rows: list[dict[str, Any]] = await answer.json()
        return [ServedRequest(row["request_id"], row["received_ns"], tuple(row["sent_ns"])) for row in rows]


@contextlib.asynccontextmanager
async def truth_server(timing: Timing) -> AsyncIterator[RunningTruth]:
    """Start a truth server on a free port of this host and end it afterwards. Raises RunError."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "qwenbench.load.truth.server"),
        *("--ttft-ms", str(timing.ttft_ms), "--itl-ms", str(timing.itl_ms)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                line = (await process.stdout.readline()).split()
        except TimeoutError:
            line = []
        if len(line) != 2:
            raise RunError("the built-in truth server did not start; the client's own error is not known")
        yield RunningTruth(f"http://127.0.0.1:{int(line[1])}", timing)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(3):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

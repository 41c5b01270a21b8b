"""Each habit of bench/habit_server.py through the whole of `bench`'s probe and load client."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from habit_server import HABITS
from habits import measure
from qwenbench.load.run import LoadClient


@pytest.mark.parametrize("name", list(HABITS))
def test_a_habit_is_measured_or_told(habits: str, name: str) -> None:
    async def run() -> dict[str, object]:
        async with LoadClient() as client, aiohttp.ClientSession() as session:
            return await measure(client, session, habits, name)

    found = asyncio.run(run())
    expected = HABITS[name].expected
    failing = bool(HABITS[name].instead) or HABITS[name].end == "cut" or HABITS[name].status != 200
    assert (found["ttft"] is None) == failing
    assert (found["e2e"] is None) == failing
    assert (found["tpot"] is None) == (failing or "tokens unknown" in expected)
    assert all(word in str(found["told"]) for word in expected.removeprefix("tokens unknown: ").split(": "))
    assert bool(found["told"]) == bool(expected)

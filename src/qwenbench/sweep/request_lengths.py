"""How long a scenario's requests are in the server's own tokens, over the scenario's whole draw.

What a configuration can hold is a property of it and of the scenario: the requests that one load point happened to
send would give another figure at each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from qwenbench.bounded_http import NoReplyError, ask
from qwenbench.load.spec import Target
from qwenbench.sweep.plan import LoadedScenario
from qwenbench.workload.planning import PlannedSessions, RequestOptions

ASKED = 96
"""Requests of a scenario whose prompts are tokenized, evenly spread over its draw."""
AT_A_TIME = 8
_TOKENIZED = ("model", "messages", "prompt", "chat_template_kwargs")
"""Fields of a request that its prompt's tokens come of."""


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Prompt and answer together, in tokens."""

    p95: int
    longest: int
    max_model_len: int | None
    """As the server tells it beside the tokens."""


def whole_draw(loaded: LoadedScenario, common: RequestOptions, seed: int) -> PlannedSessions:
    """Every prompt of the set once, with all its turns; of synthetic prompts as many as are asked about."""
    turns = sum(len(prompt.turns) for prompt in loaded.prompts) or ASKED
    return PlannedSessions(loaded.file.scenario, loaded.prompts, common, seed, turns)


async def request_lengths(
    session: aiohttp.ClientSession, target: Target, draw: PlannedSessions, timeout_s: float
) -> RequestLengths | None:
    """Asks /tokenize about an even sample of the draw. None where the server does not answer it."""
    turns = [turn for plan in (draw[index] for index in range(len(draw))) for turn in plan.turns]
    picked = [turns[index] for index in np.linspace(0, len(turns) - 1, min(ASKED, len(turns))).astype(int)]
    gate = asyncio.Semaphore(AT_A_TIME)

    async def tokens(payload: Mapping[str, Any]) -> tuple[int, int | None] | None:
        body = {name: payload[name] for name in _TOKENIZED if name in payload}
        async with gate:
            try:
                reply = await ask(
                    session, f"{target.base_url}/tokenize", headers=target.headers, body=body, timeout_s=timeout_s
                )
            except NoReplyError:
                return None
        document = reply.json() if reply.status == 200 else None
        if not isinstance(document, dict) or not _whole(document.get("count")):
            return None
        limit = document.get("max_model_len")
        return document["count"], limit if _whole(limit) else None

    if not picked:
        return None
    first = await tokens(picked[0].payload)  # one question to a server that has no such endpoint
    if first is None:
        return None
    rest = await asyncio.gather(*(tokens(turn.payload) for turn in picked[1:]))
    known = [
        found[0] + turn.output_tokens for found, turn in zip([first, *rest], picked, strict=True) if found is not None
    ]
    return _summed(known, first[1])


def _summed(lengths: Sequence[int], max_model_len: int | None) -> RequestLengths:
    return RequestLengths(int(np.ceil(np.percentile(lengths, 95))), max(lengths), max_model_len)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9

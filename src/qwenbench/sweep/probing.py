"""What is asked of a server once it is ready, before any load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from qwenbench.errors import UsageError
from qwenbench.load.spec import ENDPOINT_PATHS
from qwenbench.workload.lengths import CHARS_PER_TOKEN
from qwenbench.workload.planning import SaltMode
from qwenbench.workload.prompts import Prompt

_TIMEOUT = aiohttp.ClientTimeout(total=120)


async def _get(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str]) -> Any | None:
    try:
        async with session.get(url, headers=dict(headers), timeout=aiohttp.ClientTimeout(total=15)) as answer:
            return await answer.json(content_type=None) if answer.status == 200 else None
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None


async def served_models(session: aiohttp.ClientSession, base_url: str, headers: Mapping[str, str]) -> list[str]:
    """The names that /v1/models lists; empty when it does not answer."""
    data = await _get(session, f"{base_url}/v1/models", headers)
    rows = data.get("data", []) if isinstance(data, dict) else []
    return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]


async def server_version(session: aiohttp.ClientSession, base_url: str, headers: Mapping[str, str]) -> str | None:
    """What /version says, or None."""
    data = await _get(session, f"{base_url}/version", headers)
    return str(data["version"]) if isinstance(data, dict) and "version" in data else None


def check_served(model: str, served: Sequence[str], base_url: str) -> None:
    """Raises UsageError unless the server serves this model."""
    if model not in served:
        names = ", ".join(served) or "no model"
        raise UsageError(f"{base_url} does not serve {model!r} but {names}. Give one of these with --model.")


async def salt_mode(
    session: aiohttp.ClientSession, base_url: str, headers: Mapping[str, str], model: str, endpoint: str
) -> SaltMode:
    """`cache_salt` where the server takes that field, else `prefix` (a nonce in front of the first message).

    A server that ignores unknown fields takes it too; prefix_hit_rate shows whether it then worked.
    """
    prompt: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "Say hello."}]} if endpoint == "chat" else {"prompt": "Hello"}
    )
    body = {"model": model, **prompt, "max_tokens": 1, "cache_salt": "qwenbench"}
    try:
        async with session.post(
            base_url + ENDPOINT_PATHS[endpoint], json=body, headers=dict(headers), timeout=_TIMEOUT
        ) as answer:
            text = await answer.text()
            return "prefix" if answer.status in (400, 422) and "cache_salt" in text else "cache_salt"
    except (aiohttp.ClientError, TimeoutError):
        return "cache_salt"


async def chars_per_token(
    session: aiohttp.ClientSession,
    base_url: str,
    headers: Mapping[str, str],
    model: str,
    prompts: Sequence[Prompt],
    sample: int = 12,
) -> float:
    """Characters per token of these prompts under the server's own tokenizer (/tokenize), else the usual 4."""
    characters = tokens = 0
    for prompt in prompts[:: max(1, len(prompts) // sample)] if prompts else ():
        body = {"model": model, "prompt": prompt.turns[0].user, "add_special_tokens": False}
        try:
            async with session.post(
                f"{base_url}/tokenize", json=body, headers=dict(headers), timeout=_TIMEOUT
            ) as answer:
                if answer.status != 200:
                    return CHARS_PER_TOKEN
                tokens += int((await answer.json(content_type=None))["count"])
                characters += len(prompt.turns[0].user)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):
            return CHARS_PER_TOKEN
    return characters / tokens if tokens else CHARS_PER_TOKEN

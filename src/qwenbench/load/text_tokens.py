"""Answers without usage: their tokens as the server's own /tokenize counts the text, once the load has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import aiohttp

from qwenbench.bounded_http import NoReplyError, ask
from qwenbench.load.records import Digest
from qwenbench.load.spec import Target

_TIMEOUT_S = 15.0
_AT_A_TIME = 8


async def text_tokens(
    session: aiohttp.ClientSession,
    base_url: str,
    headers: Mapping[str, str],
    model: str,
    text: str,
    timeout_s: float = _TIMEOUT_S,
) -> int | None:
    """Tokens of a text by the server's /tokenize; None where it has none or gives no count."""
    # vLLM and SGLang read `prompt`, llama.cpp `content`, TGI `inputs`
    body = {"model": model, "prompt": text, "content": text, "inputs": text, "add_special_tokens": False}
    try:
        reply = await ask(session, f"{base_url}/tokenize", headers=headers, body=body, timeout_s=timeout_s)
    except NoReplyError:
        return None
    document = reply.json() if reply.status == 200 else None
    tokens = document.get("tokens") if isinstance(document, dict) else document
    count = document.get("count") if isinstance(document, dict) else None
    if count is None and isinstance(tokens, list):
        count = len(tokens)
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 10**9 else None


async def count_unknown(digests: Sequence[Digest], target: Target, model: str) -> None:
    """Fill in the output tokens of answers that came without a usage that can be believed.

    The count is of the text: what a server generates beyond it (an end token) is not in it, and an answer with a tool
    call, whose text is not kept whole, stays unknown.
    """
    gate = asyncio.Semaphore(_AT_A_TIME)

    async def fill(one: Digest) -> None:
        async with gate:
            texts = [text for text in (one.reasoning, one.answer) if text]
            counts = [await text_tokens(session, target.base_url, target.headers, model, text) for text in texts]
        known = [count for count in counts if count is not None]
        if known and len(known) == len(counts):
            one.row["output_tokens"], one.row["tokens_from"] = sum(known), "tokenize"

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=target.verify_tls)) as session:
        unknown = [one for one in digests if one.row["error"] is None and one.row["output_tokens"] is None]
        await asyncio.gather(*(fill(one) for one in unknown if one.row["answer_chars"] == len(one.answer)))

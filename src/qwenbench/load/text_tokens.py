"""Answers without usage: their tokens as the server's own /tokenize counts the text, once the load has ended."""

from __future__ import annotations

from collections.abc import Sequence

import aiohttp

from qwenbench.bounded_http import NoReplyError, Questions, WaitLimit, tokenize_question, tokens_told
from qwenbench.load.records import Digest
from qwenbench.load.spec import Target

_WAIT_S = 8.0
"""Limit on waiting for /tokenize after a load, which has ended by then."""
_TOGETHER = 64


async def text_tokens(questions: Questions, model: str, texts: Sequence[str]) -> list[int | None]:
    """Tokens of each text by the server's /tokenize; None where it gives no count, for all where it has none."""
    try:
        replies = await questions.ask_many("/tokenize", [tokenize_question(model, text) for text in texts])
    except NoReplyError:
        replies = []
    counts = [tokens_told(reply.json()) if reply is not None and reply.status == 200 else None for reply in replies]
    return [*counts, *[None] * (len(texts) - len(replies))]


async def count_unknown(digests: Sequence[Digest], target: Target, model: str) -> None:
    """Fill in the output tokens of answers that came without a usage that can be believed.

    The count is of the text: what a server generates beyond it (an end token) is not in it, and an answer with a tool
    call, whose text is not kept whole, stays unknown.
    """
    unknown = [
        one
        for one in digests
        if one.row["error"] is None and one.row["output_tokens"] is None and one.row["answer_chars"] == len(one.answer)
    ]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=target.verify_tls)) as session:
        questions = Questions(session, target.base_url, target.headers, WaitLimit(_WAIT_S))
        for at in range(0, len(unknown), _TOGETHER):
            some = unknown[at : at + _TOGETHER]
            parts = [(one, text) for one in some for text in (one.reasoning, one.answer) if text]
            if not parts:
                continue
            counts = await text_tokens(questions, model, [text for _, text in parts])
            if counts[0] is None:
                return
            questions.limit.restart()
            for one in some:
                own = [count for (of, _), count in zip(parts, counts, strict=True) if of is one]
                known = [count for count in own if count is not None]
                if known and len(known) == len(own):
                    one.row["output_tokens"], one.row["tokens_from"] = sum(known), "tokenize"

"""Builders of raw streams for the load generator's tests."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import orjson

from qwenbench.load.exchange import RawExchange
from qwenbench.load.http1 import parse_head
from qwenbench.load.records import Digest, Sending, digest
from qwenbench.workload.sessions import SessionPlan, TurnPlan

SENT = 1_795_000_000_000_000_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def delta(finish: str | None = None, **parts: Any) -> bytes:
    """A chat chunk as vLLM sends it."""
    choice = {"index": 0, "delta": parts, "logprobs": None, "finish_reason": finish, "token_ids": None}
    document = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
    return b"data: " + orjson.dumps(document) + b"\n\n"


ROLE = delta(role="assistant", content="")


def usage(output: int = 2, **more: Any) -> bytes:
    """The usage-only last chunk."""
    count = {"prompt_tokens": 13, "completion_tokens": output, "total_tokens": 13 + output, **more}
    return b"data: " + orjson.dumps({"choices": [], "usage": count}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def exchange(reads: Sequence[tuple[float, bytes]], **fields: Any) -> RawExchange:
    """An ended exchange; `reads` are (ms after sending, raw bytes)."""
    one = RawExchange(sent_ns=SENT, reads=[data for _, data in reads], **fields)
    one.stamps = array("q", [SENT + round(at * 1e6) for at, _ in reads])
    one.ended_ns = one.stamps[-1] if len(one.stamps) else SENT
    one.head = parse_head(b"".join(one.reads))
    if one.head is not None:
        one.status, one.headers = one.head.status, one.head.headers
    return one


def events(timed: Sequence[tuple[float, bytes]], **fields: Any) -> RawExchange:
    """A whole chunked answer: one read per event, at the given ms, and HTTP's end."""
    reads = [(0.5, HEAD), *((at, http_chunk(event)) for at, event in timed)]
    last = timed[-1][0] if timed else 1.0
    return exchange([*reads, (last, b"0\r\n\r\n")], **fields)


def sending(scheduled_ns: int | None = None, **payload: Any) -> Sending:
    turn = TurnPlan("r1", 0, "p1", "en", payload or {"messages": []}, 2)
    return Sending(SessionPlan("s1", "test", (turn,)), turn, 0, 3, scheduled_ns, SENT)


def decoded(one: RawExchange, **more: Any) -> Digest:
    return digest(sending(**more), one)

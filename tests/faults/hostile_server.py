"""A server under test that misbehaves as the first part of its path says: a table of modes and what is to come of each.

Every mode is hostile at one place (`at`) and a good server everywhere else, so that what is seen is that place's doing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

At = Literal["models", "health", "version", "metrics", "tokenize", "answer", "probe", "everything"]
ELSEWHERE = "127.0.0.2"
"""The host that redirects point to: nothing may ever come there."""
_PATHS: dict[str, At] = {
    "/v1/models": "models",
    "/health": "health",
    "/version": "version",
    "/metrics": "metrics",
    "/tokenize": "tokenize",
}


@dataclass(frozen=True)
class Call:
    """One request of the tool, and the way to answer it."""

    writer: asyncio.StreamWriter
    port: int
    mode: str

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
        await self.writer.drain()

    async def for_ever(self, part: bytes, pause_s: float = 0.0) -> None:
        while not self.writer.is_closing():
            await self.say(part)
            await asyncio.sleep(pause_s)
        raise ConnectionError

    async def silence(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.writer.close()
        raise ConnectionError

    async def reset(self) -> None:
        self.writer.transport.abort()
        raise ConnectionError


Act = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True)
class Mode:
    """One kind of misbehaviour and its expected end."""

    name: str
    at: At
    act: Act
    ends: str
    """`measured`: exit 0; one of load.records.ERRORS: exit 1, every request failed so; `refused: WORDS`: exit 2."""
    options: tuple[str, ...] = ()
    after: int = 0
    """So many requests of the load are answered well before."""


# how answers are written


def page(
    body: bytes, *headers: str, status: str = "200 X", kind: str = "application/json", length: object = None
) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OPEN_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
LAST = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def token(text: str = "word ", **more: object) -> bytes:
    return event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}], **more})


FINISH = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})


def usage(prompt: object = 5, completion: object = 4) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})


EVENTS = (token(), token(), token(), token(), FINISH, usage(), DONE)


def stream(*events: bytes) -> bytes:
    return HEAD + b"".join(map(chunk, events)) + LAST


GOOD = stream(*EVENTS)
DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
BOMB = gzip.compress(bytes(1_000_000)) * 200
DEFLATED = zlib.compress(bytes(100_000_000), 1)
METRICS = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n"

# acts


def says(*parts: bytes) -> Act:
    return lambda call: call.say(*parts)


def then(what: Literal["silence", "close", "reset"], *parts: bytes) -> Act:
    """Writes the parts, and goes silent, closes or resets."""

    async def act(call: Call) -> None:
        await call.say(*parts)
        await getattr(call, what)()

    return act


def endless(head: bytes, part: bytes, pause_s: float = 0.0) -> Act:
    async def act(call: Call) -> None:
        await call.say(head)
        await call.for_ever(part, pause_s)

    return act


def drip(data: bytes, pause_s: float) -> Act:
    """One byte after the other."""

    async def act(call: Call) -> None:
        for byte in data:
            await call.say(bytes([byte]))
            await asyncio.sleep(pause_s)

    return act


def redirect(status: int) -> Act:
    async def act(call: Call) -> None:
        await call.say(page(b"", f"Location: http://{ELSEWHERE}:{call.port}/good/x?api_key=1", status=f"{status} X"))

    return act


def modes(ends: str, at: At, acts: dict[str, Act], *options: str) -> list[Mode]:
    """Modes that end alike."""
    return [Mode(name, at, act, ends, options) for name, act in acts.items()]


LENGTHS = ("--input-tokens", "50-60")
"""/tokenize is asked only when lengths are."""
WITH_MODEL = ("--model", "m")
LOAD_ONLY = ("--no-natural-stop-check", "--no-prefill-cost")
NO_ANSWER = "refused: no whole answer"
_OK = "HTTP/1.1 200 X\r\n"


def listed(**more: bytes) -> Act:
    """/v1/models with odd values beside the name."""
    return says(page(b'{"data":[{"id":"m"%s}]}' % b"".join(b',"%s":%s' % (k.encode(), v) for k, v in more.items())))


def delta(value: bytes, **more: object) -> bytes:
    """An event whose choice is written out as it is."""
    return event(b'{"choices":[%s]}' % value)


ODD_VALUES = (b"-0", b"-5", b"1.5", b"true", b"null", b"[1]", b'"x"', b"{}", b"9" * 400)

MODES: tuple[Mode, ...] = (
    Mode("good", "answer", says(GOOD), "measured"),
    # what is asked before the load
    *modes(
        "refused: redirect", "models", {f"models: redirect {status}": redirect(status) for status in (301, 307, 308)}
    ),
    *modes("refused: redirect", "health", {"health: redirect": redirect(302)}, *WITH_MODEL),
    *modes(
        "refused: --model",
        "models",
        {
            "models: redirect that is none": says(page(b"", "Location: http://[::1", status="399 X")),
            "models: UTF-16": says(page('{"data":[{"id":"m"}]}'.encode("utf-16"))),
            "models: NaN": listed(max_model_len=b"NaN"),
            "models: HTTP/2 preface": then("close", b"\0\0\x12\x04\0\0\0\0\0" + bytes(18)),
            "models: 100,000 headers": then("close", _OK.encode() + b"A: b\r\n" * 100_000 + b"\r\n"),
            "models: length too long": then("close", page(b'{"data":[{"id":"m"}]}', length=10**19)),
            "models: null": says(page(b'{"data":null}')),
            "models: a number": says(page(b"7")),
            "models: 200,000 deep": says(page(DEEP)),
            "models: a page of HTML": says(page(b"<html>hello</html>", kind="text/html")),
            "models: none": says(page(b'{"data":[]}')),
            "models: endless": endless(OPEN_HEAD, b" " * 65536),
            "models: endless headers": endless(_OK.encode(), b"X-A: b\r\n" * 1000),
            "models: endless 1xx": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 4000),
            "models: silence": then("silence"),
            "models: half a head": then("silence", b"HTTP/1.1 200 OK\r\nContent-"),
            "models: drip": drip(page(b'{"data":[{"id":"m"}]}'), 0.2),
            "models: reset": then("reset"),
            "models: closed early": then("close", page(b'{"data":[', length=500)),
            "models: no HTTP": then("close", b"220 smtp ready\r\n"),
            "models: gzip bomb": says(page(BOMB, "Content-Encoding: gzip")),
            "models: deflate bomb": says(page(DEFLATED, "Content-Encoding: deflate")),
            "models: null bytes": says(page(bytes(4096))),
            "models: HTTP 500": says(page(b"\x1b[2Jboom", status="500 X")),
        },
    ),
    Mode("models: a key is wanted", "models", says(page(b"{}", status="401 X")), "refused: key"),
    # it answers for the name that it does not list, so it is measured, and said
    Mode("models: another model", "models", says(page(b'{"data":[{"id":"other"}]}')), "measured", WITH_MODEL),
    *modes(
        "measured",
        "models",
        {
            "models: a name that steers terminals": says(page(b'{"data":[{"id":"\\u001b]0;x\\u0007\\u001b[2J"}]}')),
            "models: a length of 65 bits": says(page(b'{"data":[{"id":"m","max_model_len":99999999999999999999}]}')),
            "models: keys twice": says(page(b'{"data":[],"data":[{"id":"x"},{"id":"m","id":"m"}]}')),
            "models: names that are no text": says(page(b'{"data":[{"id":7},{"id":null},{"id":["m"]},{"id":{}}]}')),
            "models: 20,000 of them": says(page(b'{"data":[%s]}' % b",".join([b'{"id":"m"}'] * 20_000))),
            "models: HTTP/1.0": then("close", page(b'{"data":[{"id":"m"}]}').replace(b"/1.1", b"/1.0")),
            **{f"models: a length of {value[:8].decode()}": listed(max_model_len=value) for value in ODD_VALUES[:-1]},
            "models: odd entries": says(page(b'{"data":[null,7,{"id":"m","root":[1],"max_model_len":"x"}]}')),
        },
    ),
    *modes(
        "measured",
        "version",
        {
            "version: redirect": redirect(307),
            "version: steers terminals": says(page(b'{"version":"\\u001b]0;x\\u0007"}')),
            "version: endless": endless(OPEN_HEAD, b'"' * 65536),
            "version: silence": then("silence"),
            "version: a list": says(page(b"[1]")),
        },
    ),
    *modes(
        "measured",
        "health",
        {"health: HTTP 404": says(page(b"{}", status="404 X"))},
        *WITH_MODEL,
    ),
    Mode("health: silence", "health", then("silence"), "refused: unreachable", WITH_MODEL),
    *modes(
        "measured",
        "metrics",
        {
            "metrics: redirect": redirect(307),
            "metrics: +Inf": says(
                page(b"vllm:num_requests_running +Inf\nvllm:kv_cache_usage_perc NaN\n", kind="text/plain")
            ),
            "metrics: 65 bits": says(
                page(b'vllm:cache_config_info{num_gpu_blocks="99999999999999999999",block_size="-1"} 1\n')
            ),
            "metrics: 1e400": says(page(b"vllm:num_requests_running 1e400\nvllm:num_preemptions_total -5\n")),
            "metrics: endless": endless(OPEN_HEAD, b"vllm:x 1\n" * 9000),
            "metrics: endless noise": endless(OPEN_HEAD, b"python_gc 1\n" * 9000),
            "metrics: one line": endless(OPEN_HEAD, b"vllm:" + b"x" * 65536),
            "metrics: silence": then("silence"),
            "metrics: half a page": then("silence", OPEN_HEAD, METRICS),
            "metrics: gzip bomb": says(page(BOMB, "Content-Encoding: gzip")),
            "metrics: null bytes": says(page(METRICS + bytes(65536))),
            "metrics: buckets without edges": says(
                page(b'vllm:iteration_tokens_total_bucket{a="1"} 5\nvllm:iteration_tokens_total_bucket 5\n' + METRICS)
            ),
            "metrics: edges that are none": says(
                page(b'vllm:iteration_tokens_total_bucket{le="x"} 5\nvllm:iteration_tokens_total_bucket{le="NaN"} 5\n')
            ),
            **{
                f"metrics: blocks of {value.decode()}": says(
                    page(b'vllm:cache_config_info{num_gpu_blocks="%s",block_size="%s"} 1\n' % (value, value) + METRICS)
                )
                for value in (b"0", b"-0", b"1.5", b"1e3", b"0x10", b"", b"None", "\u0661".encode())
            },
            "metrics: odd time stamps": says(page(b"vllm:num_requests_running 1 1e400\nvllm:x 1 NaN\n")),
            "metrics: UTF-16": says(page(METRICS.decode().encode("utf-16"))),
            "metrics: 100,000 of one name": says(page(b'vllm:num_requests_running{a="1"} 1\n' * 100_000)),
            "metrics: HTML": says(page(b"<html>vllm:num_requests_running</html>", kind="text/html")),
            "metrics: broken labels": says(
                page(b'vllm:num_requests_running{a="\\",} 1\nvllm:x{{{ 2\nvllm: \n' + METRICS)
            ),
            "metrics: reset": then("reset", OPEN_HEAD, METRICS),
        },
    ),
    *modes(
        "measured",
        "tokenize",
        {
            "tokenize: redirect": redirect(307),
            "tokenize: a list": says(page(b"[1]")),
            "tokenize: null": says(page(b'{"count":null}')),
            "tokenize: 65 bits": says(page(b'{"count":99999999999999999999}')),
            **{
                f"tokenize: a count of {value[:8].decode()}": says(
                    page(b'{"count":%s,"max_model_len":%s}' % (value, value))
                )
                for value in ODD_VALUES
            },
            "tokenize: a count, then none": says(page(b'{"count":10,"count":null,"tokens":[[1],{}]}')),
            "tokenize: 0": says(page(b'{"count":0}')),
            "tokenize: silence": then("silence"),
            "tokenize: endless": endless(OPEN_HEAD, b"1" * 65536),
        },
        *LENGTHS,
    ),
    # the one-token request that asks which fields are taken
    *modes(
        "measured",
        "probe",
        {
            "probe: redirect": redirect(307),
            "probe: silence after [DONE]": then("silence", stream(*EVENTS)[: -len(LAST)]),
            "probe: endless": endless(HEAD, chunk(token() * 200)),
            "probe: HTTP 500 in words that steer": says(page(b'{"error":{"message":"\\u001b[2J"}}', status="500 X")),
            "probe: every field is refused": says(page(b'{"detail":[{"loc":["body","x"]}]}', status="422 X")),
            "probe: resets": then("reset"),
            "probe: deep error": says(page(DEEP, status="400 X")),
        },
    ),
    Mode("probe: silence", "probe", then("silence"), NO_ANSWER),
    # the load itself: good in an odd way
    *modes(
        "measured",
        "answer",
        {
            "never closed after [DONE]": then("silence", GOOD[: -len(LAST)]),
            "[DONE] twice": says(stream(*EVENTS, DONE)),
            "tokens after [DONE]": says(stream(*EVENTS, token(), DONE)),
            "HTTP/1.0": then("close", OPEN_HEAD.replace(b"/1.1", b"/1.0"), *EVENTS),
            "no length, closed": then("close", OPEN_HEAD, *EVENTS),
            "a few 1xx": says(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", GOOD),
            "byte by byte": drip(GOOD, 0),
            "lines end with CR LF": says(stream(*(one.replace(b"\n", b"\r\n") for one in EVENTS))),
            "comments, ids and retries": says(
                stream(b": hi\n\nid: 1\nretry: 5\nevent: message\n" + EVENTS[0], *EVENTS[1:])
            ),
            "all in one chunk": says(stream(b"".join(EVENTS))),
            "chunk extensions and trailers": says(HEAD, b"".join(map(chunk, EVENTS)), b"0;a=b\r\nX-T: 1\r\n\r\n"),
            "wrong content type": says(GOOD.replace(b"text/event-stream", b"text/html")),
            "reset after [DONE]": then("reset", GOOD[: -len(LAST)]),
            "another model's stream": says(stream(*(one.replace(b'"m"', b'"gpt-9"') for one in EVENTS))),
            "no usage": says(stream(*EVENTS[:5], DONE)),
            "no [DONE]": says(stream(*EVENTS[:6])),
            "usage of 65 bits": says(stream(*EVENTS[:5], usage(2**65, 2**65), DONE)),
            "usage below 0": says(stream(*EVENTS[:5], usage(-5, -4), DONE)),
            "usage as text, null, list": says(stream(*EVENTS[:5], usage("5", None), usage([], {}), DONE)),
            **{
                f"usage of {value[:8].decode()}": says(
                    stream(*EVENTS[:5], event(b'{"choices":[],"usage":{"completion_tokens":%s}}' % value), DONE)
                )
                for value in ODD_VALUES[:-1]
            },
            "usage twice, with keys twice": says(
                stream(*EVENTS[:5], event(b'{"usage":{},"choices":[],"usage":{"completion_tokens":4}}'), usage(), DONE)
            ),
            "fields of SSE that are none": says(
                HEAD, chunk(b"data\n\nfoo: bar\nevent\nretry: 1e400\nid: \0\n\n"), *map(chunk, EVENTS), LAST
            ),
            "chunked in capitals, twice": says(
                HEAD.replace(b"chunked", b"CHUNKED").replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n"),
                *map(chunk, EVENTS),
                LAST,
            ),
            "gzip that nobody asked for": says(page(gzip.compress(b"".join(EVENTS)), "Content-Encoding: gzip")),
            "usage of a million": says(stream(*EVENTS[:5], usage(5, 10**6), DONE)),
            "five choices": says(
                stream(event({"choices": [{"index": i, "delta": {"content": "a"}} for i in range(5)]}), *EVENTS)
            ),
        },
    ),
    Mode("text that steers terminals", "answer", says(stream(token("\x1b[2J\x07\u202e\0"), *EVENTS)), "broken output"),
    # the load itself: failures
    *modes(
        "http_status",
        "answer",
        {f"answer: redirect {status}": redirect(status) for status in (301, 302, 303, 307, 308)}
        | {
            "Retry-After of 5,000 digits": says(page(b"{}", "Retry-After: " + "9" * 5000, status="429 X")),
            "Retry-After -1": says(page(b"{}", "Retry-After: -1", status="503 X")),
            "Retry-After in 2099": says(page(b"{}", "Retry-After: Wed, 21 Oct 2099 07:28:00 GMT", status="429 X")),
            "endless error": endless(b"HTTP/1.1 500 X\r\nConnection: close\r\n\r\n", b"error\n\n" * 9000),
            "error 200,000 deep": says(page(DEEP, status="400 X")),
            "error in a page that steers": says(page(b"\x1b]0;x\x07\x1b[2J" * 99, status="502 X", kind="text/html")),
            "error null": says(page(b'{"error":null}', status="500 X")),
            **{
                f"Retry-After {value!r}": says(page(b"{}", f"Retry-After: {value}", status="429 X"))
                for value in ("1e400", " 0", "0x9", "NaN", "")
            },
            "error in UTF-16": says(page('{"error":"x"}'.encode("utf-16"), status="400 X")),
            "error in 10,000 headers": says(page(b"{}", *["X-A: b"] * 200, status="400 X")),
            "HTTP 204": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
            "HTTP 599": says(page(b"", status="599 ")),
        },
    ),
    # requests for tokens that are never answered whole, from the first one on
    *modes(
        NO_ANSWER,
        "answer",
        {
            "silence": then("silence"),
            "silence in the head": then("silence", HEAD[:30]),
            "silence after the head": then("silence", HEAD),
            "silence in an event": then("silence", HEAD, b"3e8\r\ndata: {"),
            "silence after a token": then("silence", HEAD, chunk(token())),
            "silence before [DONE]": then("silence", HEAD, *map(chunk, EVENTS[:4])),
            "drip": drip(GOOD, 0.3),
            "a comment every 0.1 s": endless(HEAD, chunk(b": ping\n\n"), 0.1),
            "a token every 0.1 s": endless(HEAD, chunk(token()), 0.1),
        },
    ),
    # a server that was good until the load: the warm-up takes two requests
    *(
        Mode(f"stops in the load: {name}", at, act, NO_ANSWER, (*LOAD_ONLY, "--requests", "40"), after=5)
        for at in ("answer", "everything")
        for name, act in (
            (f"silence of {at}", then("silence")),
            (f"{at}: heads alone", then("silence", HEAD)),
        )
    ),
    Mode("stops in the load: drip", "answer", drip(GOOD, 0.3), "timeout", LOAD_ONLY, after=2),
    Mode("stops in the load: refuses", "everything", then("reset"), "refused: unreachable", LOAD_ONLY, after=3),
    *modes(
        "reset",
        "answer",
        {
            "reset at once": then("reset"),
            "reset in the head": then("reset", HEAD[:30]),
            "reset after the head": then("reset", HEAD),
            "reset after a token": then("reset", HEAD, chunk(token())),
            "closed at once": then("close"),
            "closed after a token": then("close", HEAD, chunk(token())),
            "length too long": then("close", page(b"".join(EVENTS[:4]), length=9999)),
        },
    ),
    *modes(
        "malformed",
        "answer",
        {
            "answers in UTF-16": says(HEAD, chunk(b"".join(EVENTS).decode().encode("utf-16")), LAST),
            "length and chunks, neither true": says(
                HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 7\r\n\r\n"), b"".join(EVENTS)
            ),
            "odd names and values in chunks": says(
                stream(
                    *EVENTS[:4],
                    delta(b'{"index":-1,"delta":null}'),
                    delta(b'{"index":"x","delta":[1],"finish_reason":7}'),
                    delta(b'{"delta":{"content":7,"reasoning":{},"tool_calls":"x","role":[]},"logprobs":[1]}'),
                    delta(b'null,7,"x",[]'),
                    *EVENTS[4:],
                )
            ),
            "usage of 400 digits": says(
                stream(*EVENTS[:5], event(b'{"choices":[],"usage":{"completion_tokens":%s}}' % ODD_VALUES[-1]), DONE)
            ),
            "100,000 headers": then("silence", _OK.encode() + b"A: b\r\n" * 100_000 + b"\r\n"),
            "switches protocols": says(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n"),
            "no HTTP": says(b"220 smtp ready\r\n\r\n"),
            "HTTP/2 preface": says(b"\0\0\x12\x04\0\0\0\0\0" + bytes(18) + b"\r\n\r\n"),
            "endless headers": endless(_OK.encode(), b"X-A: b\r\n" * 1000),
            "endless 1xx": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 4000),
            "endless comments": endless(HEAD, chunk(b": " + b"x" * 60000 + b"\n\n")),
            "endless blank lines": endless(HEAD, chunk(b"\n" * 60000)),
            "endless tokens": endless(HEAD, chunk(token() * 200)),
            "endless line": endless(HEAD, chunk(b"x" * 60000)),
            "endless chunk extension": endless(HEAD + b"5;a=", b"b" * 60000),
            "endless trailers": endless(HEAD + b"0\r\n", b"X-A: b\r\n" * 1000),
            "gzip bomb": says(page(BOMB, "Content-Encoding: gzip")),
            "a chunk size that is none": says(HEAD, b"zz\r\n\r\n"),
            **{
                f"{name}, kept open": then("silence", HEAD, chunk(token()), broken)
                for name, broken in {
                    "a chunk size that is none": b"zz\r\n" + token(),
                    "half a chunk size that is none": b"1g",
                    "a chunk that is longer than its size": b"5\r\n" + token() + b"\r\n" + chunk(token()),
                    "a chunk size of 17 digits": b"11111111111111111",
                    "a chunk size and a bare LF": b"5\ndata: ",
                    "bytes after the last chunk": LAST + b"more",
                }.items()
            },
            "a broken chunk among tokens": endless(HEAD + b"zz\r\n", chunk(token()), 0.05),
            "a chunk of 2^60": then("close", HEAD, b"fffffffffffffff\r\n" + token()),
            "a chunk below 0": then("close", HEAD, b"-5\r\n" + token()),
            "length below 0": says(page(b"".join(EVENTS), length=-1)),
            "length that is none": says(page(b"".join(EVENTS), length="many")),
            "two lengths": says(page(b"".join(EVENTS), "Content-Length: 7")),
            "usage Infinity": says(stream(*EVENTS[:5], usage(float("inf"), float("nan")), DONE)),
            "usage 1e400": says(stream(*EVENTS[:5], usage().replace(b"4}", b"1e400}"), DONE)),
            "event 200,000 deep": says(stream(event(DEEP))),
            "event of null bytes": says(stream(event(bytes(4096)))),
            "event of broken JSON": says(stream(b"data: {broken\n\n")),
            "event that is no UTF-8": says(stream(event(b'{"choices":[{"delta":{"content":"\xff\xfe"}}]}'))),
            "a page of HTML": says(page(b"<html>hello</html>", kind="text/html")),
        },
    ),
    *modes(
        "empty",
        "answer",
        {
            "only [DONE]": says(stream(DONE)),
            "only a role": says(stream(event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]}), DONE)),
            "no choices": says(stream(event({"choices": []}), event({"choices": None}), DONE)),
            "events of other kinds": says(stream(event(b"[1]"), event(b"null"), event(b'"x"'), event(b"7"), DONE)),
        },
    ),
    *modes(
        "stream_error",
        "answer",
        {
            "error after HTTP 200": says(
                stream(token(), event({"error": {"message": "\x1b[2Jdead", "code": 500}}), DONE)
            ),
        },
    ),
    Mode("answer: a key is wanted", "answer", says(page(b"{}", status="401 X")), "http_status"),
)
assert len({mode.name for mode in MODES}) == len(MODES)
BY_NAME = {f"{re.sub(r'[^a-zA-Z0-9]+', '-', mode.name).strip('-')}-{at}": mode for at, mode in enumerate(MODES)}
"""Modes by the part of a path that asks for them."""


@dataclass
class HostileServer:
    """Serves all modes at once; `elsewhere` is what came to the host that redirects point to."""

    port: int = 0
    elsewhere: list[bytes] = field(default_factory=list)
    began: dict[str, float] = field(default_factory=dict)
    """Mode -> monotonic time of its first misbehaviour."""
    answered: Counter[str] = field(default_factory=Counter)
    """Mode -> requests of the load that came."""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if writer.get_extra_info("sockname")[0] == ELSEWHERE:
                    self.elsewhere.append(head + body)
                name, _, path = head.split()[1].decode().removeprefix("/").partition("/")
                await self._answer(Call(writer, self.port, name), f"/{path}", body)
        writer.close()

    async def _answer(self, call: Call, path: str, body: bytes) -> None:
        mode = BY_NAME[call.mode]
        probing = b'"max_tokens":1,' in body or b'"max_tokens":1}' in body
        at = _PATHS.get(path) or ("probe" if probing else "answer")
        self.answered[call.mode] += at == "answer"
        if mode.at in (at, "everything") and (not mode.after or self.answered[call.mode] > mode.after):
            self.began.setdefault(call.mode, time.monotonic())
            await mode.act(call)
        else:
            await _good_answer(call, mode, at)


async def _good_answer(call: Call, mode: Mode, at: At) -> None:
    if mode.at == "health" and at == "models":  # only then is it asked
        await call.say(page(b"{}", status="404 X"))
        return
    good = {"models": b'{"data":[{"id":"m"}]}', "version": b'{"version":"0.20.2"}', "tokenize": b'{"count":10}'}
    if at == "metrics":
        await call.say(page(METRICS, kind="text/plain"))
    else:
        await call.say(GOOD if at in ("answer", "probe") else page(good.get(at, b"")))


@contextlib.contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """The server, in a thread of its own."""
    server, loop, tasks = HostileServer(), asyncio.new_event_loop(), set[asyncio.Task[None]]()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = loop.create_task(server.handle(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def listen() -> list[asyncio.Server]:
        here = await asyncio.start_server(accept, "127.0.0.1", 0)
        server.port = here.sockets[0].getsockname()[1]
        return [here, await asyncio.start_server(accept, ELSEWHERE, server.port)]

    async def end(listening: list[asyncio.Server]) -> None:
        for one in listening:
            one.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    listening = loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(listening), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

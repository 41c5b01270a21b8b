"""An OpenAI-compatible server of known timing with the habits of many: python bench/habit_server.py PORT.

The first part of the path names the habit (`/comments/v1/chat/completions`), see HABITS. Every answer has its first
token 100 ms after the request was read and one each 10 ms from then on, as many as max_tokens says. `GET /served` tells
when the tokens really left: request id (the body's `request_id`) -> ms from the request to its first, first answer and
last token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIRST_S, EACH_S = 0.1, 0.01


@dataclass(frozen=True)
class Habit:
    """How a server writes its stream. The defaults are vLLM's."""

    seen: str
    """Where the habit was seen, or what it is."""
    newline: str = "\n"
    prefix: str = "data: "
    begin: tuple[str, ...] = ()
    """Raw events before the first chunk."""
    midway: str = ""
    """A raw event between two tokens in the middle."""
    instead: str = ""
    """A raw event in the middle, after which nothing more comes."""
    fields: str = ""
    """Further lines of every event."""
    framing: str = "chunked"
    """chunked, close (until the connection closes), http10, gzip."""
    per_chunk: int = 1
    split: bool = False
    """Every second event is written in two pieces."""
    role_first: bool = True
    thinking: str = ""
    """Name of the delta's field that carries the first half; `parts`: content as a list of parts."""
    tools: bool = False
    usage: str = "last"
    """last, every, zero, zero-after, none, after-done, in-finish."""
    done: str = "[DONE]"
    end: str = "clean"
    """clean, open (the connection stays open), cut (it breaks in the middle), trailers, closes (after the answer, and
    does not say so)."""
    refuses: frozenset[str] = frozenset()
    """Fields that are answered with 400."""
    refusal: str = "Unrecognized request argument supplied: {}"
    status: int = 200
    expected: str = ""
    """What must be told beside (or instead of) the times."""


PING = ": ping\n\n"
HABITS: Mapping[str, Habit] = {
    "plain": Habit("vLLM, SGLang"),
    "crlf": Habit("sse-starlette (llama-cpp-python, many FastAPI servers)", newline="\r\n", begin=(": ping\r\n\r\n",)),
    "cr": Habit("the third line end of the standard", newline="\r"),
    "no-space": Habit("TGI, DashScope", prefix="data:"),
    "comments": Habit("keep-alive comments", begin=(PING, ":\n\n"), midway=PING),
    "data-comments": Habit("OpenRouter: a comment as data", begin=("data: : OPENROUTER PROCESSING\n\n",)),
    "empty-data": Habit("keep-alives of empty data", begin=("data:\n\n", "data: \n\n"), midway="data:\n\n"),
    "ping-events": Habit("Anthropic's pings", begin=('event: ping\ndata: {"type":"ping"}\n\n',)),
    "empty-chunks": Habit("chunks without choices, Azure", begin=('data: {"choices":[],"id":""}\n\n',) * 2),
    "byte-order-mark": Habit("a byte order mark first", begin=("\ufeff",)),
    "fields": Habit("event, id and retry with each event", fields="event: message\nid: 1\nretry: 500\n"),
    "no-role": Habit("no role-only chunk", role_first=False),
    "split": Habit("events cut by the network", split=True),
    "http10": Habit("HTTP/1.0", framing="http10"),
    "close": Habit("Connection: close", framing="close"),
    "gzip": Habit("compresses unasked", framing="gzip"),
    "five-a-chunk": Habit("several tokens a chunk, speculation", per_chunk=5),
    "reasoning": Habit("vLLM: delta.reasoning", thinking="reasoning"),
    "reasoning-content": Habit("DeepSeek, older vLLM: delta.reasoning_content", thinking="reasoning_content"),
    "thinking-parts": Habit("Mistral: content as a list of parts", thinking="parts"),
    "tools": Habit("tool calls", tools=True),
    "usage-in-finish": Habit("llama.cpp: usage in the last chunk with a choice", usage="in-finish"),
    "usage-every": Habit("usage that grows with each chunk", usage="every"),
    "usage-zero-after": Habit("a second usage of zeros", usage="zero-after"),
    "usage-zero": Habit("a usage of zeros", usage="zero", expected="tokens unknown: usage and chunks"),
    "no-usage": Habit("no usage", usage="none", expected="tokens unknown"),
    "usage-after-done": Habit("another usage after the end", usage="after-done"),
    "no-done": Habit("no [DONE]", done=""),
    "done-with-blanks": Habit("blanks around [DONE]", done=" [DONE] "),
    "open-after-done": Habit("connection left open after [DONE]", end="open"),
    "closes-unsaid": Habit("llama.cpp: closes after an answer and does not say so", end="closes"),
    "trailers": Habit("HTTP trailers", end="trailers"),
    "strict": Habit(
        "refuses fields that it does not know",
        refuses=frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "ignore_eos", "min_tokens"}),
        expected="fields left out",
    ),
    "strict-list": Habit(
        "refuses them with a list of those that it knows (Rust's servers)",
        refuses=frozenset({"top_k", "ignore_eos"}),
        refusal="unknown field `{}`, expected one of `messages`, `model`, `max_tokens`, `temperature`, `top_p`, `seed`",
        expected="fields left out: ignore_eos, top_k",
    ),
    "error-event": Habit(
        "an error in mid-stream, vLLM",
        instead='data: {"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError"}}\n\n',
        expected="stream_error: EngineCore encountered an issue.",
    ),
    "error-line": Habit(
        "an error line, llama.cpp",
        instead='error: {"code":500,"message":"context shift is disabled","type":"server_error"}\n\n',
        expected="stream_error: context shift is disabled",
    ),
    "stops": Habit(
        "a proxy ends it cleanly whose server died", instead=PING, expected="reset: no [DONE], no finish_reason"
    ),
    "cut": Habit("the connection breaks", end="cut", expected="reset"),
    "status": Habit("HTTP 503", status=503, expected="HTTP 503: overloaded"),
}


@dataclass
class Served:
    """When the tokens of the requests left, in ms after each was read."""

    times: dict[str, tuple[float, float, float]] = field(default_factory=dict)


class Stream:
    """One answer as a habit writes it."""

    def __init__(self, writer: asyncio.StreamWriter, habit: Habit, body: Mapping[str, Any], served: Served) -> None:
        self._writer = writer
        self._habit = habit
        self._tokens = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        self._name = str(body.get("request_id", ""))
        self._served = served
        self._packer = zlib.compressobj(6, zlib.DEFLATED, 31) if habit.framing == "gzip" else None
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    async def send(self) -> None:
        """The whole answer."""
        habit, tokens = self._habit, self._tokens
        version = "1.0" if habit.framing == "http10" else "1.1"
        headers = {"gzip": "content-encoding: gzip\r\n", "close": "connection: close\r\n"}.get(habit.framing, "")
        if self._chunked:
            headers += "transfer-encoding: chunked\r\n"
        self._writer.write(f"HTTP/{version} 200 OK\r\ncontent-type: text/event-stream\r\n{headers}\r\n".encode())
        for event in habit.begin:
            await self._raw(event)
        if habit.role_first:
            await self._event({"role": "assistant", "content": ""})
        first = answer = 0.0
        for number in range(0, tokens, habit.per_chunk):
            await self._until(FIRST_S + EACH_S * number)
            if number == tokens // 2 and habit.instead:
                await self._raw(habit.instead)
                return await self._finish()
            if number == tokens // 2 and habit.end == "cut":
                self._writer.transport.abort()
                return None
            if number == tokens // 2 and habit.midway:
                await self._raw(habit.midway)
            thought = bool(habit.thinking) and number < tokens // 2
            usage = self._usage(number + 1) if habit.usage == "every" else None
            await self._event(self._delta(number, thought), usage=usage, split=habit.split and number % 2 == 1)
            last = self._now()
            first, answer = first or last, answer or (0.0 if thought else last)
        self._served.times[self._name] = (first, answer, last)
        await self._event({}, finish="length", usage=self._usage(tokens) if habit.usage == "in-finish" else None)
        if habit.usage in ("last", "zero-after", "after-done"):
            await self._usage_chunk(tokens)
        if habit.usage in ("zero", "zero-after"):
            await self._usage_chunk(0)
        if habit.done:
            await self._raw(f"{habit.prefix}{habit.done}{habit.newline * 2}")
        if habit.usage == "after-done":
            await self._usage_chunk(9)
        return await self._finish()

    @property
    def _chunked(self) -> bool:
        return self._habit.framing in ("chunked", "gzip")

    def _now(self) -> float:
        return (self._loop.time() - self._began) * 1000

    async def _until(self, seconds: float) -> None:
        wait = self._began + seconds - self._loop.time()
        if wait > 0:
            await asyncio.sleep(wait)

    def _usage(self, tokens: int) -> dict[str, int]:
        inputs = 20 if tokens else 0
        return {"prompt_tokens": inputs, "completion_tokens": tokens, "total_tokens": inputs + tokens}

    def _delta(self, number: int, thought: bool) -> dict[str, Any]:
        text = " w" * min(self._habit.per_chunk, self._tokens - number)
        if self._habit.tools:
            named = {"name": "f", "arguments": ""} if number == 0 else {"arguments": "a"}
            return {"tool_calls": [{"index": 0, "function": named}]}
        if thought and self._habit.thinking == "parts":
            return {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]}
        return {self._habit.thinking: text} if thought else {"content": text}

    async def _usage_chunk(self, tokens: int) -> None:
        await self._json({"id": "c", "choices": [], "usage": self._usage(tokens)})

    async def _event(self, delta: Any, finish: str | None = None, usage: Any = None, split: bool = False) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk: dict[str, Any] = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
        await self._json(chunk if usage is None else {**chunk, "usage": usage}, split=split)

    async def _json(self, document: Any, split: bool = False) -> None:
        habit = self._habit
        lines = habit.fields + habit.prefix + json.dumps(document, separators=(",", ":")) + "\n\n"
        text = lines.replace("\n", habit.newline)
        if split:
            await self._raw(text[:30])
            await asyncio.sleep(0.0005)
            text = text[30:]
        await self._raw(text)

    async def _raw(self, text: str) -> None:
        data = text.encode()
        if self._packer is not None:
            data = self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        await self._writer.drain()

    async def _finish(self) -> None:
        if self._habit.end == "open":
            await asyncio.sleep(30)
        if self._habit.end == "trailers":
            self._writer.write(b"0\r\nx-checksum: abc\r\n\r\n")
        elif self._chunked:
            self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()


def answer_of(status: int, document: Any) -> bytes:
    """A whole answer of JSON."""
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, served: Served) -> None:
    """One connection, request after request."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            path = lines[0].split(" ")[1]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            data = await reader.readexactly(int(headers.get("content-length") or 0))
            name, _, rest = path[1:].partition("/")
            habit = HABITS.get(name)
            if path == "/served":
                writer.write(answer_of(200, served.times))
            elif rest == "v1/models" or habit is None:
                writer.write(answer_of(200, {"object": "list", "data": [{"id": "m"}]}))
            else:
                body = json.loads(data or b"{}")
                refused = sorted(habit.refuses & set(body))
                if refused:
                    told = {"message": habit.refusal.format(refused[0]), "param": None}
                    writer.write(answer_of(400, {"error": told}))
                elif habit.status != 200:
                    writer.write(answer_of(habit.status, {"error": {"message": "overloaded"}}))
                else:
                    await Stream(writer, habit, body, served).send()
                    if habit.framing in ("http10", "close"):
                        return
                    if habit.end == "closes":  # just as the next request comes
                        await reader.read(1)
                        return
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def serve(port: int) -> None:
    """Serve until killed; says so in one line when it listens (port 0: any free one)."""
    served = Served()
    server = await asyncio.start_server(lambda r, w: serve_one(r, w, served), "127.0.0.1", port, limit=2**24)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))

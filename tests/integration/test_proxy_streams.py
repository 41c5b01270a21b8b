"""The proxy between a real client and a backend that shows what it received."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from qwenbench.http1.reading import HttpRequest, Limits
from qwenbench.http1.server import SWEEP_S
from qwenbench.proxy.relay import ProxyOptions, judged_path, serving
from qwenbench.proxy.rewriting import BadRequest, virtual_models
from qwenbench.proxy.target import parse_target

SERVED = "Qwen3.5-9B"
NAME = "qwen3.5-thinking-coding"
SECRET = "the-prompt-nobody-may-log"
CHAT = "/v1/chat/completions"


@dataclass
class Backend:
    """What the fake server was asked, and the levers of its stream."""

    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    sent_bytes: int = 0
    filled: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = True

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers by path."""
        body = await request.read()
        self.requests.append(
            (request.method, request.path_qs, {name.lower(): value for name, value in request.headers.items()}, body)
        )
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]] = {
            CHAT: self.chat,
            "/v1/completions": self.flood,
            "/health": self.health,
        }.get(request.path, self.other)
        return await handler(request)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Request-Id": "7"})
        await response.prepare(request)
        try:
            await response.write(b'data: {"model":"Qwen3.5-9B","choices":[{"delta":{"content":"one"}}]}\n\n')
            await self.go_on.wait()
            await response.write(b'data: {"model":"Qwen3.5-9B","choices":[{"delta":{"content":"two"}}]}\n\n')
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled.set()
            raise
        return response

    async def flood(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        line = b"x" * 65535 + b"\n"
        for _ in range(1600):
            try:
                async with asyncio.timeout(0.5):
                    await response.write(line)
            except TimeoutError:
                self.filled.set()
                await self.go_on.wait()
            self.sent_bytes += len(line)
        return response

    async def health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=200 if self.healthy else 503)

    async def other(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": SERVED, "max_model_len": 4096}]})
        if request.path == "/broken":
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"half")
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(text="teapot", status=418, headers={"X-Own": "1"})


@dataclass
class Setting:
    """A backend, the proxy before it and a client."""

    backend: Backend
    url: str
    session: aiohttp.ClientSession

    def post(self, path: str, **body: Any) -> Any:
        """A POST through the proxy."""
        return self.session.post(self.url + path, json=body)


@asynccontextmanager
async def _setting(*, enforce: bool = False, limits: Limits | None = None) -> AsyncIterator[Setting]:
    backend = Backend()
    runner = web.ServerRunner(web.Server(backend.handle, handler_cancellation=True), shutdown_timeout=0.1)  # type: ignore[arg-type]  # BaseRequest
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    target = parse_target(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
    options = ProxyOptions(SERVED, virtual_models(), enforce)
    try:
        async with serving(target, options, "127.0.0.1", 0, limits=limits) as port, aiohttp.ClientSession() as session:
            yield Setting(backend, f"http://127.0.0.1:{port}", session)
            backend.go_on.set()
    finally:
        await runner.cleanup()


async def _raw(at: Setting, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]))
    writer.write(sent)
    line = await reader.readline()
    writer.close()
    return line


def _request(target: bytes) -> HttpRequest:
    return HttpRequest("POST", target, (), b"", True, True, False)


MESSAGES = [{"role": "user", "content": SECRET}]


async def test_proxy_streams_unbuffered_and_renames_both_ways(capfd: pytest.CaptureFixture[str]) -> None:
    async with _setting() as at, at.post(CHAT, model=NAME, messages=MESSAGES, stream=True) as answer:
        # the second event is only sent when the first has come through
        first = await answer.content.readline()
        assert first == b'data: {"model":"qwen3.5-thinking-coding","choices":[{"delta":{"content":"one"}}]}\n'
        at.backend.go_on.set()
        rest = await answer.content.read()
        assert b'"content":"two"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert answer.headers["X-Request-Id"] == "7"
        received = orjson.loads(at.backend.requests[0][3])
    assert received["model"] == SERVED
    assert received["chat_template_kwargs"] == {"enable_thinking": True}
    assert (received["temperature"], received["presence_penalty"]) == (0.6, 0.0)
    assert SECRET not in "".join(capfd.readouterr())


async def test_proxy_client_that_leaves_cancels_the_work_at_the_target() -> None:
    async with _setting() as at:
        answer = await at.post(CHAT, model=NAME, messages=MESSAGES, stream=True)
        await answer.content.readline()
        answer.close()
        async with asyncio.timeout(5):
            await at.backend.cancelled.wait()


async def test_proxy_client_that_leaves_before_the_first_byte_cancels_it_too() -> None:
    async with _setting() as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]))
        body = b'{"model":"qwen3.5-thinking-coding","messages":[]}'
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
        async with asyncio.timeout(5):
            await at.backend.cancelled.wait()


async def test_proxy_slow_client_holds_the_target_back() -> None:
    async with _setting() as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]), limit=4096)
        body = b'{"model":"qwen3.5-thinking-coding","prompt":"x"}'
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await reader.readuntil(b"\r\n\r\n")
        # nobody reads on: of 100 MB only what kernel buffers hold may leave the target
        async with asyncio.timeout(20):
            await at.backend.filled.wait()
        assert at.backend.sent_bytes < 40_000_000
        writer.transport.abort()
        at.backend.go_on.set()


async def test_proxy_passes_a_large_answer_on_whole() -> None:
    async with _setting() as at, at.post("/v1/completions", model=NAME, prompt="x") as answer:
        count = 0
        async for part in answer.content.iter_any():
            count += len(part)
        assert count == 1600 * 65536


async def test_proxy_models_health_and_everything_else() -> None:
    async with _setting() as at:
        async with at.session.get(at.url + "/v1/models") as answer:
            rows = (await answer.json())["data"]
        assert [row["id"] for row in rows] == list(virtual_models())
        assert rows[0]["max_model_len"] == 4096
        async with at.session.get(at.url + "/health") as answer:
            assert answer.status == 200
        at.backend.healthy = False
        async with at.session.get(at.url + "/health") as answer:
            assert answer.status == 503
        async with at.session.put(at.url + "/any/path?q=a%20b", data=b"\x00raw", headers={"A": "b"}) as answer:
            assert (answer.status, await answer.text(), answer.headers["X-Own"]) == (418, "teapot", "1")
        method, path, headers, body = at.backend.requests[-1]
        assert (method, path, headers["a"], body) == ("PUT", "/any/path?q=a%20b", "b", b"\x00raw")
        async with at.session.head(at.url + "/head") as answer:
            assert answer.status == 418


async def test_proxy_refuses_unknown_names_and_responses_without_asking_the_target() -> None:
    async with _setting() as at:
        async with at.post(CHAT, model="gpt-4", messages=MESSAGES) as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
            assert "gpt-4" in error["message"]
            assert SECRET not in error["message"]
        async with at.post("/v1/responses", model=NAME, input="x") as answer:
            assert answer.status == 501
        assert at.backend.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/%63ompletions",
        "/v1/%63hat/completions",
        "/v1%2Fchat/completions",
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/./chat/completions",
        "/v1/models/../chat/completions?x=1",
        "/v1/%2e%2e/v1/chat/completions",
        "/v1/%2563hat/completions",
        "/v1\\chat\\completions",
        "/v1;a/chat;b=1/completions",
        "/V1/Chat/completions",
        "/v1/chat/completions%00.txt",
        "/v1/chat/completions%3fa",
        "/v1/chat/completions%20.",
        "/v1/%ef%bd%83hat/completions",
    ],
)
async def test_proxy_judges_the_path_decoded(path: str) -> None:
    async with _setting(enforce=True) as at:
        body = b'{"model":"Qwen3.5-9B","temperature":99,"messages":[]}'
        reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]))
        writer.write(b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        responses = re.sub("(?i)(?:%2563|%63|%ef%bd%83|c)hat", "responses", path)
        responses = re.sub(r"[/\\](?:c|%63)ompletions", "", responses)
        await reader.readuntil(b"}}")
        writer.write(b"POST %b HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}" % responses.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 501 ")
        writer.close()
        assert at.backend.requests == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/messages", b'{"model":"Qwen3.5-9B"}', 400),
        ("/invocations", b'{"messages":[]}', 501),
        ("/%" + "25" * 20 + "41", b"{}", 400),
        ("/%c1%a3", b"{}", 400),
        (CHAT, b'{"model":"%b","messages":%b}' % (NAME.encode(), b"[" * 500 + b"]" * 500), 400),
        (CHAT, b'{"model":"%b","messages":[%b]}' % (NAME.encode(), b"[]," * 600_000 + b"0"), 400),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_proxy_lets_nothing_past_the_profiles(path: str, body: bytes, status: int) -> None:
    async with _setting() as at:
        answer = await _raw(at, b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(body), body))
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert at.backend.requests == []


def test_proxy_paths_do_not_leave_the_targets_prefix() -> None:
    for path in (b"/x/../v1/models", b"/../b/v1/models", b"/..%2fB/v1/models/"):
        assert judged_path(_request(path), b"/a/b") == "/v1/models"
    for path in (b"/../v1/models", b"/../bc", b"/..", b"/%2e%2e%5c"):
        with pytest.raises(BadRequest, match="leads out"):
            judged_path(_request(path), b"/a/b")


async def test_proxy_closes_a_thousand_half_open_heads_and_answers_meanwhile() -> None:
    assert Limits().head_s + SWEEP_S < 10  # what is promised
    async with _setting(limits=Limits(head_s=0.5)) as at:
        port = int(at.url.rsplit(":", 1)[1])
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(1000)]
        for _, writer in clients:
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nx: ")
        async with at.session.get(at.url + "/health") as answer:
            assert answer.status == 200
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(reader.read() for reader, _ in clients))
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        for _, writer in clients:
            writer.close()


async def test_proxy_tokenize_is_renamed_whatever_its_content_type() -> None:
    async with _setting() as at:
        body = b'{"model":"qwen3.5-instruct-general","prompt":"x"}'
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        async with at.session.post(at.url + "/tokenize", data=body, headers=kind) as answer:
            assert answer.status == 418
        assert orjson.loads(at.backend.requests[0][3]) == {"model": SERVED, "prompt": "x"}


async def test_proxy_broken_answer_is_broken_for_the_client_too(capfd: pytest.CaptureFixture[str]) -> None:
    async with _setting() as at:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with at.session.get(at.url + "/broken") as answer:
                await answer.read()
    assert "broke its answer off" in capfd.readouterr().err


async def test_proxy_target_that_is_down_is_502_and_unhealthy() -> None:
    options = ProxyOptions(SERVED)
    async with (
        serving(parse_target("http://127.0.0.1:1"), options, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        async with session.post(CHAT, json={"model": NAME, "messages": MESSAGES}) as answer:
            assert answer.status == 502
        async with session.get("/health") as answer:
            assert answer.status == 503


async def test_proxy_keeps_connections_for_the_next_request() -> None:
    async with _setting() as at:
        at.backend.go_on.set()
        for _ in range(5):
            async with at.post(CHAT, model=NAME, messages=MESSAGES) as answer:
                assert (await answer.read()).endswith(b"[DONE]\n\n")
        assert len(at.backend.requests) == 5
        assert at.session.connector is not None
        # one connection served all five
        assert sum(map(len, at.session.connector._conns.values())) == 1


async def test_proxy_pipelined_and_split_requests() -> None:
    async with _setting() as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]))
        request = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        data = request * 20 + b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        for place in range(0, len(data), 97):
            writer.write(data[place : place + 97])
            await writer.drain()
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 418") == 21
        assert [body for _, _, _, body in at.backend.requests] == [b"abc"] * 20 + [b""]
        writer.close()


async def test_proxy_serves_http_1_0_without_chunks_and_answers_expect() -> None:
    async with _setting() as at:
        at.backend.go_on.set()
        body = b'{"model":"qwen3.5-thinking-coding","messages":[]}'
        for version, connection in ((b"1.0", b""), (b"1.1", b"connection: close\r\nexpect: 100-continue\r\n")):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]))
            writer.write(
                b"POST %b HTTP/%b\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n"
                % (CHAT.encode(), version, connection, len(body))
            )
            if connection:
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.read()
            assert (b"chunked" in head) is (version == b"1.1")
            assert rest.startswith(b"data: ") is (version == b"1.0")
            assert b"[DONE]" in rest
            writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000, b"431"),
        (b"POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
    ],
)
async def test_proxy_answers_broken_requests_and_closes(sent: bytes, status: bytes) -> None:
    async with _setting() as at:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(at.url.rsplit(":", 1)[1]))
        writer.write(sent)
        async with asyncio.timeout(5):
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 " + status)
        writer.close()
        assert at.backend.requests == []

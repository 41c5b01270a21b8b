"""Questions to a server: bounded in time and bytes, never led elsewhere, and its words made harmless."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.bounded_http import NoReplyError, Questions, WaitLimit, server_base, tokens_told
from qwenbench.server_words import error_message, visible

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    calls: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        calls.add(own)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await handler(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.gather(*calls)


def page(body: bytes, status: str = "200 OK", *headers: str) -> Handler:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *headers]

    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return handler


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b"x" * 9 + b"\n" * 60_000)
        await writer.drain()


async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side gives up


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"count": 3, "max_model_len": 64, "tokens": [5, 6, 7]}, 3),  # vLLM
        ({"tokens": [5, 6]}, 2),  # llama.cpp
        ({"tokens": [{"id": 5, "piece": "a"}, {"id": 6, "piece": "b"}]}, 2),  # llama.cpp, with_pieces
        ([{"id": 1, "text": "", "start": 0, "stop": 0}, {"id": 5, "text": "a", "start": 0, "stop": 1}], 1),  # TGI
        ([{"id": 1, "text": "", "start": 0, "stop": 0}] * 2, 2),  # TGI, a tokenizer without places
        ([], None),
        ({"error": "no"}, None),
        ({"count": True}, None),
    ],
)
def test_each_servers_count_of_tokens(answer: object, tokens: int | None) -> None:
    assert tokens_told(answer) == tokens


@pytest.mark.parametrize("base", ["http://h:8000", "https://models", "http://v1", "http://h/serve/x"])
@pytest.mark.parametrize(
    "rest", ["", "/", "/v1", "/v1/", "//v1//", "/v1/v1", "/v1/chat/completions", "/v1/completions/", "/v1/models"]
)
def test_an_address_is_taken_however_much_of_the_api_it_holds(base: str, rest: str) -> None:
    assert server_base(base + rest) == base


def asking(session: aiohttp.ClientSession, url: str, limit_s: float = 60) -> Questions:
    return Questions(session, url, {}, WaitLimit(limit_s))


async def test_an_answer_and_its_json() -> None:
    async with served(page(b'{"count": 3}')) as url, aiohttp.ClientSession() as session:
        reply = await asking(session, url).ask("")
    assert (reply.status, reply.json()) == (200, {"count": 3})


@pytest.mark.parametrize("status", ["301 X", "302 X", "303 X", "307 X", "308 X"])
async def test_no_redirect_is_followed_and_its_target_is_named_without_its_query(status: str) -> None:
    asked: list[bytes] = []

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(b"yes")
        await page(b"{}")(reader, writer)

    async with served(other) as elsewhere:
        leading = page(b"", status, f"location: {elsewhere}/x?key=secret")
        async with served(leading) as url, aiohttp.ClientSession() as session:
            with pytest.raises(NoReplyError, match=f"redirect .* to {elsewhere}/x, which") as caught:
                await asking(session, url).ask("", {"prompt": "text"})
    assert caught.value.kind == "redirect"
    assert "secret" not in str(caught.value)
    assert asked == []


async def test_an_endless_answer_ends_at_the_limit() -> None:
    async with served(endless) as url, aiohttp.ClientSession() as session:
        with pytest.raises(NoReplyError) as caught:
            await asking(session, url).ask("")
    assert caught.value.kind == "too_long"


async def test_a_silent_server_ends_at_the_time_limit() -> None:
    async with served(silent) as url, aiohttp.ClientSession() as session:
        with pytest.raises(NoReplyError) as caught:
            await asking(session, url, 0.1).ask("")
    assert caught.value.kind == "timeout"


async def test_all_questions_to_a_silent_server_end_within_one_limit() -> None:
    """However many there are, and whether they are asked one by one or at a time: what is left only shrinks."""
    async with served(silent) as url, aiohttp.ClientSession() as session:
        questions = asking(session, url, 0.4)
        for number in range(50):
            with pytest.raises(NoReplyError):
                await questions.ask(f"/{number}")
        with pytest.raises(NoReplyError):
            await questions.ask_lines("/metrics", (b"vllm:",))
        with pytest.raises(NoReplyError):
            await questions.ask_many("/tokenize", [{"n": number} for number in range(20)])
        assert questions.limit.left_s > 0, "a small question leaves something for the others"
        with pytest.raises(NoReplyError):
            await questions.ask("/completions", {}, tokens=True)
        assert questions.limit.over
        with pytest.raises(NoReplyError):
            await questions.ask("/another", {}, tokens=True)
    assert questions.limit._in_vain_s == pytest.approx(0.4, abs=0.1)


async def test_a_path_that_was_silent_is_not_asked_again_until_that_is_forgotten() -> None:
    asked: list[bytes] = []

    async def quiet(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.append(b"")
        await reader.read()

    async with served(quiet) as url, aiohttp.ClientSession() as session:
        questions = asking(session, url, 0.2)
        for forgotten in (False, False, True):
            if forgotten:
                questions.forget()
            with pytest.raises(NoReplyError):
                await questions.ask("/version")
    assert len(asked) == 2


async def test_what_is_answered_slowly_costs_other_small_questions_but_not_the_load() -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)  # the slowness itself
        await page(b"{}")(reader, writer)

    async with served(slow) as url, aiohttp.ClientSession() as session:
        questions = asking(session, url, 1.0)
        await questions.ask("/version")
    assert questions.limit.left_s == 1.0
    assert questions.limit.look_s < 0.5


def test_waits_that_overlap_count_once_and_an_answer_lets_the_count_begin_anew() -> None:
    limit, began = WaitLimit(10.0), time.monotonic() - 4.0
    limit.count(began, in_vain=True)
    limit.count(began + 1, in_vain=True)
    assert limit.left_s == pytest.approx(6.0, abs=0.1)
    limit.tighten(3.0)
    assert limit.left_s == pytest.approx(3.0, abs=0.1)
    limit.spend(3.0)
    assert limit.over
    limit.restart(5.0)
    assert limit.left_s == 5.0


async def test_a_port_without_a_server_is_refused() -> None:
    async with served(silent) as url:
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NoReplyError) as caught:
            await asking(session, url).ask("")
    assert caught.value.kind == "refused"


async def test_bytes_that_are_no_http() -> None:
    async def garbage(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x00\x01 nonsense\r\n\r\n")
        await writer.drain()

    async with served(garbage) as url, aiohttp.ClientSession() as session:
        with pytest.raises(NoReplyError) as caught:
            await asking(session, url).ask("")
    assert caught.value.kind == "broken"


async def test_of_a_long_page_only_wanted_lines_are_kept() -> None:
    body = b"noise 1\n" * 1_000_000 + b"vllm:running 3\nnoise 2\nvllm:last 4"
    async with served(page(body)) as url, aiohttp.ClientSession() as session:
        reply = await asking(session, url).ask_lines("", (b"vllm:",), max_bytes=1000)
    assert reply.body == b"vllm:running 3\nvllm:last 4\n"


async def test_a_line_without_end_is_refused() -> None:
    async with served(page(b"vllm:" + b"x" * 1_000_000)) as url, aiohttp.ClientSession() as session:
        with pytest.raises(NoReplyError) as caught:
            await asking(session, url).ask_lines("", (b"vllm:",))
    assert caught.value.kind == "too_long"


async def test_deep_json_is_no_value() -> None:
    async with served(page(b'{"a":' * 200_000 + b"1" + b"}" * 200_000)) as url, aiohttp.ClientSession() as session:
        reply = await asking(session, url).ask("")
    assert reply.json() is None


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"error": {"message": "too long", "type": "BadRequestError"}}, "BadRequestError: too long"),
        ({"object": "error", "message": "no such model", "type": "NotFoundError"}, "NotFoundError: no such model"),
        ({"error": "out of memory", "error_type": "generation"}, "out of memory"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"code": 500, "message": "context shift is disabled", "type": "server_error"}, "server_error: context shift"),
        ({"detail": [{"loc": ["body", "top_k"], "msg": "extra"}]}, '[{"loc":["body","top_k"],"msg":"extra"}]'),
        ({"error": {}}, "an error without a message"),
    ],
)
def test_error_messages_in_every_shape(document: dict[str, object], words: str) -> None:
    assert error_message(document).startswith(words)


@given(st.text())
def test_visible_text_has_nothing_that_steers_a_terminal(text: str) -> None:
    assert visible(text).isprintable()
    if text.isprintable():
        assert visible(text) == text

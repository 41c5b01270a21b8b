"""Servers that are not vLLM: whether they are there, and which fields of a request they refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from qwenbench.bounded_http import Questions, WaitLimit
from qwenbench.errors import UsageError
from qwenbench.sweep.probing import (
    FieldProbe,
    Presence,
    chars_per_token,
    check_served,
    probe_fields,
    server_version,
    wait_for_server,
)
from qwenbench.workload.prompts import Prompt, PromptTurn
from qwenbench.workload.scenario import CHARS_PER_TOKEN

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Say hello."}],
    "stream": True,
    "max_tokens": 1,
    "temperature": 0.7,
    "top_k": 20,
    "min_p": 0.0,
    "chat_template_kwargs": {"enable_thinking": False},
    "stream_options": {"include_usage": True},
    "min_tokens": 1,
    "ignore_eos": True,
    "cache_salt": "probe",
}
GOOD = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"choices":[],"usage":{"completion_tokens":1}}\n\n'
END = b"data: [DONE]\n\n"


@asynccontextmanager
async def served(**paths: Answer) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    app = web.Application()
    own = {"models": "/v1/models", "chat": "/v1/chat/completions"}
    for name, answer in paths.items():
        app.router.add_route("*", own.get(name, f"/{name}"), answer)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        yield session, str(server.make_url("")).rstrip("/")


def asking(session: aiohttp.ClientSession, url: str, limit_s: float = 60) -> Questions:
    return Questions(session, url, {}, WaitLimit(limit_s))


def always(status: int = 200, document: Any = None, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(document, status=status, headers=headers)

    return answer


MODELS = always(document={"data": [{"id": "m"}]})


async def found(limit_s: float = 10, model: str | None = None, key: str = "", **paths: Answer) -> Presence:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with served(**paths) as (session, url):
        return await wait_for_server(Questions(session, url, headers, WaitLimit(limit_s)), model=model, endpoint="chat")


async def test_any_of_three_answers_shows_that_a_server_is_there() -> None:
    assert (await found(models=MODELS)).models == ("m",)
    assert (await found(health=always())).models == ()
    assert (await found(model="m", chat=always())).models == ()


async def test_a_version_is_told_and_cannot_steer_a_terminal() -> None:
    for told, shown in (("0.26", "0.26"), ("\x1b[2J", "\\x1b[2J")):
        async with served(version=always(document={"version": told})) as (session, url):
            assert await server_version(asking(session, url)) == shown


async def test_a_key_goes_with_every_question() -> None:
    async def locked(request: web.Request) -> web.Response:
        good = request.headers.get("Authorization") == "Bearer k"
        return web.json_response({"data": [{"id": "m"}]} if good else {"error": "no key"}, status=200 if good else 401)

    paths: dict[str, Any] = {"models": locked, "health": locked, "version": locked, "chat": locked}
    assert (await found(key="k", **paths)).models == ("m",)
    with pytest.raises(UsageError, match=r"wants a key: --api-key-env NAME \(HTTP 401 for /v1/models: no key\)"):
        await found(**paths)
    with pytest.raises(UsageError, match="does not accept the key"):
        await found(key="wrong", **paths)


async def test_a_list_of_models_that_is_not_given_out_is_no_refusal_of_the_load() -> None:
    closed, models = always(403, {"error": "not yours to list"}), MODELS
    assert (await found(model="m", models=closed, health=always(), chat=always())).models == ()
    with pytest.raises(UsageError, match="wants a key"):  # an open /health says nothing of the rest
        await found(model="m", models=closed, health=always(), chat=closed)
    assert (await found(models=models, chat=closed)).models == ("m",)


async def test_a_redirect_is_refused_at_once_and_names_its_target() -> None:
    with pytest.raises(UsageError, match=r"redirect .* to http://127.0.0.2:9/x, which is not followed"):
        await found(limit_s=600, models=always(307, Location="http://127.0.0.2:9/x"))


@pytest.mark.parametrize(
    "document", [[{"id": "m"}], {"models": [{"name": "m"}]}, {"object": "list", "data": [{"id": "m"}]}]
)
async def test_a_list_of_models_in_other_forms(document: Any) -> None:
    assert (await found(models=always(document=document))).models == ("m",)


@pytest.mark.parametrize("document", [None, {"data": None}, [1], {"data": "x"}])
async def test_odd_lists_of_models_end_with_a_sentence(document: Any) -> None:
    with pytest.raises(UsageError, match=r"no usable answer within 0.3 s .*/v1/models gave no list of models"):
        await found(limit_s=0.3, models=always(document=document))


async def test_nobody_there_is_told_at_once() -> None:
    async with served() as (_, url):
        pass
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UsageError, match="nobody listens there"):
            await wait_for_server(asking(session, url), model=None, endpoint="chat")


async def test_the_wrong_scheme_is_told_at_once() -> None:
    async with served(models=MODELS) as (session, url):
        with pytest.raises(UsageError, match=r"no TLS connection .* Is its address with http://"):
            await wait_for_server(asking(session, "https" + url[4:]), model=None, endpoint="chat")


async def test_a_server_that_is_still_starting_is_waited_for_and_that_is_said() -> None:
    told: list[str] = []
    async with served(models=always(503), health=always(503)) as (session, url):
        with pytest.raises(UsageError, match=r"HTTP 503"):
            await wait_for_server(asking(session, url, 1.8), model=None, endpoint="chat", tell=told.append)
    assert len(told) == 1
    assert told[0].startswith(f"waiting for {url} (/v1/models: HTTP 503")


def test_a_model_that_is_not_served_is_named_without_control_characters() -> None:
    with pytest.raises(UsageError) as caught:
        check_served("x", ("\x1b]0;owned\x07",), "http://h")
    assert str(caught.value).isprintable()


def refusing(names: set[str], message: Callable[[list[str], dict[str, Any]], Any], status: int = 400) -> Answer:
    """A server that knows no field of `names`; `message` makes its refusal of those that came."""

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        bad = sorted(set(body) & names)
        if bad:
            return web.json_response(message(bad, body), status=status)
        return web.Response(body=GOOD + END)

    return answer


async def probed(answer: Answer, own: tuple[str, ...] = (), timeout_s: float = 10) -> FieldProbe:
    async with served(chat=answer) as (session, url):
        return await probe_fields(asking(session, url, timeout_s), "chat", BODY, own)


UNKNOWN = {"top_k", "min_p", "chat_template_kwargs", "ignore_eos", "min_tokens", "stream_options", "cache_salt"}


@pytest.mark.parametrize(
    "message",
    [
        lambda bad, body: {"error": {"message": f"Unrecognized request argument supplied: {bad[0]}", "param": None}},
        lambda bad, body: {"error": {"message": "bad", "param": bad[0], "code": "unknown_parameter"}},
        lambda bad, body: {
            "object": "error",
            "message": f"[{{'loc': ('body', '{bad[0]}'), 'msg': 'extra', 'input': 1}}]",
        },
        lambda bad, body: {"detail": [{"loc": ["body", name], "msg": "extra", "input": body} for name in bad]},
        lambda bad, body: {"error": f"UnsupportedParamsError: does not support parameters: {bad}"},
        lambda bad, body: {"error": f"create() got an unexpected keyword argument '{bad[0]}'"},
        lambda bad, body: {"error": "something is wrong with your request", "body": body},
        lambda bad, body: {"error": "no"},
        # Rust's servers (TGI, Dynamo, mistral.rs) list what they do know
        lambda bad, body: (
            f"Failed to deserialize the JSON body: unknown field `{bad[0]}`, expected one of `messages`, `model`, "
            "`max_tokens`, `max_completion_tokens`, `temperature`, `top_p`, `seed`, `stream`"
        ),
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
async def test_refused_fields_are_found_however_they_are_named(message: Any, status: int) -> None:
    probe = await probed(refusing(UNKNOWN, message, status))
    assert set(probe.refused) == UNKNOWN
    assert probe.failed is None
    assert probe.free_length
    note = probe.note() or ""
    for told in ("top_k", "sampling is not the profile's", "length is not controlled", "thinking", f"HTTP {status}"):
        assert told in note


async def test_a_server_that_takes_all_loses_nothing() -> None:
    probe = await probed(refusing(set(), lambda bad, body: None))
    assert (probe.refused, probe.note(), probe.sends_usage, probe.failed) == ((), None, True, None)


async def test_a_server_that_wants_another_name_for_the_limit() -> None:
    words = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    probe = await probed(refusing({"max_tokens"}, lambda bad, body: {"error": {"message": words}}))
    assert (probe.length_field, probe.refused) == ("max_completion_tokens", ())
    assert "max_tokens (sent as max_completion_tokens)" in (probe.note() or "")


@pytest.mark.parametrize("words", ["`temperature` and `top_k` cannot both be specified", "bad request"])
async def test_of_two_fields_that_go_alone_one_is_kept(words: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if {"temperature", "top_k"} <= set(await request.json()):
            return web.json_response({"error": {"message": words}}, status=400)
        return web.Response(body=GOOD + END)

    assert (await probed(answer)).refused == ("top_k",)


async def test_a_refusal_in_a_stream_that_began_well_is_one() -> None:
    async def answer(request: web.Request) -> web.Response:
        bad = sorted(set(await request.json()) & {"top_k", "min_p"})
        if bad:
            return web.Response(text=f'data: {{"error":{{"message":"UnsupportedParamsError: {bad[0]}"}}}}\n\n')
        return web.Response(body=GOOD + END)

    probe = await probed(answer)
    assert set(probe.refused) == {"top_k", "min_p"}
    assert "UnsupportedParamsError: min_p" in (probe.note() or "")


@pytest.mark.parametrize("status", [500, 429, 502])
async def test_a_server_that_stumbles_once_loses_no_field(status: int) -> None:
    stumbled: list[bool] = []

    async def answer(_: web.Request) -> web.Response:
        if not stumbled:
            stumbled.append(True)
            return web.Response(status=status, text="Internal Server Error")
        return web.Response(body=GOOD + END)

    probe = await probed(answer)
    assert (probe.refused, probe.note(), probe.failed) == ((), None, None)


async def test_a_server_that_does_not_stream_is_told() -> None:
    probe = await probed(always(document={"choices": [{"message": {"content": "a"}}], "usage": {}}))
    assert "one JSON document instead of a stream" in (probe.failed or "")


async def test_a_field_of_the_users_own_is_not_dropped_in_silence() -> None:
    with pytest.raises(UsageError, match="--extra-body: the server refuses top_k"):
        await probed(refusing({"top_k"}, lambda bad, body: {"error": f"unknown field {bad[0]}"}), own=("top_k",))


async def test_an_error_of_another_kind_is_told_and_blamed_on_no_field() -> None:
    probe = await probed(always(404, {"error": {"message": "no such model: m"}}))
    assert (probe.refused, probe.failed) == ((), "HTTP 404: no such model: m")
    probe = await probed(always(400, {"error": {"message": "the model is not loaded"}}))
    assert (probe.refused, probe.failed) == ((), "HTTP 400: the model is not loaded")


async def test_a_stream_that_stays_open_after_its_end_mark_is_not_waited_for() -> None:
    async def open_end(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(GOOD + END)
        await request.content.read()
        while request.transport is not None and not request.transport.is_closing():
            await response.write(b": still here\n\n")
        return response

    assert (await probed(open_end, timeout_s=60)).failed is None


@pytest.mark.parametrize("document", [[], {"count": None}, {"count": "7"}, {"count": 10**30}, {"count": 0}, None, "x"])
async def test_odd_counts_of_tokens_leave_the_usual_ratio(document: Any) -> None:
    prompts = [Prompt(id="p", turns=(PromptTurn(user="some words"),))]
    async with served(tokenize=always(document=document)) as (session, url):
        assert await chars_per_token(asking(session, url), "m", prompts) == CHARS_PER_TOKEN
    async with served(tokenize=always(document={"count": 2})) as (session, url):
        assert await chars_per_token(asking(session, url), "m", prompts) == 5.0

"""The canary's questions, its grading and the asking."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.bounded_http import Questions, WaitLimit
from qwenbench.errors import RunError
from qwenbench.workload.canary import (
    agreement,
    ask_canary,
    canary_questions,
    canary_requests,
    grade,
    is_right,
    wilson_interval,
)
from qwenbench.workload.planning import RequestOptions


def test_canary_has_32_questions_asked_greedily() -> None:
    questions = canary_questions()
    assert len(questions) == 32
    assert len({question.id for question in questions}) == 32
    bodies = canary_requests(RequestOptions(model="m"))
    assert all(body["temperature"] == 0 and body["model"] == "m" for body in bodies)
    assert all(body["chat_template_kwargs"] == {"enable_thinking": False} for body in bodies)
    # no question gives its own answer away to a model that only echoes it
    echoed = [question.id for question in questions if is_right(question.question, question.accept)]
    assert set(echoed) <= {"canary-09", "canary-25", "canary-31"}


@pytest.mark.parametrize(
    ("answer", "accept", "right"),
    [
        ("43", ["43"], True),
        ("**43**", ["43"], True),
        ("The answer is 43.", ["43"], True),
        ("17 + 26 = 43", ["43"], True),
        ("143", ["43"], False),
        ("4.3", ["43"], False),
        ("40 41 42 43 44 45", ["43"], False),
        ("Lisbon.", ["lisbon"], True),
        ("CO2", ["carbon dioxide", "co2"], True),
        ("Carbon Dioxide (CO₂)", ["carbon dioxide"], True),
        ("Porto", ["lisbon"], False),
        ("", ["43"], False),
        ("!!!!!!", ["43"], False),
        ("hot " * 60, ["hot"], False),
        ("3.9", ["3.9"], True),
        ("3.11", ["3.9"], False),
    ],
)
def test_canary_grades_an_answer(answer: str, accept: list[str], right: bool) -> None:
    assert is_right(answer, accept) is right


def test_canary_all_right_and_agreement() -> None:
    right = [question.accept[0].upper() for question in canary_questions()]
    all_right = grade(right)
    assert all_right.accuracy == 1.0
    assert 0.89 < all_right.low < 0.9
    assert all_right.high == 1.0
    half = grade([answer if number % 2 else "nonsense" for number, answer in enumerate(right)])
    assert half.accuracy == 0.5
    assert agreement(all_right, half) == 0.5
    assert agreement(half, half) == 1.0
    missing = grade([None, *right[1:]])
    assert missing.unanswered == 1
    assert agreement(missing, missing) == 31 / 32


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_canary_wilson_interval_holds_the_share(hits_and_count: tuple[int, int]) -> None:
    hits, count = hits_and_count
    low, high = wilson_interval(hits, count)
    assert 0 <= low <= hits / count + 1e-12
    assert hits / count - 1e-12 <= high <= 1
    assert high - low <= 1.96 / count**0.5 + 1e-9


async def _ask(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handler)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        return await ask_canary(
            Questions(session, str(server.make_url("")).rstrip("/"), {}, WaitLimit(60)), RequestOptions(model="m")
        )


def test_canary_is_salted_as_every_request_and_leaves_out_what_is_refused() -> None:
    salted = canary_requests(RequestOptions(model="m", salt="z", salt_mode="cache_salt"))
    assert len({body["cache_salt"] for body in salted}) == 32
    options = RequestOptions(model="m", salt="z", salt_mode="prefix", left_out=frozenset({"chat_template_kwargs"}))
    for body in canary_requests(options):
        assert body["messages"][0]["content"].startswith("[z-canary-")
        assert not {"cache_salt", "chat_template_kwargs", "stream_options", "ignore_eos"} & set(body)


async def test_canary_asks_a_server() -> None:
    answers = {
        body["messages"][0]["content"]: question.accept[0]
        for body, question in zip(canary_requests(RequestOptions(model="m")), canary_questions(), strict=True)
    }

    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        text = "<think>\n\n</think>\n\n" + answers[body["messages"][0]["content"]]
        return web.json_response({"choices": [{"message": {"content": text}}]})

    assert (await _ask(handler)).accuracy == 1.0


async def test_canary_says_why_nothing_was_answered() -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"error": "no chat template"}, status=400)

    with pytest.raises(RunError, match=r"none of 32 questions: HTTP 400"):
        await _ask(handler)

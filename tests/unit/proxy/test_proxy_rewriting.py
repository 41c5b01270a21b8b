"""What the proxy changes in requests and answers, and what it leaves as it was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.http1.reading import HttpError
from qwenbench.proxy.rewriting import BadRequest, ModelListing, NameRestorer, rewrite_request, virtual_models
from qwenbench.workload.profiles import PROFILES

MODELS = virtual_models()
SERVED = "Qwen3.5-9B"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def _rewritten(path: str, body: dict[str, Any], *, enforce: bool = False) -> dict[str, Any]:
    result: dict[str, Any] = orjson.loads(
        rewrite_request(path, orjson.dumps(body), MODELS, SERVED, enforce=enforce).body
    )
    return result


def test_proxy_offers_the_four_names_of_the_seed() -> None:
    assert list(MODELS) == [
        "qwen3.5-thinking-general",
        "qwen3.5-thinking-coding",
        "qwen3.5-instruct-general",
        "qwen3.5-instruct-reasoning",
    ]


@pytest.mark.parametrize("name", list(MODELS))
def test_proxy_fills_all_seven_parameters_zeros_included(name: str) -> None:
    body = _rewritten(CHAT, {"model": name, "messages": MESSAGES})
    profile = PROFILES[name.removeprefix("qwen3.5-")]
    assert body == {"model": SERVED, "messages": MESSAGES, **profile.request_fields()}
    assert body["min_p"] == 0.0


def test_proxy_fills_only_what_is_missing_unless_enforced() -> None:
    given_body = {"model": "qwen3.5-thinking-coding", "messages": MESSAGES, "temperature": 0, "top_k": None, "seed": 3}
    filled = _rewritten(CHAT, given_body)
    assert (filled["temperature"], filled["top_k"], filled["top_p"], filled["seed"]) == (0, 20, 0.95, 3)
    enforced = _rewritten(CHAT, given_body, enforce=True)
    assert (enforced["temperature"], enforced["seed"]) == (0.6, 3)


def test_proxy_thinking_follows_the_name_and_keeps_other_template_arguments() -> None:
    kwargs = {"enable_thinking": True, "language": "de"}
    body = _rewritten(CHAT, {"model": "qwen3.5-instruct-general", "messages": MESSAGES, "chat_template_kwargs": kwargs})
    assert body["chat_template_kwargs"] == {"enable_thinking": False, "language": "de"}


def test_proxy_completions_get_sampling_but_no_template_arguments() -> None:
    body = _rewritten("/v1/completions", {"model": "qwen3.5-thinking-general", "prompt": "x"})
    assert body == {"model": SERVED, "prompt": "x", **PROFILES["thinking-general"].sampling()}


def test_proxy_tokenize_changes_the_name_and_thinking_only() -> None:
    text = {"model": "qwen3.5-thinking-general", "prompt": "x"}
    assert _rewritten("/tokenize", text) == {"model": SERVED, "prompt": "x"}
    chat = _rewritten("/tokenize", {"model": "qwen3.5-thinking-general", "messages": MESSAGES})
    assert chat["chat_template_kwargs"] == {"enable_thinking": True}
    assert "temperature" not in chat
    assert _rewritten("/tokenize", {"prompt": "x"}) == {"prompt": "x"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"model": "gpt-4", "messages": []}', "'gpt-4' is unknown; this proxy serves qwen3.5-thinking-general"),
        (b'{"model": "Qwen3.5-9B", "messages": []}', "is unknown"),
        (b'{"messages": []}', "model is missing"),
        (b'{"model": 3}', "model is no text"),
        (b"[]", "no JSON object"),
        (b"\xff", "no JSON object"),
        (b'{"model": "qwen3.5-instruct-general", "messages": [], "chat_template_kwargs": 1}', "is no object"),
    ],
)
def test_proxy_refuses_what_it_cannot_route(body: bytes, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        rewrite_request(CHAT, body, MODELS, SERVED)


def test_proxy_leaves_other_paths_alone_but_for_a_virtual_name() -> None:
    assert _rewritten("/v1/embeddings", {"model": "other", "input": "x"}) == {"model": "other", "input": "x"}
    renamed = _rewritten("/v1/embeddings", {"model": "qwen3.5-instruct-general", "input": "x"})
    assert renamed == {"model": SERVED, "input": "x"}
    assert rewrite_request("/v1/audio", b"\x00\x01", MODELS, SERVED).body == b"\x00\x01"


EVENTS = (
    b'data: {"id":"1","model":"Qwen3.5-9B","choices":[{"delta":{"content":"\\"model\\":\\"Qwen3.5-9B\\""}}]}\n\n'
    b'data: {"id":"1","model": "Qwen3.5-9B","choices":[]}\n\ndata: [DONE]\n\n'
)


@given(st.lists(st.integers(0, len(EVENTS)), max_size=12))
def test_proxy_restores_the_name_however_the_bytes_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(EVENTS)]
    restorer = NameRestorer(SERVED, "qwen3.5-instruct-general")
    out = b"".join(restorer.feed(EVENTS[a:b]) for a, b in pairwise(places)) + restorer.finish()
    assert out.count(b'"qwen3.5-instruct-general"') == 2
    # what the model wrote stays as it was
    assert b'\\"model\\":\\"Qwen3.5-9B\\"' in out
    assert out.replace(b"qwen3.5-instruct-general", b"Qwen3.5-9B") == EVENTS


def test_proxy_holds_no_whole_event_back() -> None:
    restorer = NameRestorer(SERVED, "v")
    assert restorer.feed(b'data: {"model":"Qwen3.5-9B"}\n\n') == b'data: {"model":"v"}\n\n'
    assert restorer.feed(b'data: {"mod') == b""
    assert restorer.feed(b'el":"Qwen3.5-9B"}\n') == b'data: {"model":"v"}\n'


def test_proxy_holds_only_the_end_of_a_line_that_does_not_end() -> None:
    restorer = NameRestorer(SERVED, "v")
    passed = b"".join(restorer.feed(b'{"model":"Qwen3.5-9B"}' + b"x" * 65_000) for _ in range(40))
    assert len(passed) > 1_000_000
    whole = passed + restorer.finish()
    assert whole == (b'{"model":"v"}' + b"x" * 65_000) * 40


def test_proxy_lists_virtual_models_with_what_the_target_says() -> None:
    listing = ModelListing(MODELS, SERVED)
    row = {"id": SERVED, "object": "model", "owned_by": "vllm", "root": "ig1/x", "max_model_len": 110880}
    assert listing.feed(orjson.dumps({"object": "list", "data": [{"id": "lora"}, row]})) == b""
    shown = orjson.loads(listing.finish())["data"]
    assert [one["id"] for one in shown] == list(MODELS)
    assert all(one["max_model_len"] == 110880 and one["root"] == "ig1/x" for one in shown)


def test_proxy_refuses_a_list_of_models_without_end() -> None:
    listing = ModelListing(MODELS, SERVED)
    with pytest.raises(HttpError, match="too long"):
        for _ in range(100):
            listing.feed(b"x" * 65_536)


@pytest.mark.parametrize(
    "listed",
    [
        b'{"data": [{"id": "other", "max_model_len": 5}]}',
        b'{"data": [{"id": "Qwen3.5-9B", "max_model_len": %b}]}' % (b"[" * 500 + b"]" * 500),
        b"\x1f\x8b packed",
    ],
)
def test_proxy_lists_bare_names_when_the_target_does_not_tell_of_the_model(listed: bytes) -> None:
    listing = ModelListing(MODELS, SERVED)
    listing.feed(listed)
    shown = orjson.loads(listing.finish())["data"]
    assert [one["id"] for one in shown] == list(MODELS)
    assert "max_model_len" not in shown[0]

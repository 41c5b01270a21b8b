"""What is asked of a server before any load: whether it is there, what it serves, and which fields it refuses."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from qwenbench.bounded_http import NoReplyError, Questions, Reply
from qwenbench.engine.readiness import model_names
from qwenbench.errors import UsageError
from qwenbench.load.chunks import StreamFacts
from qwenbench.load.spec import ENDPOINT_PATHS
from qwenbench.load.sse import decode_stream
from qwenbench.load.text_tokens import text_tokens
from qwenbench.server_words import visible
from qwenbench.workload.prompts import Prompt
from qwenbench.workload.scenario import CHARS_PER_TOKEN

_PAUSE_S = 0.25
_TELL_AFTER_S = 1.0
_END_MARK = b"[DONE]"
_PROBE_BYTES = 1024 * 1024
_ROUNDS = 16
"""A strict server may name its refusals one by one."""

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "seed")
_FIELD_STATUS = (400, 422, 500, 501)
"""HTTP statuses with which servers refuse a field."""
_PASSING_STATUS = (429, 502, 503, 504)
_PATIENCE = 2
"""A probe that meets one of these is sent again so many times, after a second."""
_NEEDED = frozenset({"model", "messages", "prompt", "stream", "max_tokens", "max_completion_tokens"})
_OTHER_NAMES = {"enable_thinking": "chat_template_kwargs", "include_usage": "stream_options"}


@dataclass(frozen=True, slots=True)
class Presence:
    models: tuple[str, ...]
    """As /v1/models lists them; empty where it has no such list."""
    listed: object = None
    """The whole answer of /v1/models."""


async def wait_for_server(
    questions: Questions,
    *,
    model: str | None,
    endpoint: str,
    starting: bool = False,
    tell: Callable[[str], None] = lambda _text: None,
) -> Presence:
    """Wait until a server that is already there answers /v1/models, /health or a one-token request.

    The key goes with every question. `tell` is called once when it takes longer. Raises UsageError: it refuses the key
    or leads elsewhere, or nobody listens there (at once, unless it is known to be `starting`), or gives nothing usable
    within the questions' limit.
    """
    base_url, limit = questions.base_url, questions.limit
    told = time.monotonic() + _TELL_AFTER_S
    while True:
        began = time.monotonic()
        look = _Look(questions)
        models = await look.models()
        # /health is often open where the rest is not
        present = models is not None or (look.denied is None and await look.health())
        if present or (model and await look.request(model, endpoint)):
            return Presence(models or (), look.listed)
        if look.denied is not None:
            raise UsageError(f"--url {base_url}: {look.denied}.")
        seen = "; ".join(look.seen)
        if look.refused and not starting:
            raise UsageError(
                f"--url {base_url}: nobody listens there ({seen}). Is it running, is that its address? "
                "A server that is still starting is waited for with --startup-timeout."
            )
        if limit.look_s < _PAUSE_S:
            scheme = " with http://, not https://" if look.broken and base_url.startswith("http:") else ""
            raise UsageError(
                f"--url {base_url}: no usable answer within {limit.limit_s:g} s ({seen}). "
                f"Is it running, is that its address{scheme}" + ("?" if model else ", and what is its --model?")
            )
        if time.monotonic() >= told:
            told = float("inf")
            tell(f"waiting for {base_url} ({seen})")
        await asyncio.sleep(_PAUSE_S)
        limit.count(began, in_vain=True)
        questions.forget()


class _Look:
    def __init__(self, questions: Questions) -> None:
        self.listed: object = None
        self.seen: list[str] = []
        self.refused = False
        """Nobody listens there."""
        self.broken = False
        """What it gives is no HTTP."""
        self.denied: str | None = None
        """What it says of the key, where that is not enough."""
        self._questions = questions

    async def models(self) -> tuple[str, ...] | None:
        """The models that it lists; None when it lists none."""
        reply = await self._ask("/v1/models")
        if reply is None or reply.status != 200:
            return None
        self.listed = reply.json()
        names = model_names(self.listed)
        if names is None:
            self.seen.append("/v1/models gave no list of models")
        return names

    async def health(self) -> bool:
        """Whether /health says that all is well."""
        reply = await self._ask("/health")
        return reply is not None and reply.status == 200

    async def request(self, model: str, endpoint: str) -> bool:
        """Whether it answers a request for one token."""
        reply = await self._ask(ENDPOINT_PATHS[endpoint], one_token(model, endpoint), tokens=True)
        return reply is not None and reply.status == 200

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None, *, tokens: bool = False) -> Reply | None:
        try:
            reply = await self._questions.ask(path, body, tokens=tokens)
        except NoReplyError as problem:
            if problem.kind == "redirect":
                raise UsageError(f"--url {self._questions.base_url}: {path} gives {problem}.") from None
            if problem.kind == "tls":
                hint = "Is its address with http://, not https://?"
                if "certificate" in str(problem):
                    hint = "The environment variable SSL_CERT_FILE may name a file with the certificate to trust."
                raise UsageError(f"--url {self._questions.base_url}: {problem}. {hint}") from None
            self.broken |= problem.kind == "broken"
            if not self.refused:
                self.seen.append(f"{path}: {problem}")
            self.refused |= problem.kind == "refused"
            return None
        if reply.status in (401, 403):
            keyed = self._questions.headers
            given = "does not accept the key it was given" if keyed else "wants a key: --api-key-env NAME"
            self.denied = f"{given} (HTTP {reply.status} for {path}: {reply.words()})"
        if reply.status != 200:
            self.seen.append(f"{path}: HTTP {reply.status}: {reply.words(120)}")
        return reply


async def served_models(questions: Questions) -> tuple[str, ...]:
    """The names that /v1/models lists; empty when it does not answer."""
    try:
        reply = await questions.ask("/v1/models")
    except NoReplyError:
        return ()
    return (model_names(reply.json()) or ()) if reply.status == 200 else ()


def model_facts(listed: object, model: str | None) -> tuple[str | None, int | None]:
    """What an answer of /v1/models tells of a model: the name or folder that it was loaded from, and its longest
    request in tokens; None where it does not."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    row = next((row for row in rows or [] if isinstance(row, dict) and row.get("id") == model), {})
    root, length = row.get("root"), row.get("max_model_len")
    return (
        visible(root)[:400] if isinstance(root, str) and root else None,
        length if isinstance(length, int) else None,
    )


async def server_version(questions: Questions) -> str | None:
    """What /version says, or None."""
    try:
        reply = await questions.ask("/version")
    except NoReplyError:
        return None
    data = reply.json() if reply.status == 200 else None
    version = data.get("version") if isinstance(data, dict) else None
    return visible(version)[:80] if isinstance(version, str) else None


def says_simulated(version: str | None) -> bool:
    """Whether a server's version says that it is the simulator, however it was started."""
    return version is not None and "simulated" in version


def check_served(model: str, served: Sequence[str], base_url: str) -> None:
    """Raises UsageError unless the server serves this model."""
    if model not in served:
        names = ", ".join(map(visible, served)) or "no model"
        raise UsageError(f"{base_url} does not serve {visible(model)!r} but {names}. Give one of these with --model.")


async def check_answers_for(questions: Questions, model: str, served: Sequence[str], endpoint: str) -> str | None:
    """Raises UsageError unless the server lists the model or answers a request for one token of it, as gateways do
    for names that they pass on. The second is worth a line, which is returned."""
    if model in served:
        return None
    if not await _Look(questions).request(model, endpoint):
        check_served(model, served, questions.base_url)
    return f"{questions.base_url} does not list {visible(model)!r} but answers for it."


@dataclass(frozen=True, slots=True)
class FieldProbe:
    """Which fields of a request a server refuses."""

    refused: tuple[str, ...] = ()
    words: str = ""
    """The server's first refusal in its own words."""
    length_field: str = "max_tokens"
    sends_usage: bool | None = None
    """Whether the probe's stream told its usage; None: no whole answer was seen."""
    failed: str | None = None
    """Why even a plain request failed; None: it did not."""

    def note(self) -> str | None:
        """One line that says what is left out and what that means; None when nothing is."""
        meanings = (
            (SAMPLING, "sampling is not the profile's"),
            (("chat_template_kwargs",), "thinking is not switched on or off"),
            (("ignore_eos", "min_tokens"), "length is not controlled" if self.free_length else "length still is"),
            (("stream_options",), "usage may not come, so tokens may stay unknown"),
            (("cache_salt",), "a nonce in each prompt keeps them out of the prefix cache"),
        )
        told = []
        for names, meaning in meanings:
            found = [name for name in self.refused if name in names]
            if found:
                told.append(f"{', '.join(found)} ({meaning})")
        if self.length_field != "max_tokens":
            told.append(f"max_tokens (sent as {self.length_field})")
        return f"left out, as the server refuses them: {'; '.join(told)}. It said: {self.words}" if told else None

    @property
    def free_length(self) -> bool:
        """Whether no field is left that forces an answer's length."""
        return {"ignore_eos", "min_tokens"} <= set(self.refused)


async def probe_fields(questions: Questions, endpoint: str, body: Mapping[str, Any], own: Sequence[str]) -> FieldProbe:
    """Send one-token requests with the fields of `body`, leaving out what is refused until one is accepted.

    `own` are fields that the user asked for (--extra-body). Raises UsageError when one of those is refused.
    """
    probe = _FieldProbing(questions, endpoint, dict(body))
    try:
        found = await probe.run()
    except NoReplyError as problem:
        return FieldProbe(failed=str(problem))
    asked_for = [name for name in found.refused if name in own]
    if asked_for:
        raise UsageError(f"--extra-body: the server refuses {', '.join(asked_for)}: {found.words}")
    return found


class _Refusal(NamedTuple):
    reply: Reply
    words: str
    of_fields: bool
    """Whether a field may be the reason."""


class _FieldProbing:
    def __init__(self, questions: Questions, endpoint: str, body: dict[str, Any]) -> None:
        self._questions = questions
        self._path = ENDPOINT_PATHS[endpoint]
        self._body = body
        self._words = ""
        self._accepted: StreamFacts | None = None

    async def run(self) -> FieldProbe:
        """Leave out what a refusal names until one is accepted, then put back what may have been named by chance."""
        whole = dict(self._body)
        doubtful: list[str] = []
        for number in range(_ROUNDS):
            refusal = await self._refusal(self._body)
            if refusal is None:
                break
            if refusal.reply.status in _PASSING_STATUS and number < _PATIENCE:
                await asyncio.sleep(_PAUSE_S * 4)
                continue
            self._words = self._words or refusal.words
            names, sure = self._named(refusal.reply) if refusal.of_fields else ([], False)
            if not names:
                return FieldProbe(failed=refusal.words)
            doubtful += [] if sure else names
            self._body = {name: value for name, value in self._body.items() if name not in names}
            if "max_tokens" in names:
                self._body["max_completion_tokens"] = whole["max_tokens"]
        for name in doubtful:
            fuller = {**self._body, name: whole[name]}
            if name == "max_tokens":
                del fuller["max_completion_tokens"]
            if await self._refusal(fuller) is None:
                self._body = fuller
        return self._found(whole)

    def _found(self, whole: Mapping[str, Any]) -> FieldProbe:
        facts = self._accepted
        if facts is None:
            return FieldProbe(failed=self._words)
        refused = tuple(name for name in whole if name not in self._body and name not in _NEEDED)
        limit = "max_completion_tokens" if "max_completion_tokens" in self._body else "max_tokens"
        counts = facts.most_tokens > 0 if facts.error is None else None
        return FieldProbe(refused, self._words, limit, counts, facts.detail)

    async def _refusal(self, body: Mapping[str, Any]) -> _Refusal | None:
        """What the server says against a body; None when it accepts it."""
        reply = await self._questions.ask(self._path, body, tokens=True, max_bytes=_PROBE_BYTES, until=_END_MARK)
        if reply.status != 200:
            return _Refusal(reply, f"HTTP {reply.status}: {reply.words()}", reply.status in _FIELD_STATUS)
        facts = decode_stream(reply.body)
        if facts.error == "stream_error":
            return _Refusal(reply, visible(facts.detail or ""), True)
        self._accepted = facts
        return None

    def _named(self, reply: Reply) -> tuple[list[str], bool]:
        """The fields of the body that a refusal names, or all that are not needed; and whether it is sure of them.

        It is where it says so (`param`, `loc`), or names one. A list may be of what it does know, or an echo.
        """
        document = reply.json()
        places = " ".join(_places(document)) if isinstance(document, dict) else ""
        text = reply.body[:65536].decode("utf-8", "replace")
        for said in (places, text):
            words = set(re.findall(r"\w+", said))
            words |= {_OTHER_NAMES[word] for word in words if word in _OTHER_NAMES}
            found = [name for name in self._body if name in words and name not in _NEEDED]
            if "max_tokens" in words & self._body.keys() and "max_completion_tokens" in text:
                found.append("max_tokens")
            if found:
                return found, said is places or len(found) == 1
        return [name for name in self._body if name not in _NEEDED], False


def _places(value: Any) -> list[str]:
    """What stands under `param` and `loc` anywhere in an error document."""
    found: list[str] = []
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("param", "loc"):
                found += [str(part) for part in (inner if isinstance(inner, list) else [inner]) if part is not None]
            elif name not in ("input", "body"):
                found += _places(inner)
    elif isinstance(value, list):
        for inner in value:
            found += _places(inner)
    return found


def one_token(model: str, endpoint: str) -> dict[str, Any]:
    """A request for one token."""
    hello = {"messages": [{"role": "user", "content": "Say hello."}]} if endpoint == "chat" else {"prompt": "Hello"}
    return {"model": model, **hello, "max_tokens": 1}


async def gives_a_token(questions: Questions, model: str, endpoint: str) -> bool:
    """Whether it answers a request for one token, and be it by a refusal of its fields. Raises NoReplyError."""
    reply = await questions.ask(ENDPOINT_PATHS[endpoint], one_token(model, endpoint), tokens=True)
    return reply.status < 500


async def chars_per_token(questions: Questions, model: str, prompts: Sequence[Prompt], sample: int = 12) -> float:
    """Characters per token of these prompts under the server's own tokenizer (/tokenize), else the usual 4."""
    texts = [prompt.turns[0].user for prompt in prompts[:: max(1, len(prompts) // sample)]]
    counts = await text_tokens(questions, model, texts) if texts else []
    known = [count for count in counts if count is not None]
    return sum(map(len, texts)) / sum(known) if known and len(known) == len(texts) else CHARS_PER_TOKEN

"""Small HTTP questions to a server: bounded in time and in bytes, and no redirect is followed.

Whatever is asked besides the load (models, health, metrics, tokenize, probes) goes through here, so that a server
that never ends, floods or points elsewhere costs a sentence and neither memory nor a secret.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urljoin, urlsplit

import orjson

from qwenbench.server_words import visible, words_of

if TYPE_CHECKING:
    import aiohttp  # costs 0.1 s, and a client process of the load never asks

MAX_REPLY_BYTES = 4 * 1024 * 1024
"""An answer to a question is read up to here."""
_MAX_LINE_BYTES = 256 * 1024
_KEPT_CONNECTIONS = 2
"""Questions are asked again after so many connections that were closed before they answered."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

NoReplyKind = Literal["refused", "tls", "timeout", "redirect", "too_long", "broken"]


class NoReplyError(Exception):
    """A question without a usable answer. The text is a clause such as `no whole answer within 5 s`."""

    def __init__(self, kind: NoReplyKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


_API_PATH = re.compile(r"(?<![:/])/+(?:v1|(?:chat/+)?completions|models)/*$")


def server_base(url: str) -> str:
    """A server's address without what its API's paths begin with, which people copy along: `http://host/v1/`."""
    while _API_PATH.search(url):
        url = _API_PATH.sub("", url)
    return url.rstrip("/")


def tokenize_question(model: str | None, text: str) -> dict[str, Any]:
    """What /tokenize is asked: vLLM and SGLang read `prompt`, llama.cpp `content`, TGI `inputs`."""
    question = {"prompt": text, "content": text, "inputs": text, "add_special_tokens": False}
    return question if model is None else {"model": model, **question}


def tokens_told(answer: object) -> int | None:
    """The tokens in an answer of /tokenize: vLLM's `count`, llama.cpp's list under `tokens`, TGI's list with places."""
    tokens = answer.get("tokens") if isinstance(answer, Mapping) else answer
    count = answer.get("count") if isinstance(answer, Mapping) else None
    if count is None and isinstance(tokens, list):
        # TGI adds the tokenizer's begin of text, which stands for no text
        places = [one for one in tokens if isinstance(one, Mapping) and one.get("start") != one.get("stop")]
        count = len(places or tokens)
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 < count < 10**9 else None


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer, of whatever status but a redirect."""

    status: int
    body: bytes = field(repr=False)

    def json(self) -> Any | None:
        """The body's JSON value; None when it is none (or nested beyond orjson's limit)."""
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return None

    def words(self, longest: int = 300) -> str:
        """The server's own words for people: the message of a JSON error, else the text; on one line, no controls."""
        return visible(" ".join(words_of(self.body, 4 * longest).split()))[:longest]


LOOK_S = 10.0
"""A small question (what is served, a count, a reading) is waited for no longer than this, whatever is left."""
_LEAST_S = 0.02
"""Less than this is no time to ask in."""
_AT_A_TIME = 8


class WaitLimit:
    """How long a server may keep us waiting: one limit over all that is asked of it, in seconds.

    Waits that overlap count once. What brought no whole answer counts against all (`left_s`), what was answered only
    against further small questions (`look_s`), so that neither silence nor dripping adds up. An answer to a request
    for tokens shows that the server works, and then the count begins anew (`restart`).
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._in_vain_s = self._asked_s = 0.0
        self._counted = 0.0
        """Monotonic time up to which waits are counted."""

    @property
    def left_s(self) -> float:
        return max(0.0, self.limit_s - self._in_vain_s)

    @property
    def over(self) -> bool:
        return self.left_s < _LEAST_S

    @property
    def look_s(self) -> float:
        """The wait for a small question: half of what is left, so that the others are never without."""
        return min(LOOK_S, max(0.0, self.limit_s - self._asked_s) / 2)

    def count(self, began: float, *, in_vain: bool) -> None:
        """Counts a wait that began at this monotonic time and is over now."""
        now = time.monotonic()
        waited = max(0.0, now - max(began, self._counted))
        self._counted = now
        self._asked_s += waited
        if in_vain:
            self._in_vain_s += waited

    def spend(self, seconds: float) -> None:
        """Counts a wait in vain that somebody else has timed."""
        self._asked_s += seconds
        self._in_vain_s += seconds

    def tighten(self, limit_s: float) -> None:
        """Leaves at most so much from now on."""
        self.limit_s = min(self.limit_s, self._in_vain_s + limit_s)

    def restart(self, limit_s: float | None = None) -> None:
        """Begins to count anew, under another limit where one is given."""
        self.limit_s = self.limit_s if limit_s is None else limit_s
        self._in_vain_s = self._asked_s = 0.0


class Questions:
    """All that is asked of one server besides the load goes through here: bounded in bytes, and in time by one limit.

    A path that stayed silent once is not asked again (`forget` allows it). Every method raises NoReplyError.
    """

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, headers: Mapping[str, str], limit: WaitLimit
    ) -> None:
        self.base_url = base_url
        self.headers = headers
        self.limit = limit
        self._session = session
        self._silent: set[str] = set()

    def forget(self) -> None:
        """Asks again what was silent: for somebody who waits for a server."""
        self._silent.clear()

    async def ask(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        tokens: bool = False,
        max_bytes: int = MAX_REPLY_BYTES,
        until: bytes | None = None,
    ) -> Reply:
        """GET a path, or POST `body` as JSON to it.

        `tokens`: a request for tokens may take all that the limit leaves. `until`: bytes after which nothing more is
        waited for, such as a stream's end mark.
        """
        async with self._in_time(path, self.limit.left_s if tokens else self.limit.look_s):
            return await self._ask(path, body, max_bytes, until)

    async def ask_many(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Reply | None]:
        """POST several bodies as one small question, the first one alone; None where no answer came.

        Ends after the first one unless that is answered with HTTP 200.
        """
        gate = asyncio.Semaphore(_AT_A_TIME)

        async def one(body: Mapping[str, Any]) -> Reply | None:
            async with gate:
                try:
                    return await self._ask(path, body, MAX_REPLY_BYTES, None)
                except NoReplyError:
                    return None

        async with self._in_time(path, self.limit.look_s):
            first = await self._ask(path, bodies[0], MAX_REPLY_BYTES, None)
            if first.status != 200:
                return [first]
            return [first, *await asyncio.gather(*map(one, bodies[1:]))]

    async def ask_lines(
        self, path: str, prefixes: tuple[bytes, ...], *, aside: bool = False, max_bytes: int = MAX_REPLY_BYTES
    ) -> Reply:
        """GET a text and keep the lines that begin with one of `prefixes` only, read as they come.

        The page may be as long as the time allows; what is kept may not pass `max_bytes`, nor a line 256 KiB.
        `aside`: nobody waits for it, so it is asked for whatever was, and counts for nothing.
        """
        wait_s = min(LOOK_S, self.limit.limit_s / 2) if aside else self.limit.look_s
        kept: list[bytes] = []
        size = 0
        rest = b""
        async with (
            self._in_time(path, wait_s, aside=aside),
            _answer(self._session, self.base_url + path, self.headers, None) as answer,
        ):
            async for part in answer.content.iter_any():
                lines = (rest + part).split(b"\n")
                rest = lines.pop()
                wanted = [line for line in lines if line.startswith(prefixes)]
                size += sum(map(len, wanted))
                if size > max_bytes or len(rest) > _MAX_LINE_BYTES:
                    answer.close()
                    raise NoReplyError("too_long", f"more than {max_bytes:,} bytes of text, or a line without end")
                kept += wanted
            if rest.startswith(prefixes):
                kept.append(rest)
            return Reply(answer.status, b"\n".join([*kept, b""]))

    @asynccontextmanager
    async def _in_time(self, path: str, wait_s: float, *, aside: bool = False) -> AsyncIterator[None]:
        if not aside and (path in self._silent or wait_s < _LEAST_S):
            raise NoReplyError("timeout", "no answer before, so it is not asked again")
        began, in_vain = time.monotonic(), True
        try:
            async with asyncio.timeout(wait_s):
                yield
            in_vain = False
            self._silent.discard(path)
        except TimeoutError:
            self._silent.add(path)
            raise NoReplyError("timeout", f"no whole answer within {wait_s:.3g} s") from None
        finally:
            if not aside:
                self.limit.count(began, in_vain=in_vain)

    async def _ask(self, path: str, body: Mapping[str, Any] | None, max_bytes: int, until: bytes | None) -> Reply:
        parts: list[bytes] = []
        size = 0
        async with _answer(self._session, self.base_url + path, self.headers, body) as answer:
            async for part in answer.content.iter_any():
                size += len(part)
                if size > max_bytes:
                    answer.close()
                    raise NoReplyError("too_long", f"an answer of more than {max_bytes:,} bytes")
                parts.append(part)
                if until is not None and until in b"".join(parts[-2:]):
                    answer.close()
                    break
            return Reply(answer.status, b"".join(parts))


@asynccontextmanager
async def _answer(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str],
    body: Mapping[str, Any] | None,
) -> AsyncIterator[aiohttp.ClientResponse]:
    import aiohttp

    sent = {"Accept-Encoding": "identity", **headers}
    data = None
    if body is not None:
        data = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
        sent = {**sent, "Content-Type": "application/json"}
    try:
        answer = await _asked(session, url, data, sent)
        try:
            if answer.status in _REDIRECTS:
                target = _without_secrets(urljoin(url, answer.headers.get("Location", "")))
                text = f"a redirect (HTTP {answer.status}) to {target}, which is not followed"
                raise NoReplyError("redirect", text)
            yield answer
        finally:
            answer.release()
    except aiohttp.ClientSSLError as problem:
        raise NoReplyError("tls", f"no TLS connection ({_tls_reason(problem)})") from None
    except (aiohttp.ClientConnectorError, ConnectionRefusedError) as problem:
        reason = getattr(problem, "strerror", None) or getattr(problem, "os_error", None)
        raise NoReplyError("refused", f"no connection ({visible(str(reason or type(problem).__name__))})") from None
    except TimeoutError:
        raise  # an OSError since Python 3.11, and whose time it is knows only who asked
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        raise NoReplyError("broken", f"no valid HTTP answer ({type(problem).__name__})") from None


async def _asked(
    session: aiohttp.ClientSession, url: str, data: bytes | None, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """The answer's head; a kept connection that the server has closed meanwhile is no answer, so it is asked again."""
    import aiohttp

    method = "GET" if data is None else "POST"
    no_limit = aiohttp.ClientTimeout(total=None)  # the caller has one over all of it
    for _ in range(_KEPT_CONNECTIONS):
        try:
            return await session.request(
                method, url, data=data, headers=headers, allow_redirects=False, timeout=no_limit
            )
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as problem:
            if isinstance(problem, aiohttp.ClientConnectorError):
                raise
    return await session.request(method, url, data=data, headers=headers, allow_redirects=False, timeout=no_limit)


def _tls_reason(problem: aiohttp.ClientSSLError) -> str:
    cause = getattr(problem, "certificate_error", None) or problem.os_error
    told = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or type(cause).__name__
    return visible(str(told))


def _without_secrets(url: str) -> str:
    """Scheme, host and path of a redirect's target: what follows may hold keys."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or "?"
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "an address that is none"
    return visible(f"{parts.scheme}://{host}{port}{parts.path}")[:200]

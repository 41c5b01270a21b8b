"""Small HTTP questions to a server: bounded in time and in bytes, and no redirect is followed.

Whatever is asked besides the load (models, health, metrics, tokenize, probes) goes through here, so that a server
that never ends, floods or points elsewhere costs a sentence and neither memory nor a secret.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import aiohttp
import orjson

from qwenbench.server_words import visible, words_of

MAX_REPLY_BYTES = 4 * 1024 * 1024
"""An answer to a question is read up to here."""
_MAX_LINE_BYTES = 256 * 1024
_KEPT_CONNECTIONS = 2
"""Questions are asked again after so many connections that were closed before they answered."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

NoReplyKind = Literal["refused", "tls", "timeout", "redirect", "too_long", "broken"]


class NoReplyError(Exception):
    """A question without a usable answer. The text is a clause such as `no answer within 5 s`."""

    def __init__(self, kind: NoReplyKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


_API_PATH = re.compile(r"(?<![:/])/+(?:v1|(?:chat/+)?completions|models)/*$")


def server_base(url: str) -> str:
    """A server's address without what its API's paths begin with, which people copy along: `http://host/v1/`."""
    while _API_PATH.search(url):
        url = _API_PATH.sub("", url)
    return url.rstrip("/")


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


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    timeout_s: float,
    max_bytes: int = MAX_REPLY_BYTES,
    until: bytes | None = None,
) -> Reply:
    """GET a URL, or POST `body` as JSON to it. Raises NoReplyError within `timeout_s` (s) and `max_bytes`.

    `until`: bytes after which nothing more is waited for, such as a stream's end mark.
    """
    parts: list[bytes] = []
    size = 0
    async with _answer(session, url, headers, body, timeout_s) as answer:
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


async def ask_lines(
    session: aiohttp.ClientSession,
    url: str,
    prefixes: tuple[bytes, ...],
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
    max_bytes: int = MAX_REPLY_BYTES,
) -> Reply:
    """GET a text and keep the lines that begin with one of `prefixes` only, read as they come.

    The page may be as long as `timeout_s` (s) allows; what is kept may not pass `max_bytes`, nor a line 256 KiB.
    Raises NoReplyError.
    """
    kept: list[bytes] = []
    size = 0
    rest = b""
    async with _answer(session, url, headers, None, timeout_s) as answer:
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
async def _answer(
    session: aiohttp.ClientSession,
    url: str,
    headers: Mapping[str, str] | None,
    body: Mapping[str, Any] | None,
    timeout_s: float,
) -> AsyncIterator[aiohttp.ClientResponse]:
    sent = {"Accept-Encoding": "identity", **(headers or {})}
    data = None
    if body is not None:
        data = orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
        sent = {**sent, "Content-Type": "application/json"}
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _asked(session, url, data, sent)
            try:
                if answer.status in _REDIRECTS:
                    target = _without_secrets(urljoin(url, answer.headers.get("Location", "")))
                    text = f"a redirect (HTTP {answer.status}) to {target}, which is not followed"
                    raise NoReplyError("redirect", text)
                yield answer
            finally:
                answer.release()
    except TimeoutError:
        raise NoReplyError("timeout", f"no whole answer within {timeout_s:g} s") from None
    except aiohttp.ClientSSLError as problem:
        raise NoReplyError("tls", f"no TLS connection ({_tls_reason(problem)})") from None
    except (aiohttp.ClientConnectorError, ConnectionRefusedError) as problem:
        reason = getattr(problem, "strerror", None) or getattr(problem, "os_error", None)
        raise NoReplyError("refused", f"no connection ({visible(str(reason or type(problem).__name__))})") from None
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        raise NoReplyError("broken", f"no valid HTTP answer ({type(problem).__name__})") from None


async def _asked(
    session: aiohttp.ClientSession, url: str, data: bytes | None, headers: Mapping[str, str]
) -> aiohttp.ClientResponse:
    """The answer's head; a kept connection that the server has closed meanwhile is no answer, so it is asked again."""
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

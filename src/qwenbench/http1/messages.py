"""Requests, response heads and errors as values, and how they are written. Knows nothing of sockets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import orjson

Headers = tuple[tuple[bytes, bytes], ...]
"""Names in small letters with their values, in the order in which they came."""

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that concern one connection only (RFC 9110, 7.6.1)."""


class HttpError(Exception):
    """Bytes that are no HTTP, or more of it than a limit allows; the text never quotes them.

    `status`: what to answer.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A whole request."""

    method: str
    target: bytes
    """Path and query, as sent."""
    headers: Headers
    body: bytes
    http11: bool
    keep_alive: bool
    framed: bool
    """Whether it said how long its body is (a GET without a body says nothing)."""

    @property
    def path(self) -> str:
        """The path without its query, percent-decoded as servers decode it before they choose a route."""
        return unquote_to_bytes(self.target.partition(b"?")[0]).decode("utf-8", "replace")

    @property
    def size(self) -> int:
        """Bytes that it holds in memory, about."""
        return len(self.body) + len(self.target) + sum(len(name) + len(value) for name, value in self.headers)


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status line and headers of an answer."""

    status: int
    reason: bytes
    headers: Headers
    keep_alive: bool
    chunked: bool
    length: int | None
    """Content-Length; 0 where there is no body; None for a chunked body or one that lasts until the close."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header (`name` in small letters)."""
    return next((value for key, value in headers if key == name), None)


def passed_on(headers: Headers, dropped: Iterable[bytes]) -> bytes:
    """Header lines for the next connection: without `dropped` and without what concerns this connection only."""
    named = {
        word.strip().lower() for key, value in headers if key == b"connection" for word in value.split(b",")
    } | set(dropped)
    return b"".join(
        b"%b: %b\r\n" % (key, value) for key, value in headers if key not in HOP_BY_HOP and key not in named
    )


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body; `data` must not be empty (that would end the body)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def response_head(status: int, lines: bytes, *, close: bool) -> bytes:
    """A head with the date; `lines`: further header lines, each with its line end. `close`: the last answer."""
    closing = b"connection: close\r\n" if close else b""
    phrase = HTTPStatus(status).phrase.encode()
    date = formatdate(usegmt=True).encode()
    return b"HTTP/1.1 %d %b\r\ndate: %b\r\n%b%b\r\n" % (status, phrase, date, lines, closing)


def error_body(status: int, text: str, kind: str) -> bytes:
    """An error in the form of OpenAI's API."""
    return orjson.dumps({"error": {"message": text, "type": kind, "param": None, "code": status}})

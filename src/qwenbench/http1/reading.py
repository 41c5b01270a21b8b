"""HTTP/1.1 as values and their bytes, without I/O: requests, parts of an answer, errors. Parsing is httptools'.

llhttp (inside httptools) refuses what two readers could read in two ways: bare line feeds, chunk extensions
included, folded headers, two lengths, a length beside Transfer-Encoding. What it lets pass and a server in front of
another must not is refused here: other transfer encodings, targets that are no path, an upgrade with a body.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import httptools
import orjson

Headers = tuple[tuple[bytes, bytes], ...]
"""Names in small letters with their values, in the order in which they came."""

LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade transfer_encoding content_length".split()
)
"""Headers that concern one connection only (RFC 9110, 7.6.1), and what some servers take for the framing."""


class HttpError(Exception):
    """Bytes that are no HTTP, or more of it than a limit allows; the text never quotes them.

    `status`: what to answer.
    """

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


_OBJECT_BYTES = 512
"""What Python takes for a request beside its bytes."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
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
        """Bytes of memory, nearly."""
        return (
            _OBJECT_BYTES
            + len(self.body)
            + len(self.target)
            + sum(len(name) + len(value) for name, value in self.headers)
        )


@dataclass(frozen=True, slots=True)
class ResponseHead:
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


HEAD_BYTES = 64 * 1024
"""Longest head, request's or answer's."""
_MOST_DIGITS = 19
"""Of a length; some parsers refuse longer numbers, Python's int() among them."""
_VISIBLE = bytes(byte if 32 <= byte < 127 else ord("?") for byte in range(256))
_SLICE = 16 * 1024
"""The parser is given so much at once, so that an unfinished head is measured to that."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a server's memory and patience its clients may take."""

    head_bytes: int = HEAD_BYTES
    body_bytes: int = 64 * 1024 * 1024
    held_bytes: int = 256 * 1024 * 1024
    """All heads and bodies of all connections together; whoever exceeds it gets 503."""
    pipelined_bytes: int = 256 * 1024
    """So much of following requests is read while one is answered."""
    head_s: float = 6.0
    """From a request's first byte to the end of its head."""
    body_s: float = 60.0
    """From a request's first byte to the end of its body."""
    stall_s: float = 60.0
    """A client that takes nothing of its answer for so long is left."""
    idle_s: float = 75.0
    """A connection without a request is closed after this."""


class RequestReader:
    """One connection's bytes -> whole requests, appended to `ready`."""

    def __init__(self, limits: Limits) -> None:
        self.ready: deque[HttpRequest] = deque()
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._last = False
        """A request said that no other will follow."""
        self._clear()
        self.begun = False
        """Part of a request is there, and more of it must come."""

    def _clear(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body = bytearray()  # not a list: chunks of one byte would cost eight times their size
        self.in_body = False
        self._framed = False
        self.expects_continue = False
        """The client waits for 100 Continue before it sends the body."""

    @property
    def pending_bytes(self) -> int:
        return max(self._head_bytes, self._unparsed_bytes) + len(self._body)

    def feed(self, data: bytes) -> None:
        """Takes bytes in. Raises HttpError, after which the connection can only be closed; `ready` holds all the same
        what was whole before."""
        for start in range(0, len(data), _SLICE):
            if self._last:
                return
            self._feed(data[start : start + _SLICE])

    def _feed(self, data: bytes) -> None:
        self._fresh = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # the request was served as if it had not asked; what follows is read with a new parser
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if rest and not self._last:
                self._feed(rest)
            return
        except httptools.HttpParserCallbackError as error:
            if isinstance(error.__context__, HttpError):
                raise error.__context__ from None
            raise
        except httptools.HttpParserError:
            if self._last:
                return
            raise HttpError("no valid HTTP request") from None
        if self.begun and not self._fresh:
            self._unparsed_bytes += len(data)
        if max(self._head_bytes, self._unparsed_bytes) > self._limits.head_bytes:
            raise self._too_long()

    # --- httptools calls these ---

    def on_message_begin(self) -> None:
        self._clear()
        self.begun = True
        # something in these bytes became whole: how many of them the unfinished rest has is not known
        self._fresh = bool(self.ready)

    def on_url(self, url: bytes) -> None:
        self._target += url
        if not self._target.startswith(b"/"):
            raise HttpError("no valid request line")
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.head_bytes:
            raise self._too_long()
        if not self.in_body:  # a trailer is dropped
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        headers: Headers = tuple(self._headers)
        version = self._parser.get_http_version()
        if b"#" in self._target or version not in ("1.0", "1.1") or self._parser.get_method() == b"CONNECT":
            raise HttpError("no valid request line")
        coding, length = header(headers, b"transfer-encoding"), header(headers, b"content-length")
        self._framed = coding is not None or length is not None
        if coding is not None and coding.lower() != b"chunked":
            raise HttpError("only chunked is understood as Transfer-Encoding", 501)
        if coding is not None and version == "1.0":
            raise HttpError("Transfer-Encoding in HTTP/1.0")
        if self._framed and self._parser.should_upgrade():
            raise HttpError("an upgrade with a body")
        if length is not None and (len(length) > _MOST_DIGITS or int(length) > self._limits.body_bytes):
            raise self._too_large()
        self.in_body = self._fresh = True
        self._unparsed_bytes = 0
        self.expects_continue = (header(headers, b"expect") or b"").lower() == b"100-continue"

    def on_body(self, body: bytes) -> None:
        self.expects_continue = False
        self._body += body
        self._fresh, self._unparsed_bytes = True, 0
        if len(self._body) > self._limits.body_bytes:
            raise self._too_large()

    def on_message_complete(self) -> None:
        parser = self._parser
        keep_alive = parser.should_keep_alive()
        request = HttpRequest(
            parser.get_method().decode("ascii"),
            self._target,
            tuple(self._headers),
            bytes(self._body),
            parser.get_http_version() == "1.1",
            keep_alive,
            self._framed,
        )
        self._clear()
        self.begun = False
        self._last = not keep_alive
        self.ready.append(request)

    def _too_long(self) -> HttpError:
        return HttpError(
            f"the request's {'chunk extensions or trailers are' if self.in_body else 'head is'} too long", 431
        )

    def _too_large(self) -> HttpError:
        return HttpError(f"the body is larger than {self._limits.body_bytes >> 20} MiB", 413)


class ResponseReader:
    """One answer's bytes -> its head and its body's bytes. `to_head`: the answer to HEAD, which has no body."""

    def __init__(self, *, to_head: bool = False, head_bytes: int = HEAD_BYTES) -> None:
        self.head: ResponseHead | None = None
        """The final head (not 1xx), once it is whole."""
        self.done = False
        """The body is whole."""
        self.surplus = False
        """Bytes came after the answer's end: the connection is out of step."""
        self._to_head = to_head
        self._limit = head_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._bare_bytes = 0
        """Since the last bytes of a body: head, chunk extensions, trailers."""
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """The body's bytes among these. Raises HttpError (502) where they are no answer."""
        if self.done:
            self.surplus = self.surplus or bool(data)
            return b""
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if isinstance(error.__context__, HttpError):
                raise error.__context__ from None
            if not self.done:
                raise HttpError("it is no HTTP", 502) from None
            self.surplus = True
        parts, self._parts = self._parts, []
        if parts or self.done:
            self._bare_bytes = 0
        elif self._bare_bytes > self._limit:
            raise HttpError(f"its {'head is' if self.head is None else 'trailers are'} too long", 502)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def closed(self) -> bool:
        """The connection has closed: whether the body is whole."""
        head = self.head
        return self.done or (head is not None and head.length is None and not head.chunked)

    # --- httptools calls these ---

    def on_message_begin(self) -> None:
        if self.done:
            self.surplus = True

    def on_status(self, reason: bytes) -> None:
        self._reason += reason.translate(_VISIBLE)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:  # a trailer is dropped
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        headers, reason = tuple(self._headers), self._reason
        self._headers, self._reason = [], b""
        status = self._parser.get_status_code()
        if status < 200 or self.done:
            return
        coding, length = header(headers, b"transfer-encoding"), header(headers, b"content-length")
        if coding is not None and coding.lower() != b"chunked":
            raise HttpError("its Transfer-Encoding is not understood", 502)
        bodiless = self._to_head or status in (204, 304)
        chunked = coding is not None and not bodiless
        size = 0 if bodiless else int(length) if length is not None else None
        keep_alive = self._parser.should_keep_alive() or (bodiless and self._keeps_alive(headers))
        self.head = ResponseHead(status, reason, headers, keep_alive and (chunked or size is not None), chunked, size)
        self.done = bodiless

    def _keeps_alive(self, headers: Headers) -> bool:
        """The parser does not know that no body follows, and may take the answer to last until the close."""
        return self._parser.get_http_version() == "1.1" and b"close" not in (header(headers, b"connection") or b"")

    def on_body(self, body: bytes) -> None:
        if self.done:
            self.surplus = True
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        if self.head is not None:
            self.done = True

"""HTTP/1.1 on the wire: heads and bodies, read piece by piece. Knows nothing of models or of sockets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MAX_HEAD_BYTES = 64 * 1024
MAX_SIZE_LINE = 1024

HEAD_END = b"\r\n\r\n"
Headers = tuple[tuple[bytes, bytes], ...]
"""Names in small letters with their values, in the order in which they came."""

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_BAD_IN_LINE = re.compile(rb"[\r\n\0]")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (/[^ \x00-\x20\x7f]*) HTTP/1\.([01])\Z")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: (.*))?\Z")
_HEX = re.compile(rb"[0-9a-fA-F]{1,12}\Z")

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
"""Headers that concern one connection only (RFC 9110, 7.6.1)."""


class WireError(Exception):
    """The bytes are no HTTP that can be passed on; the text never quotes them. `status`: what to answer."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Request line and headers."""

    method: bytes
    target: bytes
    """Path and query, as sent."""
    headers: Headers
    http11: bool
    keep_alive: bool
    length: int | None
    """Content-Length; None with a chunked body, 0 without a body."""

    @property
    def path(self) -> str:
        """The path without its query."""
        return self.target.partition(b"?")[0].decode("latin-1")


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status line and headers."""

    status: int
    reason: bytes
    headers: Headers
    keep_alive: bool
    chunked: bool
    length: int | None
    """Content-Length; None for a chunked body or one that lasts until the connection closes."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of a header."""
    return next((value for key, value in headers if key == name), None)


def parse_request_head(raw: bytes) -> RequestHead:
    """A request head without its final empty line. Raises WireError (400; 501 for other transfer encodings)."""
    first, *lines = raw.split(b"\r\n")
    found = _REQUEST_LINE.match(first)
    if found is None:
        raise WireError("no valid request line")
    headers = _headers(lines)
    http11 = found[3] == b"1"
    chunked = _chunked(headers)
    length = _length(headers)
    if chunked and length is not None:
        # two lengths are how requests are smuggled past a proxy (RFC 9112, 6.1)
        raise WireError("both Content-Length and Transfer-Encoding")
    keep_alive = _keep_alive(headers, http11)
    return RequestHead(found[1], found[2], headers, http11, keep_alive, None if chunked else length or 0)


def parse_response_head(raw: bytes, *, to_head: bool = False) -> ResponseHead:
    """A response head without its final empty line; `to_head`: the answer to HEAD, which has no body.

    Raises WireError.
    """
    first, *lines = raw.split(b"\r\n")
    found = _STATUS_LINE.match(first)
    if found is None:
        raise WireError("no valid status line", 502)
    headers = _headers(lines)
    status = int(found[2])
    chunked = _chunked(headers)
    length = None if chunked else _length(headers)
    if to_head or status in (204, 304):
        chunked, length = False, 0
    keep_alive = _keep_alive(headers, found[1] == b"1") and (chunked or length is not None)
    return ResponseHead(status, found[3] or b"", headers, keep_alive, chunked, length)


def _headers(lines: Sequence[bytes]) -> Headers:
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.match(name) or _BAD_IN_LINE.search(value):
            raise WireError("a header line is broken")
        headers.append((name.lower(), value.strip(b" \t")))
    return tuple(headers)


def _chunked(headers: Headers) -> bool:
    encodings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if not encodings:
        return False
    if encodings != [b"chunked"]:
        raise WireError("a transfer encoding other than chunked", 501)
    return True


def _length(headers: Headers) -> int | None:
    lengths = {value for name, value in headers if name == b"content-length"}
    if not lengths:
        return None
    value = lengths.pop()
    if lengths or not value.isdigit() or len(value) > 15:
        raise WireError("Content-Length is no single number")
    return int(value)


def _keep_alive(headers: Headers, http11: bool) -> bool:
    connection = (header(headers, b"connection") or b"").lower()
    return b"close" not in connection if http11 else b"keep-alive" in connection


def passed_on(headers: Headers, without: Iterable[bytes] = ()) -> bytes:
    """The headers that go on to the other side, each with its line end."""
    dropped = HOP_BY_HOP.union(without)
    named = header(headers, b"connection")
    if named:
        dropped = dropped.union(word.strip().lower() for word in named.split(b","))
    return b"".join(b"%b: %b\r\n" % (name, value) for name, value in headers if name not in dropped)


class BodyReader:
    """Takes a body out of the bytes that arrive: of a known length, chunked, or until the connection closes."""

    __slots__ = ("_chunked", "_data_left", "_held", "_length_left", "_line_end_due", "_trailer", "done", "rest")

    def __init__(self, length: int | None, *, chunked: bool) -> None:
        self._chunked = chunked
        self._length_left = length
        self._data_left = 0
        self._line_end_due = False
        self._trailer = False
        self._held = b""
        self.done = length == 0 and not chunked
        """The body's end has been seen."""
        self.rest = b""
        """What came after the body's end."""

    def feed(self, data: bytes) -> bytes:
        """The body's bytes among these. Raises WireError where the framing is broken."""
        if self.done:
            self.rest += data
            return b""
        if self._chunked:
            return self._feed_chunked(data)
        if self._length_left is None:
            return data
        taken = data[: self._length_left]
        self._length_left -= len(taken)
        if self._length_left == 0:
            self.done = True
            self.rest = data[len(taken) :]
        return taken

    def closed(self) -> bool:
        """The connection has closed: whether the body is whole."""
        return self.done or (not self._chunked and self._length_left is None)

    def _feed_chunked(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        parts = []
        at = 0
        while not self._trailer:
            if self._data_left:
                part = data[at : at + self._data_left]
                parts.append(part)
                at += len(part)
                self._data_left -= len(part)
                if self._data_left:
                    break
                self._line_end_due = True
            if self._line_end_due:
                if len(data) - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise WireError("a chunk is not as long as its size says")
                at += 2
                self._line_end_due = False
            end = data.find(b"\r\n", at, at + MAX_SIZE_LINE)
            if end < 0:
                if len(data) - at >= MAX_SIZE_LINE:
                    raise WireError("a chunk's size line is too long")
                break
            self._data_left = _chunk_size(data[at:end])
            at = end + 2
            self._trailer = self._data_left == 0
        if self._trailer:
            at = self._end_of_trailer(data, at)
        self._held = data[at:] if not self.done else b""
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _end_of_trailer(self, data: bytes, at: int) -> int:
        if data[at : at + 2] == b"\r\n":
            end = at + 2
        elif (found := data.find(HEAD_END, at)) >= 0:
            end = found + len(HEAD_END)
        elif len(data) - at > MAX_HEAD_BYTES:
            raise WireError("a trailer is too long")
        else:
            return at
        self.done = True
        self.rest = data[end:]
        return end


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip(b" \t")
    if not _HEX.match(digits):
        raise WireError("a chunk's size is no number")
    return int(digits, 16)

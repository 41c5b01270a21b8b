"""HTTP/1.1 as a load generator needs it: one request as bytes, and finding where a response ends.

Responses are not decoded while they stream in. `ChunkWalk` only finds the chunk borders, so that the body can
be cut out (and each byte be traced back to the read that brought it) after the stream ended.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADER_LINES = 256
MAX_CHUNK_BYTES = 64 * 1024 * 1024
MAX_CHUNK_LINE = 1024
HEAD_END = b"\r\n\r\n"

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: .*)?\Z")
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}\Z")
_HALF_SIZE_LINE = re.compile(rb"[ \t]*[0-9a-fA-F]{0,16}(?:[ \t]*(?:;[^\n]*)?\r?)?\Z")
_CR, _LF = 13, 10
_KNOWN_SIZES = {b"%x" % size: size for size in range(4096)}
"""Size lines of ordinary chunks: a look-up takes a quarter of the time of checking and converting."""


class MalformedResponse(Exception):
    """The bytes are no valid HTTP response; the message says what was wrong, without quoting content."""


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status line and headers of the final (not 1xx) response.

    `body_start` is the offset of the first body byte in the raw bytes. `length` is None for chunked bodies
    and for bodies that last until the connection closes.
    """

    status: int
    headers: Mapping[str, str]
    body_start: int
    chunked: bool
    length: int | None
    keep_alive: bool


def request_head(host: str, path: str, headers: Mapping[str, str]) -> bytes:
    """The part of the head that is the same for every request; the length, an empty line and the body follow it.

    Raises ValueError when a header would break out of its line.
    """
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Accept-Encoding: identity"]
    for name, value in headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", value):
            # the value may be a secret, so it is not shown
            raise ValueError(f"header {name!r} cannot be sent: bad character in its name or value")
        if name.lower() not in ("host", "content-type", "content-length", "transfer-encoding"):
            lines.append(f"{name}: {value}")
    lines.append("Content-Length: ")
    return "\r\n".join(lines).encode("latin-1", "strict")


def parse_head(raw: bytes) -> ResponseHead | None:
    """Parse the response head at the start of `raw`, skipping 1xx; None while it is incomplete.

    Raises MalformedResponse when it cannot be one, or passes MAX_HEAD_BYTES or MAX_HEADER_LINES.
    """
    start = 0
    while True:
        end = raw.find(HEAD_END, start)
        if end < 0:
            if len(raw) - start > MAX_HEAD_BYTES:
                raise MalformedResponse(f"response head longer than {MAX_HEAD_BYTES} bytes")
            if raw[start : start + 5] != b"HTTP/"[: len(raw) - start]:
                raise MalformedResponse("the answer does not begin with HTTP/1.x")
            return None
        if end - start > MAX_HEAD_BYTES:
            raise MalformedResponse(f"response head longer than {MAX_HEAD_BYTES} bytes")
        lines = raw[start:end].split(b"\r\n")
        match = _STATUS_LINE.match(lines[0])
        if match is None:
            raise MalformedResponse("the answer does not begin with a HTTP/1.x status line")
        status = int(match[2])
        if status == 101:
            raise MalformedResponse("the server switched protocols")
        if status >= 200:
            return _final_head(status, match[1] == b"1", lines[1:], end + len(HEAD_END))
        start = end + len(HEAD_END)


def _final_head(status: int, http11: bool, lines: list[bytes], body_start: int) -> ResponseHead:
    if len(lines) > MAX_HEADER_LINES:
        raise MalformedResponse(f"more than {MAX_HEADER_LINES} response headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise MalformedResponse("a response header line is broken")
        key = name.decode("latin-1").lower()
        text = value.strip().decode("latin-1")
        if key == "content-length" and headers.get(key, text) != text:
            raise MalformedResponse("two different content-length headers")
        headers[key] = text
    chunked = "chunked" in headers.get("transfer-encoding", "").lower()
    length: int | None = None
    if status in (204, 304):
        chunked, length = False, 0
    elif not chunked and "content-length" in headers:
        if not headers["content-length"].isascii() or not headers["content-length"].isdigit():
            raise MalformedResponse("content-length is no number")
        length = int(headers["content-length"])
    connection = headers.get("connection", "").lower()
    until_close = not chunked and length is None
    keep_alive = not until_close and ("close" not in connection if http11 else "keep-alive" in connection)
    return ResponseHead(status, headers, body_start, chunked, length, keep_alive)


@dataclass(slots=True)
class ChunkWalk:
    """Finds the chunks of a chunked body in bytes that arrive piece by piece.

    `starts` and `sizes` hold, per chunk, the offset of its data in the raw bytes and its length.
    """

    offset: int
    """Raw offset of the next byte that was not walked over yet (a chunk's size line)."""
    starts: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    done: bool = False
    """The terminating chunk was seen."""
    left_over: bytes = b""
    """Bytes of a chunk that is not complete yet or, once `done`, bytes after the body's end."""

    def feed(self, data: bytes) -> None:
        """Walk over further raw bytes. Raises MalformedResponse at a broken or oversized chunk."""
        raw = self.left_over + data if self.left_over else data
        base = self.offset
        at = 0
        total = len(raw)
        known = _KNOWN_SIZES
        find, add_start, add_size = raw.find, self.starts.append, self.sizes.append
        while not self.done:
            line_end = find(b"\r\n", at, at + MAX_CHUNK_LINE)
            if line_end < 0:
                if total - at >= MAX_CHUNK_LINE:
                    raise MalformedResponse("a chunk size line is too long")
                if not _HALF_SIZE_LINE.match(raw, at):
                    raise MalformedResponse("a chunk size is no hexadecimal number")
                break
            line = raw[at:line_end]
            size = known.get(line)
            if size is None:
                size = _chunk_size(line)
            if size == 0:
                end = _trailer_end(raw, line_end + 2)
                if end < 0:
                    break
                self.done = True
                at = end
                break
            next_at = line_end + 4 + size
            if next_at > total:
                break
            if raw[next_at - 1] != _LF or raw[next_at - 2] != _CR:
                raise MalformedResponse("a chunk is not as long as its size says")
            add_start(base + line_end + 2)
            add_size(size)
            at = next_at
        self.offset = base + at
        self.left_over = raw[at:]

    def take_partial(self) -> None:
        """Count what is there of an unfinished chunk as a chunk: for bodies that broke off."""
        line_end = self.left_over.find(b"\r\n")
        if self.done or line_end < 0:
            return
        try:
            size = _chunk_size(self.left_over[:line_end])
        except MalformedResponse:
            return
        have = min(size, len(self.left_over) - line_end - 2)
        if have > 0:
            self.starts.append(self.offset + line_end + 2)
            self.sizes.append(have)


def _chunk_size(line: bytes) -> int:
    digits = line.split(b";", 1)[0].strip() if b";" in line or b" " in line else line
    if not _HEX.match(digits):
        raise MalformedResponse("a chunk size is no hexadecimal number")
    size = int(digits, 16)
    if size > MAX_CHUNK_BYTES:
        raise MalformedResponse(f"a chunk claims {size} bytes, more than {MAX_CHUNK_BYTES}")
    return size


def _trailer_end(raw: bytes, at: int) -> int:
    """Offset after the (usually empty) trailer that follows the last chunk; -1 while incomplete."""
    if raw[at : at + 2] == b"\r\n":
        return at + 2
    end = raw.find(HEAD_END, at)
    if end >= 0:
        return end + len(HEAD_END)
    if len(raw) - at > MAX_HEAD_BYTES:
        raise MalformedResponse("the trailer after the last chunk is too long")
    return -1

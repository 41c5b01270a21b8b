"""Decoding a finished stream: SSE events to tokens, times, usage and outcome (docs/metrics.md).

Reading is lenient where the standard is (WHATWG HTML, "Server-sent events"): comments, empty data, unknown fields and
events that are no chunk are passed over and counted. It is strict where a figure would be wrong: what looks like a
chunk and cannot be read ends the stream as `malformed`.

Nearly all events of a stream differ in one string only (the token's text). Such events are recognised by the
bytes around that string, which an earlier event of the same stream showed when it was parsed as JSON, so that
JSON is parsed a few times per stream and not once per token.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from qwenbench.load.chunks import REASONING_KEYS, BrokenStreamError, StreamFacts, take_chunk, take_error
from qwenbench.load.exchange import MAX_EVENT_BYTES, Body
from qwenbench.server_words import error_message, words_of

MAX_LINES = 2_000_000
"""A body of more lines is `malformed`: 150,000 tokens take a third of it, and tens of millions would take minutes."""

_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_FIELD = re.compile(rb"^(?:data|event|id|retry|error)?:", re.MULTILINE)
_STRING_REST = re.compile(rb'(?:[^"\\]|\\.)*')
_ERROR_WORDS = re.compile(rb"\b(?:error|exception|failed)\b", re.IGNORECASE)
_PAGE = re.compile(rb"\s*<(?:!doctype|html)", re.IGNORECASE)
"""A page of a gateway: its words are no answer's."""
_NO_STREAM = "the body is neither a stream of events nor valid JSON"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST_REMARK = 400
"""Bytes of event data that is no JSON and still may be a keep-alive rather than a broken chunk."""


@dataclass(slots=True)
class TokenTimes:
    """When the tokens of one stream came; ns of CLOCK_REALTIME, gaps in ms."""

    first_ns: int
    first_answer_ns: int | None
    last_token_ns: int
    gaps_ms: npt.NDArray[np.float32]
    gaps_merged: int


def decode_stream(data: bytes, complete: bool = True) -> StreamFacts:
    """Read every event of a response body. Problems are told in `error` and `detail`, nothing is raised."""
    facts = StreamFacts()
    start = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
    if data[start : start + 256].lstrip()[:1] in (b"{", b"["):
        _read_plain_json(data, facts)
        return facts
    try:
        if len(data) > MAX_LINES < data.count(b"\n") + data.count(b"\r"):
            raise BrokenStreamError(f"the stream has more than {MAX_LINES:,} lines")
        _read_events(facts, data, start, complete)
        if not facts.token_ends and data.strip() and not _FIELD.search(data):
            raise BrokenStreamError(_NO_STREAM + (f": {words_of(data, 200)}" if _PAGE.match(data) else ""))
    except BrokenStreamError as problem:
        facts.error, facts.detail = "malformed", str(problem)
    return facts


def token_times(body: Body, facts: StreamFacts, stamps: npt.NDArray[np.int64]) -> TokenTimes | None:
    """Turn token positions into times; None for a stream without tokens.

    A token's time is the stamp of the read that brought the end of its event. Where a read brought several
    token events only the last one's time is known, so all gaps that end in that read are left out of
    `gaps_ms` and counted in `gaps_merged` (the gap before the stream's first token does not exist).
    """
    if not facts.token_ends or facts.mark_end is None:
        return None
    ends = np.array([*facts.token_ends, facts.mark_end], np.int64)
    reads = body.reads_of(ends)
    times = stamps[reads]
    token_reads, token_at = reads[:-1], times[:-1]
    same = token_reads[1:] == token_reads[:-1]
    merged = same.copy()
    merged[:-1] |= same[1:]
    gaps = ((token_at[1:] - token_at[:-1])[~merged] / 1e6).astype(np.float32)
    first_answer = None if facts.first_answer is None else int(token_at[facts.first_answer])
    return TokenTimes(int(token_at[0]), first_answer, int(times[-1]), gaps, int(merged.sum()))


@dataclass(frozen=True, slots=True)
class _Shape:
    """The bytes of an event before and after its only text, which is that of `key`: quotes and the event's end too."""

    prefix: bytes
    rest: bytes
    key: str


def _read_events(facts: StreamFacts, data: bytes, at: int, complete: bool) -> None:
    """Read the events from `at` on, whatever their line ends."""
    shape: _Shape | None = None
    only_lf = b"\r" not in data
    while not facts.done and facts.error is None:
        if shape is not None:
            at = _take_run(facts, data, at, shape)
        if only_lf:
            stop = data.find(b"\n\n", at)
            end = stop + 2
        else:
            match = _EVENT_END.search(data, at)
            stop, end = match.span() if match is not None else (-1, -1)
        if stop < 0:
            stop = end = len(data)
        if stop - at > MAX_EVENT_BYTES:
            raise BrokenStreamError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        if at == len(data) or (stop == end and not complete):
            return
        lines = data[at:stop].splitlines()
        if len(lines) == 1 and lines[0].startswith(b"data: "):
            key = _read_event(facts, lines[0][6:], end)
        else:
            key = _read_lines(facts, lines, end)
        if key is not None:
            shape = _shape(data[at:end], key) or shape
        at = end


def _take_run(facts: StreamFacts, data: bytes, at: int, shape: _Shape) -> int:
    """Take in the events of one shape that follow each other from `at` on; returns where they end.

    It stops at whatever does not fit exactly, which is then read (or refused) as JSON.
    """
    prefix, rest = shape.prefix, shape.rest
    before, after = len(prefix), len(rest)
    texts = facts.reasoning if shape.key in REASONING_KEYS else facts.answer
    ends = facts.token_ends
    already = len(ends)
    find, fits = data.find, data.startswith
    add_text, add_end = texts.append, ends.append
    while fits(prefix, at):
        start = at + before
        end = find(b'"', start)
        text = _plain(data[start:end])
        if text is None or "\\" in text or not text.isprintable():
            end, text = _unescape(data, start)
        if text is None or not fits(rest, end):
            break
        at = end + after
        if text:
            add_text(text)
            add_end(at)
    if len(ends) > already:
        facts.mark_end = ends[-1]
        if facts.first_answer is None and texts is facts.answer:
            facts.first_answer = already
    return at


def _plain(raw: bytes) -> str | None:
    """The text of a JSON string without escapes; None when it is no UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _unescape(data: bytes, start: int) -> tuple[int, str | None]:
    """The end of the JSON string whose inside begins at `start`, and its text; None where it is no valid one."""
    match = _STRING_REST.match(data, start)
    assert match is not None
    try:
        return match.end(), str(orjson.loads(data[start - 1 : match.end() + 1]))
    except orjson.JSONDecodeError:
        return match.end(), None


def _shape(event: bytes, key: str) -> _Shape | None:
    """The shape of an event that carries the text of `key` only, when that stands there exactly once."""
    for needle in (f'"{key}":"'.encode(), f'"{key}": "'.encode()):
        if event.count(needle) == 1:
            start = event.index(needle) + len(needle)
            match = _STRING_REST.match(event, start)
            assert match is not None
            return _Shape(event[:start], event[match.end() :], key)
    return None


def _read_lines(facts: StreamFacts, lines: list[bytes], end: int) -> str | None:
    """Read one event of lines; returns the key of its text when that is all it carries."""
    parts = []
    kind = b""
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            parts.append(value)
        elif name == b"event":
            kind = value
        elif name.lower() == b"error" or (b":" not in line and _ERROR_WORDS.search(line)):
            # llama.cpp's server before it sent errors as data; a framework's last words
            facts.error, facts.detail = "stream_error", _words(value or line)
            return None
        elif b'"choices"' in line or b'"error"' in line:
            _read_bare(facts, line)
            return None
    data = b"\n".join(parts)
    if kind in (b"error", b"exception"):
        facts.error, facts.detail = "stream_error", _words(data) if data else "an error event without words"
        return None
    if not data:
        return None
    return _read_event(facts, data, end)


def _read_bare(facts: StreamFacts, line: bytes) -> None:
    """A line that has JSON in it and is no field of an event: an error is taken as one, a chunk is broken framing."""
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or not take_error(facts, document):
        raise BrokenStreamError("a line of the stream holds a chunk but is no SSE field")


def _words(data: bytes) -> str:
    """The server's words in the data of an error event."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        document = None
    return error_message(document) if isinstance(document, dict) else data.decode("utf-8", "replace")


def _read_event(facts: StreamFacts, data: bytes, end: int) -> str | None:
    """Take in one event's data; see `_read_lines` for what is returned."""
    if data == b"[DONE]":
        facts.done = True
        return None
    try:
        event = _parsed(data)
    except ValueError:
        _read_remark(facts, data)
        return None
    if isinstance(event, list) and event:
        event = event[0]  # Gemini's errors
    if not isinstance(event, dict):
        facts.passed_over += 1  # `data: "ping"`, `data: null`
        return None
    return take_chunk(facts, event, end)


def _parsed(data: bytes) -> Any:
    """The JSON of an event. Raises ValueError.

    JavaScript's gateways may cut a character into its two surrogates, which JSON allows and orjson does not.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if _SURROGATE.search(data) is None:
            raise
        try:
            return json.loads(data.decode())
        except RecursionError as problem:
            raise ValueError("nested too deeply") from problem


def _read_remark(facts: StreamFacts, data: bytes) -> None:
    """Data that is no JSON: the end mark with blanks, a comment sent as data, or a broken chunk."""
    text = data.strip()
    if text == b"[DONE]":
        facts.done = True
        return
    # words carry no token that could be lost; a brace or a quoted name may be the rest of a chunk
    wordy = len(text) <= _LONGEST_REMARK and not any(sign in text for sign in (b"{", b"}", b'":'))
    if text.startswith(b":"):
        facts.passed_over += 1
    elif not (wordy and _is_text(text)):
        raise BrokenStreamError(f"the event after token {len(facts.token_ends)} is not valid JSON or UTF-8")
    elif _ERROR_WORDS.search(text):
        facts.error, facts.detail = "stream_error", text.decode()
    else:
        facts.passed_over += bool(text)


def _is_text(text: bytes) -> bool:
    try:
        return min(text.decode(), default=" ") >= " "
    except UnicodeDecodeError:
        return False


def _read_plain_json(data: bytes, facts: StreamFacts) -> None:
    """A body that is one JSON document: an error, or an answer that was not streamed."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        facts.error, facts.detail = "malformed", _NO_STREAM
        return
    if not isinstance(document, dict) or not take_error(facts, document):
        facts.error = "malformed"
        facts.detail = "the server answered with one JSON document instead of a stream"

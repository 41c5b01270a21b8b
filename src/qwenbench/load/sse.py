"""Decoding a finished stream: SSE events to tokens, times, usage and outcome (design, "Definitions").

Nearly all events of a stream differ in one string only (the token's text). Such events are recognised by the
bytes around that string, which an earlier event of the same stream showed when it was parsed as JSON, so that
JSON is parsed a few times per stream and not once per token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from qwenbench.load.exchange import Body
from qwenbench.server_words import error_message

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""An event longer than this is no token stream any more: `malformed`."""

_STRING_REST = re.compile(rb'(?:[^"\\]|\\.)*')
_TEXT_KEYS = ("content", "reasoning", "reasoning_content", "text")
_REASONING_KEYS = ("reasoning", "reasoning_content")


@dataclass(slots=True)
class StreamFacts:
    """What a stream said. `token_ends` and `mark_end` are body offsets just after an event."""

    token_ends: list[int] = field(default_factory=list)
    """Ends of the events that carried generated tokens."""
    first_answer: int | None = None
    """Index in `token_ends` of the first event that carried answer text or a tool call."""
    mark_end: int | None = None
    """End of the last event with a token or a finish_reason."""
    reasoning: list[str] = field(default_factory=list)
    answer: list[str] = field(default_factory=list)
    tool_chars: int = 0
    usage: dict[str, Any] | None = None
    finish_reason: str | None = None
    done: bool = False
    """[DONE] was seen."""
    error: str | None = None
    detail: str | None = None


@dataclass(slots=True)
class TokenTimes:
    """When the tokens of one stream came; ns of CLOCK_REALTIME, gaps in ms."""

    first_ns: int
    first_answer_ns: int | None
    last_token_ns: int
    gaps_ms: npt.NDArray[np.float32]
    gaps_merged: int


class _Broken(Exception):
    """An event that cannot be read; the message has no content of the stream in it."""


def decode_stream(body: Body) -> StreamFacts:
    """Read every event of a response body. Problems are told in `error` and `detail`, nothing is raised."""
    facts = StreamFacts()
    if body.data.lstrip()[:1] in (b"{", b"["):
        _read_plain_json(body.data, facts)
        return facts
    try:
        if b"\r" in body.data:
            for data, end in _any_events(body.data, body.complete):
                _read_event(facts, data, end)
        else:
            _read_fast(facts, body.data, body.complete)
    except _Broken as problem:
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
    """The bytes of an event before and after its only text, which is that of `key`."""

    prefix: bytes
    suffix: bytes
    key: str


def _read_fast(facts: StreamFacts, data: bytes, complete: bool) -> None:
    """Read events whose lines end in LF."""
    shape: _Shape | None = None
    at = 0
    while not facts.done and facts.error is None:
        if shape is not None:
            at = _take_run(facts, data, at, shape)
        end = data.find(b"\n\n", at)
        if end < 0:
            if len(data) - at > MAX_EVENT_BYTES:
                raise _Broken(f"an event is longer than {MAX_EVENT_BYTES} bytes")
            if complete:
                _read_block(facts, data[at:], len(data))
            return
        key = _read_block(facts, data[at:end], end + 2)
        if key is not None:
            shape = _shape(data[at:end], key) or shape
        at = end + 2


def _take_run(facts: StreamFacts, data: bytes, at: int, shape: _Shape) -> int:
    """Take in the events of one shape that follow each other from `at` on; returns where they end.

    It stops at whatever does not fit exactly, which is then read (or refused) as JSON.
    """
    prefix, suffix = shape.prefix, shape.suffix
    before, after = len(prefix), len(suffix)
    texts = facts.reasoning if shape.key in _REASONING_KEYS else facts.answer
    ends = facts.token_ends
    already = len(ends)
    find, fits_before, fits_behind = data.find, data.startswith, data.endswith
    add_text, add_end = texts.append, ends.append
    while fits_before(prefix, at):
        start = at + before
        end = find(b"\n\n", start)
        if end < 0 or not fits_behind(suffix, start, end):
            break
        raw = data[start : end - after]
        text = _unescape(raw) if b"\\" in raw or b'"' in raw else _plain(raw)
        if text is None:
            break
        at = end + 2
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


def _unescape(raw: bytes) -> str | None:
    """The text of the inside of a JSON string; None where that is not all there is (further fields, bad escapes)."""
    try:
        return str(orjson.loads(b'"' + raw + b'"'))
    except orjson.JSONDecodeError:
        return None


def _shape(event: bytes, key: str) -> _Shape | None:
    """The shape of an event that carries the text of `key` only, when that stands there exactly once."""
    for needle in (f'"{key}":"'.encode(), f'"{key}": "'.encode()):
        if event.count(needle) == 1:
            start = event.index(needle) + len(needle)
            match = _STRING_REST.match(event, start)
            assert match is not None
            return _Shape(event[:start], event[match.end() :], key)
    return None


def _read_block(facts: StreamFacts, block: bytes, end: int) -> str | None:
    """Read one event of lines that end in LF; returns the key of its text when that is all it carries."""
    if len(block) > MAX_EVENT_BYTES:
        raise _Broken(f"an event is longer than {MAX_EVENT_BYTES} bytes")
    if block.startswith(b"data: ") and b"\n" not in block:
        return _read_event(facts, block[6:], end)
    data = _field_data(block.split(b"\n"))
    return None if data is None else _read_event(facts, data, end)


def _field_data(lines: list[bytes]) -> bytes | None:
    """The `data` of an event's lines (WHATWG "event stream": comments and other fields are skipped)."""
    parts = []
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"data":
            parts.append(value.removeprefix(b" "))
        elif name not in (b"", b"event", b"id", b"retry"):
            raise _Broken("a line of the stream is no SSE field")
    return b"\n".join(parts) if parts else None


def _any_events(data: bytes, complete: bool) -> Iterator[tuple[bytes, int]]:
    """Events with CR, LF or CRLF line ends, as (data, offset after the event)."""
    lines: list[bytes] = []
    at = 0
    for match in re.finditer(rb"\r\n|\n|\r", data):
        line = data[at : match.start()]
        at = match.end()
        if len(line) > MAX_EVENT_BYTES:
            raise _Broken(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        if line:
            lines.append(line)
            continue
        payload = _field_data(lines)
        lines = []
        if payload is not None:
            yield payload, at
    rest = data[at:]
    if complete and (rest or lines):
        payload = _field_data([*lines, rest] if rest else lines)
        if payload is not None:
            yield payload, len(data)
    elif len(rest) > MAX_EVENT_BYTES:
        raise _Broken(f"an event is longer than {MAX_EVENT_BYTES} bytes")


def _read_event(facts: StreamFacts, data: bytes, end: int) -> str | None:
    """Take in one event's data; see `_read_block` for what is returned."""
    if facts.done or facts.error is not None:
        return None
    if data == b"[DONE]":
        facts.done = True
        return None
    try:
        event = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise _Broken(f"the event after token {len(facts.token_ends)} is not valid JSON or UTF-8") from None
    if not isinstance(event, dict):
        raise _Broken("an event is no JSON object")
    if _take_error(facts, event):
        return None
    usage = event.get("usage")
    if isinstance(usage, dict):
        facts.usage = usage
    choices = event.get("choices")
    if choices is None and usage is None:
        raise _Broken("an event has neither choices nor usage")
    if not isinstance(choices, list):
        return None
    key: str | None = None
    token = answered = False
    for choice in choices:
        if not isinstance(choice, dict):
            raise _Broken("a choice is no JSON object")
        key, carried, is_answer = _take_choice(facts, choice, end)
        token |= carried
        answered |= is_answer
    if token:
        if answered and facts.first_answer is None:
            facts.first_answer = len(facts.token_ends)
        facts.token_ends.append(end)
        facts.mark_end = end
    plain = len(choices) == 1 and usage is None and key is not None
    return key if plain and choices[0].get("finish_reason") is None else None


def _take_choice(facts: StreamFacts, choice: dict[str, Any], end: int) -> tuple[str | None, bool, bool]:
    """Take in one choice: (key of the only text, whether it carried a token, whether of the answer)."""
    delta = choice.get("delta", choice)
    if delta is None:
        delta = {}
    if not isinstance(delta, dict):
        raise _Broken("a delta is no JSON object")
    keys = []
    answered = False
    for key in _TEXT_KEYS:
        text = delta.get(key)
        if not isinstance(text, str) or not text:
            continue
        if key == "reasoning_content" and "reasoning" in keys:
            continue  # both names of one text: newer servers send it twice
        keys.append(key)
        if key in _REASONING_KEYS:
            facts.reasoning.append(text)
        else:
            facts.answer.append(text)
            answered = True
    tools = delta.get("tool_calls")
    if isinstance(tools, list) and tools:
        facts.tool_chars += sum(_tool_chars(tool) for tool in tools)
        answered = True
    ids = choice.get("token_ids")
    carried = bool(keys) or answered or (isinstance(ids, list) and bool(ids))
    finish = choice.get("finish_reason")
    if isinstance(finish, str):
        facts.finish_reason = finish
        facts.mark_end = end
    only = keys[0] if len(keys) == 1 and not tools and not ids else None
    return only, carried, answered


def _tool_chars(tool: Any) -> int:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return 0
    return sum(len(function[key]) for key in ("name", "arguments") if isinstance(function.get(key), str))


def _take_error(facts: StreamFacts, event: dict[str, Any]) -> bool:
    error = event.get("error")
    if error is None and event.get("object") != "error":
        return False
    facts.error, facts.detail = "stream_error", error_message(event)
    return True


def _read_plain_json(data: bytes, facts: StreamFacts) -> None:
    """A body that is one JSON document: an error, or an answer that was not streamed."""
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        facts.error, facts.detail = "malformed", "the body is neither a stream of events nor valid JSON"
        return
    if not isinstance(document, dict) or not _take_error(facts, document):
        facts.error = "malformed"
        facts.detail = "the server answered with one JSON document instead of a stream"

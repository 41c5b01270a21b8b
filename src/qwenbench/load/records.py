"""The request record: its columns, and the way from an ended exchange to a row.

Offsets are in ms from `sent_ns` unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qwenbench.load.chunks import StreamFacts, token_count
from qwenbench.load.clock import NS_PER_MS
from qwenbench.load.exchange import Body, RawExchange, cut_body
from qwenbench.load.spec import RequestTimes
from qwenbench.load.sse import TokenTimes, decode_stream, token_times
from qwenbench.server_words import words_of
from qwenbench.workload.sessions import SessionPlan, TurnPlan

REQUEST_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("session_id", pa.string()),
        ("scenario", pa.string()),
        ("turn", pa.int16()),
        ("prompt_id", pa.string()),
        ("language", pa.string()),
        ("process", pa.int16()),
        ("stream", pa.int32()),
        # when
        ("scheduled_ns", pa.int64()),  # open loop: CLOCK_REALTIME at which it was due; closed loop: null
        ("ready_ns", pa.int64()),  # CLOCK_REALTIME at which its stream was free for it (think time ended)
        ("sent_ns", pa.int64()),  # CLOCK_REALTIME right before the first byte was written
        ("ended_ns", pa.int64()),  # CLOCK_REALTIME of the last byte (or of the failure)
        ("waited_ms", pa.float64()),  # sent - scheduled in open loop, else 0
        ("connect_ms", pa.float64()),  # TCP/TLS connect, when this request had to connect (kept apart)
        # latencies. Open loop: from the scheduled time; closed loop: from sent. null when not reached
        ("ttft_ms", pa.float64()),
        ("ttfo_ms", pa.float64()),
        ("e2e_ms", pa.float64()),
        ("decode_ms", pa.float64()),  # last token - first token
        ("itl_ms", pa.list_(pa.float32())),  # gaps between chunks with tokens, gaps of merged reads left out
        ("chunks", pa.int32()),  # chunks that carried tokens
        ("gaps_merged", pa.int32()),  # gaps left out because one read held several chunks
        # work
        ("requested_output_tokens", pa.int32()),
        ("input_tokens", pa.int32()),  # usage.prompt_tokens
        ("cached_tokens", pa.int32()),  # usage.prompt_tokens_details.cached_tokens
        ("output_tokens", pa.int32()),  # usage.completion_tokens
        ("tokens_from", pa.string()),  # who counted them: usage, or the server's tokenize; null: unknown
        ("reasoning_tokens", pa.int32()),  # usage...reasoning_tokens, where the server tells
        ("reasoning_chars", pa.int32()),
        ("answer_chars", pa.int32()),
        ("finish_reason", pa.string()),
        ("disagreement", pa.string()),  # which two of text, chunks, usage and times cannot be true together
        # outcome
        ("status", pa.int16()),  # HTTP status, null when none came
        ("error", pa.string()),  # null = success; else one of ERRORS
        ("error_detail", pa.string()),  # excerpt, at most 300 characters, never prompt text or secrets
        ("resent", pa.bool_()),
        (
            "broken",
            pa.list_(pa.string()),
        ),  # kinds of broken output found; null = not judged, [] = judged fine
    ]
)

ERRORS = {
    "refused": "no connection could be made",
    "reset": "the connection broke or closed in mid-stream",
    "http_status": "the server answered with an HTTP error status",
    "stream_error": "an error event inside a stream that began with HTTP 200",
    "timeout": "the request's time-out passed",
    "malformed": "the bytes were no valid HTTP or SSE",
    "empty": "the stream ended without any generated token",
    "tls": "the TLS handshake or certificate check failed",
    "cancelled": "stopped by the user",
    "client": "the client itself failed",
}
"""Error class -> what it means. None of them counts as a success."""


MAX_DETAIL = 300
MAX_TOKEN_CHARS = 512
"""Characters of one token: runs of blanks and signs are the longest, some 128 to 256 in large vocabularies."""
_PROMPT_EXCERPT = 24
"""As many characters of a prompt in a row, found in a server's error message, make the message be cut there."""

RequestRow = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sending:
    """One request as it was sent: by which stream, when it was due and when its stream was free for it."""

    session: SessionPlan
    turn: TurnPlan
    process: int
    stream: int
    scheduled_ns: int | None
    ready_ns: int


@dataclass(frozen=True, slots=True)
class Digest:
    """An exchange decoded: its row, and the texts that are not part of it."""

    row: RequestRow
    answer: str
    reasoning: str

    @property
    def times(self) -> RequestTimes:
        """The latencies by which is decided whether a point has enough."""
        row = self.row
        if row["error"] is not None:
            return RequestTimes(None, None, None, None)
        decode_ms, tokens = row["decode_ms"], row["output_tokens"] or 0
        tpot = decode_ms / (tokens - 1) if decode_ms is not None and tokens > 1 else None
        return RequestTimes(row["ttft_ms"], row["ttfo_ms"], tpot, row["e2e_ms"])


def digest(sending: Sending, exchange: RawExchange, secrets: Iterable[str] = ()) -> Digest:
    """Decode an ended exchange. `secrets` never show in error_detail."""
    body = cut_body(exchange)
    facts = StreamFacts()
    if exchange.status == 200:
        facts = decode_stream(body.data, body.complete)
    stamps = np.frombuffer(exchange.stamps, np.int64) if len(exchange.stamps) else np.zeros(0, np.int64)
    times = token_times(body, facts, stamps)
    error, detail = _outcome(exchange, body, facts)
    row = _base_row(sending)
    row["sent_ns"] = exchange.sent_ns
    row["ended_ns"] = exchange.ended_ns
    if sending.scheduled_ns is not None:
        row["waited_ms"] = (exchange.sent_ns - sending.scheduled_ns) / NS_PER_MS
    row["connect_ms"] = exchange.connect_ms
    row["resent"] = exchange.resent
    row["status"] = exchange.status
    row["error"] = error
    if detail is not None:
        row["error_detail"] = _clean(detail, sending.turn.payload, secrets)
    if times is not None:
        _fill_times(row, times, exchange.sent_ns if sending.scheduled_ns is None else sending.scheduled_ns)
    row["chunks"] = len(facts.token_ends)
    row["reasoning_chars"] = sum(map(len, facts.reasoning))
    row["answer_chars"] = sum(map(len, facts.answer)) + facts.tool_chars
    row["finish_reason"] = facts.finish_reason
    _fill_usage(row, facts.usage)
    row["disagreement"] = _settle(row, facts, sending.turn.payload)
    row["tokens_from"] = None if row["output_tokens"] is None else "usage"
    return Digest(row, _joined(facts.answer), _joined(facts.reasoning))


def _joined(texts: list[str]) -> str:
    """One text of its pieces; surrogates that came in two pieces are one character, a lone one is U+FFFD."""
    text = "".join(texts)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def lost_row(sending: Sending, sent_ns: int, detail: str) -> RequestRow:
    """The row of a request that was sent but whose outcome the client lost (`client`)."""
    row = _base_row(sending)
    row["sent_ns"] = sent_ns
    if sending.scheduled_ns is not None:
        row["waited_ms"] = (sent_ns - sending.scheduled_ns) / NS_PER_MS
    row["error"], row["error_detail"] = "client", detail[:MAX_DETAIL]
    return row


def to_table(rows: list[RequestRow]) -> pa.Table:
    """Rows as one Arrow table with REQUEST_SCHEMA."""
    arrays = [pa.array([row[field.name] for row in rows], type=field.type) for field in REQUEST_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=REQUEST_SCHEMA)


def _base_row(sending: Sending) -> RequestRow:
    row: RequestRow = dict.fromkeys(REQUEST_SCHEMA.names)
    turn = sending.turn
    row.update(
        request_id=turn.request_id,
        session_id=sending.session.session_id,
        scenario=sending.session.scenario,
        turn=turn.turn,
        prompt_id=turn.prompt_id,
        language=turn.language,
        process=sending.process,
        stream=sending.stream,
        scheduled_ns=sending.scheduled_ns,
        ready_ns=sending.ready_ns,
        waited_ms=0.0,
        requested_output_tokens=turn.output_tokens,
        resent=False,
    )
    return row


def _fill_times(row: RequestRow, times: TokenTimes, origin_ns: int) -> None:
    row["ttft_ms"] = (times.first_ns - origin_ns) / NS_PER_MS
    if times.first_answer_ns is not None:
        row["ttfo_ms"] = (times.first_answer_ns - origin_ns) / NS_PER_MS
    row["e2e_ms"] = (times.last_token_ns - origin_ns) / NS_PER_MS
    row["decode_ms"] = (times.last_token_ns - times.first_ns) / NS_PER_MS
    row["itl_ms"] = times.gaps_ms
    row["gaps_merged"] = times.gaps_merged


def _fill_usage(row: RequestRow, usage: dict[str, Any] | None) -> None:
    if usage is None:
        return
    row["input_tokens"] = token_count(usage, "prompt_tokens", "input_tokens") or None  # no prompt has 0 tokens
    row["output_tokens"] = token_count(usage, "completion_tokens", "output_tokens")
    row["cached_tokens"] = token_count(usage.get("prompt_tokens_details"), "cached_tokens")
    row["reasoning_tokens"] = token_count(usage.get("completion_tokens_details"), "reasoning_tokens")
    if row["reasoning_tokens"] is None:
        row["reasoning_tokens"] = token_count(usage, "reasoning_tokens")


def _settle(row: RequestRow, facts: StreamFacts, payload: Mapping[str, Any]) -> str | None:
    """Which two of text, chunks, usage and times cannot be true together; what they would make wrong becomes unknown.

    The rule: each chunk with text brought at least one token; a token is at most MAX_TOKEN_CHARS characters; tokens
    that came one after another did not come at one instant; a count of tokens does not fall, is not above the request's
    limit, and adds up to its total; one answer's tokens come one after another, and thoughts that are not shown before
    them; nothing comes before it was asked for.
    """
    chunks, thoughts = row["chunks"], row["reasoning_tokens"] or 0
    counts_differ = _add_up(row, facts)
    tokens = row["output_tokens"]
    shown = None if tokens is None else tokens - thoughts
    hidden = thoughts > 0 and not row["reasoning_chars"] and chunks <= (shown or 0)
    at_once = row["decode_ms"] == 0.0 or chunks == 1
    if hidden or (at_once and (chunks > 1 or (tokens or 0) > 1)):
        # all came in one read or chunk, as from a gateway that holds answers back, or thoughts came before the first
        # chunk: nothing is known of the time between
        row["decode_ms"] = None
    problem = None
    if row["ttft_ms"] is not None and row["ttft_ms"] < 0:
        problem = f"times: the first token came {-row['ttft_ms']:.1f} ms before the request was sent"
        row.update(ttft_ms=None, ttfo_ms=None, e2e_ms=None)
    if facts.several:
        problem = "chunks and times: the chunks are of several answers (n), so nothing is known of one's"
        row.update(decode_ms=None, itl_ms=np.zeros(0, np.float32))
    if tokens is None or not chunks:
        return problem
    characters = row["reasoning_chars"] + row["answer_chars"]
    limit = payload.get("max_tokens") or payload.get("max_completion_tokens")
    if facts.most_tokens > tokens:
        problem = f"usage and usage: it fell from {facts.most_tokens} to {tokens} tokens"
    elif tokens < chunks:
        problem = f"usage and chunks: usage says {tokens} tokens, but {chunks} chunks carried text"
    elif characters > MAX_TOKEN_CHARS * tokens:
        problem = f"usage and text: usage says {tokens} tokens, but the text has {characters} characters"
    elif counts_differ is not None:
        problem = counts_differ
    elif isinstance(limit, int) and not facts.several and tokens - thoughts > limit >= chunks:
        problem = f"usage and limit: usage says {tokens} tokens, but {limit} were asked for at most"
    else:
        return problem
    row["output_tokens"] = row["reasoning_tokens"] = None
    return problem


def _add_up(row: RequestRow, facts: StreamFacts) -> str | None:
    """Counts thoughts that a total shows to be beside the answer's tokens (xAI, Gemini) as tokens of the output; what
    in a usage does not add up."""
    read, tokens, thoughts = row["input_tokens"], row["output_tokens"], row["reasoning_tokens"] or 0
    total = token_count(facts.usage, "total_tokens")
    if tokens is None:
        return None
    if total and read and total != read + tokens:
        if not thoughts or total != read + tokens + thoughts:
            return f"usage and usage: {read} and {tokens} tokens make no total of {total}"
        row["output_tokens"] = tokens + thoughts
    elif thoughts > tokens:
        return f"usage and usage: {thoughts} tokens of reasoning are more than {tokens} in all"
    return None


def _outcome(exchange: RawExchange, body: Body, facts: StreamFacts) -> tuple[str | None, str | None]:
    """Error class and detail; (None, None) for a success.

    A stream with tokens is over at its end mark: what becomes of the connection afterwards is no failure of it.
    """
    if exchange.error in ("cancelled", "tls", "refused", "client"):
        return exchange.error, exchange.detail
    whole = facts.done and bool(facts.token_ends) and exchange.status == 200
    if exchange.error == "timeout" and not whole:
        return ("malformed", body.broken) if body.broken is not None else (exchange.error, exchange.detail)
    if exchange.status is not None and exchange.status != 200:
        return "http_status", _status_detail(exchange, body)
    if facts.error == "stream_error":
        return facts.error, facts.detail
    if exchange.error is not None and not whole:
        return exchange.error, exchange.detail
    if body.broken is not None and not whole:
        return "malformed", body.broken
    if facts.error is not None:
        return facts.error, facts.detail
    if not body.complete and not whole:
        return "reset", "the answer ended before HTTP's own end of it"
    if not facts.token_ends:
        return "empty", _empty_detail(facts)
    if not (facts.done or facts.finish_reason or facts.counted_up):
        return "reset", "the stream ended in mid-answer: no [DONE], no finish_reason and no usage came"
    return None, None


def _empty_detail(facts: StreamFacts) -> str:
    told = f"no generated token; finish_reason {facts.finish_reason or 'not given'}"
    if facts.most_tokens:
        told += f", though usage counts {facts.most_tokens} tokens"
    if facts.passed_over:
        told += f"; {facts.passed_over} events were no chunk of an answer"
    return told


def _status_detail(exchange: RawExchange, body: Body) -> str:
    retry = exchange.headers.get("retry-after")
    after = f" (Retry-After: {retry[:40]})" if retry else ""
    if 300 <= (exchange.status or 0) < 400:
        target = exchange.headers.get("location", "an address that it does not give")
        return f"HTTP {exchange.status}: a redirect to {target[:120]}, which is not followed"
    return f"HTTP {exchange.status}{after}: {words_of(body.data, 4 * MAX_DETAIL)}"


def _clean(detail: str, payload: Mapping[str, Any], secrets: Iterable[str]) -> str:
    """A server's words without secrets, prompt text, control characters and length."""
    for secret in secrets:
        if len(secret) >= 4:
            detail = detail.replace(secret, "***")
    for text in _prompt_texts(payload):
        at = _repeats(detail, text)
        if at is not None:
            detail = detail[:at] + "[prompt text left out]"
    printable = "".join(character if character.isprintable() else " " for character in detail)
    return " ".join(printable.split())[:MAX_DETAIL]


def _repeats(detail: str, prompt: str) -> int | None:
    """Where a server's words begin to repeat any part of a prompt, upper or lower case; None when they do not."""
    said, sent = detail[: 2 * MAX_DETAIL].lower(), prompt.strip().lower()
    length = min(_PROMPT_EXCERPT, len(sent))
    if length < 8:
        return None
    return next((at for at in range(len(said) - length + 1) if said[at : at + length] in sent), None)


def _prompt_texts(payload: Mapping[str, Any]) -> Iterable[str]:
    prompt = payload.get("prompt")
    if isinstance(prompt, str):
        yield prompt
    for message in payload.get("messages") or ():
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            yield content
        for part in content if isinstance(content, list) else ():
            if isinstance(part, Mapping) and isinstance(part.get("text"), str):
                yield part["text"]

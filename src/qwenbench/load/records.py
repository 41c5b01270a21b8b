"""The request record: one row per request sent. Offsets are in ms from `sent_ns` unless said otherwise."""

from __future__ import annotations

import pyarrow as pa

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
        ("reasoning_tokens", pa.int32()),  # usage...reasoning_tokens, where the server tells
        ("reasoning_chars", pa.int32()),
        ("answer_chars", pa.int32()),
        ("finish_reason", pa.string()),
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
    "no_usage": "the stream ended without usage",
    "empty": "the stream ended without any generated token",
    "tls": "the TLS handshake or certificate check failed",
    "cancelled": "stopped by the user",
    "client": "the client itself failed",
}
"""Error class -> what it means. None of them counts as a success."""

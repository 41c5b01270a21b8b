"""Turns due tokens into the bytes of vLLM's answers: SSE chunks, or one JSON object at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from qwenbench.http1.reading import LAST_CHUNK, chunk
from qwenbench.http1.server import HttpConnection
from qwenbench.simulator import text
from qwenbench.simulator.api import GenerationRequest
from qwenbench.simulator.engine import Engine, LiveRequest

REASONING_SHARE = 0.6
"""Part of an answer's tokens that come before </think>, where the model thinks."""
_DONE = chunk(b"data: [DONE]\n\n")
_STREAM_LINES = b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"


def _event(value: dict[str, Any]) -> bytes:
    return chunk(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


def _error(message: str) -> bytes:
    error = {"message": message, "type": "InternalServerError", "param": None, "code": 500}
    return json.dumps({"error": error}).encode()


class _Answer:
    """What streamed and whole answers share: the words, where thinking ends, and the usage."""

    def __init__(
        self,
        asked: GenerationRequest,
        request: LiveRequest,
        connection: HttpConnection,
        engine: Engine,
        *,
        cached_details: bool,
    ) -> None:
        self.asked = asked
        self.request = request
        self._connection = connection
        self._engine = engine
        self.created = int(time.time())
        self._cached_details = cached_details
        self._words: Iterator[str] = text.words(asked.text_seed, asked.vocabulary)
        self.end_of_thinking = _end_of_thinking(asked)

    def word(self, number: int) -> str | None:
        """Token `number` (from 1) as text; None for the token that ends the thinking, which has none.

        To be called once for each number in turn.
        """
        if number == self.end_of_thinking:
            return None
        if self.request.ended and self.asked.finish_reason == "stop" and number == self.request.generated:
            return ""  # the end-of-sequence token
        return next(self._words)

    def pieces(self, request: LiveRequest) -> tuple[str | None, str | None]:
        """(reasoning, answer) that the step's tokens add; None where they add nothing to it."""
        thought = said = None
        for number in range(request.generated - request.brought + 1, request.generated + 1):
            word = self.word(number)
            if word is None:
                continue
            if number < self.end_of_thinking:
                thought = (thought or "") + word
            else:
                said = (said or "") + word
        return thought, said

    def usage(self, output: int) -> dict[str, Any]:
        """The usage object after so many output tokens."""
        prompt = self.request.prompt_tokens
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
        if self._cached_details:
            usage["prompt_tokens_details"] = {"cached_tokens": self.request.cached_tokens}
        return usage

    def client_left(self) -> None:
        """Nobody reads any more: the engine drops the request, as vLLM does."""
        self._engine.abort(self.request)

    def pause(self) -> None:
        """A slow reader: vLLM's server lets the engine go on and keeps the answer, too."""

    def resume(self) -> None:
        """It caught up."""


def _end_of_thinking(asked: GenerationRequest) -> int:
    """The number of the </think> token; 0 without thinking, past the end when it never comes."""
    if not asked.thinking:
        return 0
    if asked.output_tokens < 4:
        return asked.output_tokens + 1
    return int(asked.output_tokens * REASONING_SHARE) + 1


class StreamAnswer(_Answer):
    """Sends each token as its own chunk."""

    def __init__(self, asked: GenerationRequest, request: LiveRequest, *rest: Any, **options: Any) -> None:
        super().__init__(asked, request, *rest, **options)
        self._plain = not (asked.continuous_usage or asked.return_token_ids)
        self._head: dict[str, Any] = {
            "id": request.request_id,
            "object": "chat.completion.chunk" if asked.chat else "text_completion",
            "created": self.created,
            "model": asked.model,
        }
        start = b"data: " + json.dumps(self._head, separators=(",", ":"))[:-1].encode()
        if asked.chat:
            open_delta = start + b',"choices":[{"index":0,"delta":{"%b":"'
            self._thinking_prefix = open_delta % b"reasoning"
            self._prefix = open_delta % b"content"
            self._suffix = b'"},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n'
        else:
            self._prefix = self._thinking_prefix = start + b',"choices":[{"index":0,"text":"'
            self._suffix = (
                b'","logprobs":null,"finish_reason":null,"stop_reason":null,'
                b'"prompt_token_ids":null,"token_ids":null}]}\n\n'
            )

    def token(self, request: LiveRequest) -> None:
        """Writes what the step brings: one call, whatever comes with the first and the last."""
        number = request.generated
        first = number == request.brought
        thought, said = self.pieces(request)
        if self._plain and not first and not request.ended and (thought is None or said is None):
            word = thought if said is None else said
            if word is None:
                return
            prefix = self._thinking_prefix if said is None else self._prefix
            piece = word.encode()
            size = len(prefix) + len(piece) + len(self._suffix)
            self._connection.write(b"%x\r\n%b%b%b\r\n" % (size, prefix, piece, self._suffix))
            return
        parts = []
        if first:
            parts.append(self._connection.head(200, _STREAM_LINES))
            if self.asked.chat:
                parts.append(_event(self._role_chunk()))
        if thought is not None or said is not None or request.ended:
            parts.append(_event(self._chunk(number, thought, said)))
        if request.ended:
            if self.asked.include_usage:
                parts.append(_event({**self._head, "choices": [], "usage": self.usage(number)}))
            parts += [_DONE, LAST_CHUNK]
        self._connection.write(b"".join(parts))
        if request.ended:
            self._connection.finish()

    def failed(self, message: str) -> None:
        """The engine died: an error event in a stream that has, or now gets, status 200."""
        head = b"" if self.request.generated else self._connection.head(200, _STREAM_LINES)
        event = chunk(b"data: " + _error(message) + b"\n\n")
        self._connection.write(head + event + _DONE + LAST_CHUNK)
        self._connection.finish()

    def _role_chunk(self) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        chunk = {**self._head, "choices": [choice], "prompt_token_ids": None}
        if self.asked.continuous_usage:
            chunk["usage"] = self.usage(0)
        if self.asked.return_token_ids:
            chunk["prompt_token_ids"] = [text.token_id(piece) for piece in self.asked.tokens]
        return chunk

    def _chunk(self, number: int, thought: str | None, said: str | None) -> dict[str, Any]:
        ended = self.request.ended
        brought = [piece for piece in (thought, said) if piece is not None]
        ids = [text.token_id(piece) for piece in brought] if self.asked.return_token_ids else None
        choice: dict[str, Any] = {"index": 0}
        if self.asked.chat:
            delta = {"reasoning": thought, "content": said}
            choice["delta"] = {name: piece for name, piece in delta.items() if piece is not None} or {"content": ""}
        else:
            choice["text"] = "".join(brought)
        choice["logprobs"] = None
        choice["finish_reason"] = self.asked.finish_reason if ended else None
        if ended or not self.asked.chat:
            choice["stop_reason"] = None
        if not self.asked.chat:
            choice["prompt_token_ids"] = None
        choice["token_ids"] = ids
        chunk = {**self._head, "choices": [choice]}
        if self.asked.continuous_usage:
            chunk["usage"] = self.usage(number)
        return chunk


class WholeAnswer(_Answer):
    """Answers once, when the last token is due."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._thought: list[str] = []
        self._said: list[str] = []

    def token(self, request: LiveRequest) -> None:
        """Keeps the token; the last one sends all."""
        number = request.generated
        thought, said = self.pieces(request)
        self._thought.append(thought or "")
        self._said.append(said or "")
        if request.ended:
            body = {**self._body(), "usage": self.usage(number)}
            self._connection.respond(200, json.dumps(body, separators=(",", ":")).encode())

    def failed(self, message: str) -> None:
        """The engine died."""
        self._connection.respond(500, _error(message))

    def _body(self) -> dict[str, Any]:
        said = "".join(self._said)
        choice: dict[str, Any] = {"index": 0, "text": said}
        if self.asked.chat:
            message: dict[str, Any] = {"role": "assistant", "content": said or None, "refusal": None, "tool_calls": []}
            if self.asked.thinking:
                message["reasoning"] = "".join(self._thought)
            choice = {"index": 0, "message": message}
        choice |= {"logprobs": None, "finish_reason": self.asked.finish_reason, "stop_reason": None}
        return {
            "id": self.request.request_id,
            "object": "chat.completion" if self.asked.chat else "text_completion",
            "created": self.created,
            "model": self.asked.model,
            "choices": [choice],
            "system_fingerprint": "SIMULATED",
        }

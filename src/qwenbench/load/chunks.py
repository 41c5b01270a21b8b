"""What one chunk of an answer says: its tokens, reasoning and answer apart, its usage, its end or an error.

Chunks come in many shapes, and the same fact stands in several places; where each was seen stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qwenbench.server_words import error_message, is_error

REASONING_KEYS = ("reasoning", "reasoning_content", "thinking", "reasoning_text")
_TEXT_KEYS = ("content", *REASONING_KEYS, "text", "refusal")
_PART_KEYS = ("text", *REASONING_KEYS, "content", "summary", "parts", "value", "refusal", "transcript")
_FURTHER_KEYS = ("reasoning_details", "thinking_blocks", "audio")
"""Of a delta, looked at when it has no other text: some servers send the same text under two names."""
_FAILED_REASONS = frozenset(
    "error abort aborted cancelled canceled failed timeout network_error insufficient_system_resource".split()
)
"""Values of finish_reason with which an answer has failed (SGLang, TensorRT-LLM, Zhipu, DeepSeek)."""


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
    """The last one, but for one that counts nothing after one that counted."""
    most_tokens: int = 0
    """The largest completion_tokens of any usage."""
    several: bool = False
    """A choice other than the first was seen: the chunks are of several answers (n > 1)."""
    passed_over: int = 0
    """Events that were no chunk: keep-alives, remarks, metadata."""
    finish_reason: str | None = None
    done: bool = False
    """[DONE] was seen."""
    counted_up: bool = False
    """A usage beside no choice was seen, as it comes after the last chunk."""
    error: str | None = None
    detail: str | None = None


class BrokenStreamError(Exception):
    """An event that cannot be read; the message has no content of the stream in it."""


def take_chunk(facts: StreamFacts, event: dict[str, Any], end: int) -> str | None:
    """Take in a chunk whose event ends at the body offset `end`; returns the key of its text when that is all it
    carries. Raises BrokenStreamError."""
    if take_error(facts, event):
        return None
    choices = event.get("choices")
    usage = _usage_of(event, choices)
    if usage is not None:
        _take_usage(facts, usage)
        facts.counted_up |= not choices
    if choices is None:
        if usage is None:
            facts.passed_over += 1  # `{"type": "ping"}`, metadata of a gateway
        return None
    if not isinstance(choices, list):
        raise BrokenStreamError("the choices of a chunk are no list")
    key: str | None = None
    token = answered = False
    for choice in choices:
        if not isinstance(choice, dict):
            raise BrokenStreamError("a choice is no JSON object")
        facts.several |= choice.get("index") not in (None, 0)
        key, carried, is_answer = _take_choice(facts, choice, end)
        token |= carried
        answered |= is_answer
    if token:
        if answered and facts.first_answer is None:
            facts.first_answer = len(facts.token_ends)
        facts.token_ends.append(end)
        facts.mark_end = end
    plain = len(choices) == 1 and usage is None and key is not None
    return key if plain and not choices[0].get("finish_reason") else None


def take_error(facts: StreamFacts, event: dict[str, Any]) -> bool:
    """Take in an event that tells of an error; False when it does not."""
    if not is_error(event):
        return False
    facts.error, facts.detail = "stream_error", error_message(event)
    return True


def _usage_of(event: dict[str, Any], choices: object) -> dict[str, Any] | None:
    """An event's usage, wherever it stands: beside the choices, in the first one (Kimi), in `x_groq` (Groq), or as
    llama.cpp's timings, which come unasked."""
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (event, first, event.get("x_groq")):
        if isinstance(holder, dict) and isinstance(holder.get("usage"), dict):
            return dict(holder["usage"])
    timings = event.get("timings")
    if not isinstance(timings, dict) or token_count(timings, "predicted_n") is None:
        return None
    read = [token_count(timings, key) for key in ("cache_n", "prompt_n")]
    return {"completion_tokens": timings["predicted_n"], "prompt_tokens": sum(one or 0 for one in read) or None}


def token_count(holder: object, *keys: str) -> int | None:
    """The first of these keys' value that can be a number of tokens; 40.0 and "40" are what they say."""
    for key in keys:
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, str) and value.isdecimal() and len(value) < 10:
            value = int(value)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value < 2**31
            and value == int(value)
        ):
            return int(value)
    return None


def _take_usage(facts: StreamFacts, usage: dict[str, Any]) -> None:
    """Keep the latest usage; one of zeros after one that counted is no news but a habit of some servers."""
    counted = token_count(usage, "completion_tokens", "output_tokens") or 0
    if counted > 0 or facts.most_tokens == 0:
        facts.usage = usage
    facts.most_tokens = max(facts.most_tokens, counted)


def _take_choice(facts: StreamFacts, choice: dict[str, Any], end: int) -> tuple[str | None, bool, bool]:
    """Take in one choice: (key of the only text, whether it carried a token, whether of the answer)."""
    delta = choice["delta"] if "delta" in choice else choice.get("message", choice)
    if isinstance(delta, str):
        delta = {"content": delta}
    if delta is None:
        delta = {}
    if not isinstance(delta, dict):
        raise BrokenStreamError("a delta is no JSON object")
    keys = []
    thoughts, answers = len(facts.reasoning), len(facts.answer)
    for key in _TEXT_KEYS:
        content = delta.get(key)
        if not content or (key in REASONING_KEYS and len(facts.reasoning) > thoughts):
            continue  # two names of one text: newer servers send it twice
        keys += [key] if isinstance(content, str) else []
        _take_text(facts, content, key in REASONING_KEYS)
    if (len(facts.reasoning), len(facts.answer)) == (thoughts, answers):
        for key in _FURTHER_KEYS:
            _take_text(facts, delta.get(key), key != "audio")
    thought, answered = len(facts.reasoning) > thoughts, len(facts.answer) > answers
    tools = delta.get("tool_calls") or ([{"function": delta["function_call"]}] if delta.get("function_call") else None)
    if isinstance(tools, list) and tools:
        facts.tool_chars += sum(_tool_chars(tool) for tool in tools)
        answered = True
    ids = choice.get("token_ids")
    carried = thought or answered or (isinstance(ids, list) and bool(ids))
    finish = choice.get("finish_reason")
    if isinstance(finish, str) and finish:
        facts.finish_reason = finish
        facts.mark_end = end
        if finish in _FAILED_REASONS:
            facts.error, facts.detail = "stream_error", f"the server ended the answer with finish_reason {finish!r}"
    whole = thought + answered == 1 and not tools and not ids
    only = keys[0] if len(keys) == 1 and whole else None
    return only, carried, answered


def _take_text(facts: StreamFacts, content: Any, reasoning: bool) -> None:
    """Keep the texts in content that is text, a part or a list of parts, as reasoning or as answer.

    Seen: `{"type": "text", "text": "..."}`, the same with `{"value": "..."}` as text, `{"type": "thinking", "thinking":
    [{"type": "text", "text": "..."}]}`, `{"type": "reasoning", "reasoning": "..."}`, and plain strings.
    """
    if isinstance(content, str):
        if content:
            (facts.reasoning if reasoning else facts.answer).append(content)
    elif isinstance(content, list):
        for part in content:
            _take_text(facts, part, reasoning)
    elif isinstance(content, dict):
        kind = str(content.get("type") or "")
        key = next((key for key in _PART_KEYS if content.get(key)), None)
        if key is not None:
            inner = reasoning or "think" in kind or "reason" in kind or key in REASONING_KEYS
            _take_text(facts, content[key], inner)


def _tool_chars(tool: Any) -> int:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return 0
    return sum(len(function[key]) for key in ("name", "arguments") if isinstance(function.get(key), str))

"""32 short questions with known answers: a quantised cache or a bad build that lies fluently shows as a number."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwenbench.bounded_http import NoReplyError, Questions
from qwenbench.errors import RunError, UsageError
from qwenbench.input_files import MIB, read_input
from qwenbench.workload.planning import RequestOptions, request_body
from qwenbench.workload.scenario import scenario_folder

MAX_TOKENS = 48
"""Longest answer asked for, in tokens: room for a short sentence around the word."""

_INSTRUCTION = "Answer with the number or the word only, without an explanation."
_WORD = re.compile(r"\w+(?:[.,]\d+)*")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


class CanaryQuestion(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    question: str = Field(min_length=1)
    accept: tuple[str, ...] = Field(min_length=1, description="Right answers, in lower case; any of them.")


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """How a server answered. `low` and `high` bound the accuracy with 95 % confidence (Wilson)."""

    accuracy: float
    low: float
    high: float
    correct: tuple[bool, ...]
    """Per question, in the file's order."""
    unanswered: int = 0
    """Questions whose request failed; they count as wrong."""
    fingerprints: tuple[str, ...] = field(default=())
    """A hash of each answer (no text is kept), to tell whether two configurations say the same."""


def canary_questions() -> tuple[CanaryQuestion, ...]:
    """The questions. Raises UsageError with file and line for a broken row."""
    path = scenario_folder() / "canary.jsonl"
    lines = read_input(path, "canary questions", MIB).splitlines()
    questions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            questions.append(CanaryQuestion.model_validate(orjson.loads(line)))
        except (orjson.JSONDecodeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"canary questions {path}, line {number}: {reason}.") from error
    return tuple(questions)


def canary_requests(options: RequestOptions) -> list[dict[str, Any]]:
    """One chat request body per question: greedy, without thinking, not streamed, salted as `options` say.

    Of `options` the model, the salt and what the server refuses or wants otherwise count.
    """
    greedy = replace(options, endpoint="chat", profile="none", force_length=False)
    bodies = []
    for question in canary_questions():
        nonce = f"[{options.salt}-{question.id}] " if options.salt_mode == "prefix" else ""
        message = {"role": "user", "content": f"{nonce}{question.question} {_INSTRUCTION}"}
        body = request_body(greedy, [message], MAX_TOKENS, question.id)
        body |= {"temperature": 0, "chat_template_kwargs": {"enable_thinking": False}, "stream": False}
        body.pop("stream_options", None)
        bodies.append({name: value for name, value in body.items() if name not in options.left_out})
    return bodies


def is_right(answer: str, accept: Sequence[str]) -> bool:
    """Whether an answer names one of the accepted ones as a word, and does not bury it in a long text.

    `**43**`, `The answer is 43.` and `43 pencils` are right for 43; `143`, `4.3` and a list of numbers are not.
    """
    words = [word.lower() for word in _WORD.findall(answer)]
    if not words or len(words) > 40:
        return False
    for right in accept:
        wanted = _WORD.findall(right.lower())
        places = [start for start in range(len(words)) if words[start : start + len(wanted)] == wanted]
        if not places:
            continue
        if not wanted[0][0].isdigit():
            return True
        numbers = [word for word in words if word[0].isdigit()]
        if numbers[-1] == right or numbers.count(right) == len(numbers):
            return True
    return False


def grade(answers: Sequence[str | None]) -> CanaryResult:
    """Grades one answer per question, in order; None (the request failed) counts as wrong."""
    asked = canary_questions()
    if len(answers) != len(asked):
        raise ValueError(f"{len(answers)} answers for {len(asked)} questions")
    correct = tuple(
        answer is not None and is_right(answer, question.accept)
        for answer, question in zip(answers, asked, strict=True)
    )
    low, high = wilson_interval(sum(correct), len(correct))
    return CanaryResult(
        accuracy=sum(correct) / len(correct),
        low=low,
        high=high,
        correct=correct,
        unanswered=sum(answer is None for answer in answers),
        fingerprints=tuple("" if answer is None else _fingerprint(answer) for answer in answers),
    )


def agreement(a: CanaryResult, b: CanaryResult) -> float:
    """Share of the questions to which two configurations gave the same answer, case and punctuation aside."""
    pairs = list(zip(a.fingerprints, b.fingerprints, strict=True))
    return sum(one == other and one != "" for one, other in pairs) / len(pairs)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's score interval for a share: well-behaved at 0 and at 1 (E. B. Wilson, JASA 1927)."""
    if count <= 0:
        raise ValueError("no observation")
    z = 1.959964  # 95 %
    share = hits / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _fingerprint(answer: str) -> str:
    return hashlib.sha256(" ".join(_WORD.findall(answer.lower())).encode("utf-8", "replace")).hexdigest()[:12]


async def ask_canary(questions: Questions, options: RequestOptions) -> CanaryResult:
    """Asks a server all questions, one after another: alone in its batch each answer is the most repeatable.

    Raises RunError when not one request was answered, with the first reason.
    """
    answers: list[str | None] = []
    reasons: list[str] = []
    for body in canary_requests(options):
        answer, reason = await _ask(questions, body)
        if answer is not None:
            questions.limit.restart()
        answers.append(answer)
        if reason:
            reasons.append(reason)
    if all(answer is None for answer in answers):
        raise RunError(f"--canary: {questions.base_url} answered none of {len(answers)} questions: {reasons[0]}.")
    return grade(answers)


async def _ask(questions: Questions, body: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The answer without its reasoning, or None and why."""
    try:
        reply = await questions.ask("/v1/chat/completions", body, tokens=True)
    except NoReplyError as problem:
        return None, str(problem)
    if reply.status != 200:
        return None, f"HTTP {reply.status}: {reply.words()}"
    try:
        content = reply.json()["choices"][0]["message"]["content"]  # type: ignore[index]  # None is caught below
    except (KeyError, IndexError, TypeError):
        return None, "the answer holds no message"
    return _THOUGHT.sub("", str(content or "")), None

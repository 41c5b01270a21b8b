"""From a scenario to the sessions of one load point: what each request says and how long its answer shall be.

Everything is drawn from the point's seed, so the same seed gives the same requests to every configuration.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import numpy as np

from qwenbench.workload.arrivals import TraceRow
from qwenbench.workload.profiles import REQUEST_PROFILES
from qwenbench.workload.prompts import Prompt, PromptTurn
from qwenbench.workload.scenario import CHARS_PER_TOKEN, Lengths, Scenario, plain_words, stretched
from qwenbench.workload.sessions import SessionPlan, TurnPlan

SaltMode = Literal["cache_salt", "prefix", "off"]
"""How one session's prompts are kept out of another's prefix cache: vLLM's cache_salt field, a nonce in front of
the first message (servers that refuse the field), or not at all (--prefix-reuse natural)."""


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What every request of a load point has in common."""

    model: str
    endpoint: Literal["chat", "completions"] = "chat"
    profile: str = "instruct-general"
    force_length: bool = True
    """True: max_tokens = min_tokens = the drawn length and ignore_eos. False: max_tokens only."""
    natural_limit: int | None = None
    """Without force_length: upper limit in tokens; None takes `natural_factor` times the drawn length."""
    natural_factor: int = 4
    """Without force_length: room for an answer to end by itself. 1 where the user gave the lengths."""
    own_lengths: bool = True
    """A prompt's own output_tokens count before the scenario's lengths."""
    left_out: frozenset[str] = frozenset()
    """Fields of the body that the server refuses."""
    length_field: str = "max_tokens"
    """The field that limits an answer: `max_completion_tokens` where the server wants that."""
    salt_mode: SaltMode = "cache_salt"
    salt: str = ""
    """New for every warm-up, load point and repeat; each session's own number is added."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields added to each body; one that is None is taken out of it."""
    chars_per_token: float = CHARS_PER_TOKEN


def point_seed(seed: int, scenario: str, concurrency: float, repeat: int, purpose: str = "measure") -> int:
    """The seed of one load point: the same in every configuration and launch, another in every repeat."""
    return zlib.crc32(f"{seed}|{scenario}|{concurrency:g}|{repeat}|{purpose}".encode())


def _messages(prompt: Prompt, users: Sequence[str], turn: int) -> list[dict[str, str]]:
    """The conversation up to this turn."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for number in range(turn):
        messages.append({"role": "user", "content": users[number]})
        messages.append({"role": "assistant", "content": prompt.turns[number].assistant or ""})
    return [*messages, {"role": "user", "content": users[turn]}]


def _with_nonce(messages: Sequence[Mapping[str, Any]], nonce: str) -> Sequence[Mapping[str, Any]]:
    """The messages with a nonce before the first text: nothing of another session's cache can be found."""
    if not nonce:
        return messages
    first = next((place for place, one in enumerate(messages) if isinstance(one.get("content"), str)), None)
    if first is None:
        return [{"role": "system", "content": nonce}, *messages]
    salted = {**messages[first], "content": nonce + messages[first]["content"]}
    return [*messages[:first], salted, *messages[first + 1 :]]


def _says_its_turns(rows: Sequence[TraceRow]) -> bool:
    """Whether a trace's session says more than when to begin and how long to be."""
    return len(rows) > 1 or bool(rows[0].messages) or bool(rows[0].hash_ids)


def _words_of_blocks(row: TraceRow) -> str:
    """A prompt made of its blocks: equal block numbers give equal words, as the trace's own prompts were equal."""
    left = row.input_tokens or row.block_tokens * len(row.hash_ids)
    parts = []
    for number in row.hash_ids:
        length = min(row.block_tokens, left)
        if length > 0:
            block = plain_words(row.block_tokens, np.random.default_rng(number & 0xFFFFFFFF)).split()
            parts += block[:length]
        left -= length
    return " ".join(parts) or "hello"


def _as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    contents = (message.get("content") for message in messages)
    return "\n\n".join(content for content in contents if isinstance(content, str))


class PlannedSessions(Sequence[SessionPlan]):
    """The sessions of one load point, built when asked for: a lazy, picklable sequence."""

    def __init__(
        self,
        scenario: Scenario,
        prompts: Sequence[Prompt],
        options: RequestOptions,
        seed: int,
        requests: int,
        starts: Sequence[float] | None = None,
        trace: Sequence[TraceRow | Sequence[TraceRow]] = (),
        streams: int = 1,
    ) -> None:
        """`requests` requests in all (the last session is cut short to fit), or one session per start time.

        `streams` sessions at least: conversations are cut to fewer turns where whole ones would leave streams idle.

        `prompts` empty: synthetic prompts of the scenario's input_tokens. `trace` holds a
        session's rows (or its only one) per start time: their lengths override the draws, several are its turns.
        """
        self._scenario = scenario
        self._prompts = tuple(prompts)
        self._options = options
        self._seed = seed
        self._starts = None if starts is None else tuple(float(start) for start in starts)
        self._trace = tuple((rows,) if isinstance(rows, TraceRow) else tuple(rows) for rows in trace)
        self._order = np.random.default_rng(seed).permutation(len(self._prompts)) if self._prompts else None
        self._turn_limits = self._limits(requests, streams)

    def _limits(self, requests: int, streams: int) -> tuple[int, ...]:
        if self._starts is not None:
            return tuple(self._turns(index) for index in range(len(self._starts)))
        most = self._most_turns(requests, streams)
        limits: list[int] = []
        left = requests
        while left > 0:
            limits.append(min(self._turns(len(limits)), most, left))
            left -= limits[-1]
        return tuple(limits)

    def _most_turns(self, requests: int, streams: int) -> int:
        """The longest conversations (in turns) with which the first `streams` sessions fit into `requests`."""
        first = [self._turns(index) for index in range(streams)]
        fitting = [most for most in range(1, max(first) + 1) if sum(min(turns, most) for turns in first) <= requests]
        return fitting[-1] if fitting else 1

    def _turns(self, index: int) -> int:
        if self._trace and _says_its_turns(self._trace[index]):
            return len(self._trace[index])
        prompt = self._prompt(index)
        return len(prompt.turns) if prompt else 1

    def _prompt(self, index: int) -> Prompt | None:
        if self._order is None:
            return None
        passes, place = divmod(index, len(self._prompts))
        # later passes start elsewhere in the order, so that streams do not move in step
        return self._prompts[int(self._order[(place + passes * 7) % len(self._prompts)])]

    def __len__(self) -> int:
        return len(self._turn_limits)

    @property
    def request_count(self) -> int:
        return sum(self._turn_limits)

    @overload
    def __getitem__(self, index: int) -> SessionPlan: ...
    @overload
    def __getitem__(self, index: slice) -> list[SessionPlan]: ...
    def __getitem__(self, index: int | slice) -> SessionPlan | list[SessionPlan]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._build(index % len(self))

    def _build(self, index: int) -> SessionPlan:
        random = np.random.default_rng([self._seed, index])
        rows = self._trace[index] if self._trace else ()
        if rows and _says_its_turns(rows):
            return self._replayed(index, rows, random)
        trace = rows[0] if rows else None
        prompt = self._prompt(index) or self._synthetic(index, trace, random)
        users = self._users(prompt, trace, random)
        turns = []
        for number in range(self._turn_limits[index]):
            own = prompt.output_tokens if self._options.own_lengths else None
            drawn = trace.output_tokens if trace and trace.output_tokens else own
            turns.append(
                self._turn(
                    index,
                    number,
                    _messages(prompt, users, number),
                    drawn or self._scenario.output_tokens.draw(random),
                    prompt_id=prompt.id,
                    language=prompt.language,
                    think_s=self._scenario.think_time_s if number else 0.0,
                )
            )
        return self._session(index, turns, live=True)

    def _replayed(self, index: int, rows: Sequence[TraceRow], random: np.random.Generator) -> SessionPlan:
        """A session whose turns a trace tells: their messages as they are, or words of their lengths."""
        talk: list[Mapping[str, Any]] = []
        said = 0
        turns = []
        for number, row in enumerate(rows):
            drawn = row.output_tokens or self._scenario.output_tokens.draw(random)
            if row.messages:
                messages = list(row.messages)
            elif row.hash_ids:
                messages = [{"role": "user", "content": _words_of_blocks(row)}]
            else:
                wanted = row.input_tokens or 256
                fresh = plain_words(max(1, wanted - said), random)
                messages = [*talk, {"role": "user", "content": fresh}]
                talk = [*messages, {"role": "assistant", "content": plain_words(drawn, random)}]
                said = max(wanted, said + 1) + drawn
            turn = self._turn(
                index,
                number,
                messages,
                drawn,
                prompt_id=f"trace-{index}",
                language="und" if row.messages else "en",
                think_s=row.think_s or 0.0,
                due_s=row.start_s if number and row.think_s is None else None,
            )
            chat = self._options.endpoint == "chat"
            turns.append(replace(turn, payload={**turn.payload, **row.fields}) if chat else turn)
        return self._session(index, turns, live=bool(talk))

    def _turn(
        self, index: int, number: int, messages: Sequence[Mapping[str, Any]], drawn: int, **told: Any
    ) -> TurnPlan:
        """A session's request, salted as the options say; `drawn`: the answer's length, `told`: the plan's other
        fields."""
        session_id = f"s{index:05d}"
        nonce = f"[{self._options.salt}-{session_id}] " if self._options.salt_mode == "prefix" else ""
        limit = answer_limit(self._options, drawn)
        body = request_body(self._options, _with_nonce(messages, nonce), limit, session_id)
        return TurnPlan(f"{session_id}.{number}", number, payload=body, output_tokens=limit, **told)

    def _session(self, index: int, turns: Sequence[TurnPlan], *, live: bool) -> SessionPlan:
        start_s = None if self._starts is None else self._starts[index]
        live = live and self._scenario.replay == "live" and self._options.endpoint == "chat"
        return SessionPlan(f"s{index:05d}", self._scenario.name, tuple(turns), start_s, live)

    def _synthetic(self, index: int, trace: TraceRow | None, random: np.random.Generator) -> Prompt:
        lengths = self._scenario.input_tokens or Lengths(min=256, max=256)
        tokens = trace.input_tokens if trace and trace.input_tokens else lengths.draw(random)
        return Prompt(id=f"synthetic-{index}", turns=(PromptTurn(user=plain_words(tokens, random)),))

    def _users(self, prompt: Prompt, trace: TraceRow | None, random: np.random.Generator) -> list[str]:
        users = [turn.user for turn in prompt.turns]
        target = trace.input_tokens if trace and trace.input_tokens else None
        if target is None and self._scenario.input_tokens is not None and self._prompts:
            target = self._scenario.input_tokens.draw(random)
        if target is not None and self._prompts:
            users[0] = stretched(users[0], target, random, self._options.chars_per_token)
        return users


def answer_limit(options: RequestOptions, drawn: int) -> int:
    """The length in tokens that a request asks for (forced, or as a limit) where `drawn` came of the scenario."""
    if options.force_length:
        return drawn
    return options.natural_limit or options.natural_factor * drawn


def request_body(
    options: RequestOptions, messages: Sequence[Mapping[str, Any]], limit: int, session_id: str
) -> dict[str, Any]:
    """A request's JSON body; `limit` is its answer's length in tokens, see `answer_limit`."""
    body: dict[str, Any] = {"model": options.model}
    profile = REQUEST_PROFILES[options.profile]
    if options.endpoint == "chat":
        body["messages"] = list(messages)
        body.update(profile.request_fields())
    else:
        body["prompt"] = _as_text(messages)
        body.update(profile.sampling())
    body["stream"] = True
    body["stream_options"] = {"include_usage": True}
    body[options.length_field] = limit
    if options.force_length:
        body.update(min_tokens=limit, ignore_eos=True)
    if options.salt_mode == "cache_salt":
        body["cache_salt"] = f"{options.salt}-{session_id}"
    for name in options.left_out:
        body.pop(name, None)
    for name, value in options.extra_body.items():
        if value is None:
            body.pop(name, None)
        else:
            body[name] = value
    return body


def with_overrides(
    scenario: Scenario,
    *,
    input_tokens: Lengths | None = None,
    output_tokens: Lengths | None = None,
    requests: str | None = None,
) -> Scenario:
    """The scenario with the command line's values in place of its own (None keeps it)."""
    given = {"input_tokens": input_tokens, "output_tokens": output_tokens, "requests": requests}
    return scenario.model_copy(update={name: value for name, value in given.items() if value is not None})


REQUESTS = 4
"""Requests of each scenario."""
LIMIT_TOKENS = 768
"""Upper limit of an answer in tokens; most end before it."""
THINKING_LIMIT_TOKENS = 2048
"""The same with thinking: reasoning comes first."""


def natural_pass(
    scenario: Scenario,
    prompts: Sequence[Prompt],
    options: RequestOptions,
    seed: int,
    requests: int = REQUESTS,
) -> PlannedSessions:
    """The sessions of the pass, ready for a LoadSpec with judge_text=True.

    `options` are the measured ones; their salt should be another. Synthetic prompts (no prompt set) ask for nothing
    in particular, so nothing can be said about their answers: no session is planned for them.
    """
    limit = THINKING_LIMIT_TOKENS if REQUEST_PROFILES[options.profile].enable_thinking else LIMIT_TOKENS
    natural = replace(options, force_length=False, natural_limit=limit)
    return PlannedSessions(scenario, prompts, natural, seed, requests if prompts else 0)

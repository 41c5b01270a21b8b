"""Open loop: when sessions are due. Drawn from the seed before a point starts, or read from a trace."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, check_input
from qwenbench.server_words import visible
from qwenbench.workload.importing.dataset_files import rows_of_file

Shape = Literal["poisson", "gamma", "constant"]


def arrival_times(
    rate: float, count: int, shape: Shape, random: np.random.Generator, burstiness: float = 1.0, ramp_s: float = 0.0
) -> npt.NDArray[np.float64]:
    """`count` start times in seconds, ascending from 0.

    Gaps have mean 1/rate: constant; exponential (Poisson); or gamma with shape parameter `burstiness`
    (1 is Poisson, below 1 burstier; the convention of vLLM's --burstiness). During the first `ramp_s`
    seconds the rate grows linearly from 0, by stretching the time axis: t = sqrt(2 ramp u) for u <= ramp/2.
    """
    if shape == "constant":
        gaps = np.full(count, 1.0 / rate)
    elif shape == "poisson":
        gaps = random.exponential(1.0 / rate, count)
    else:
        gaps = random.gamma(burstiness, 1.0 / (rate * burstiness), count)
    even = np.concatenate(([0.0], np.cumsum(gaps)[:-1])) if count else np.zeros(0)
    if ramp_s <= 0:
        return even
    return np.where(even <= ramp_s / 2, np.sqrt(2 * ramp_s * even), even + ramp_s / 2)


def arrivals_within(
    rate: float,
    duration_s: float,
    shape: Shape,
    random: np.random.Generator,
    burstiness: float = 1.0,
    ramp_s: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Start times that fill a duration: as many as are drawn before it ends, ascending from 0; see arrival_times.

    A fixed number of arrivals would end early or late by chance, and with them the time over which rates are counted.
    """
    count = max(1, math.ceil(rate * duration_s + 6 * math.sqrt(rate * duration_s / min(burstiness, 1.0)) + 6))
    times = arrival_times(rate, count, shape, random, burstiness, ramp_s)
    while times[-1] < duration_s:  # a burst of chance: the same draw continued
        more = arrival_times(rate, count, shape, random, burstiness)
        gap = arrival_times(rate, 2, shape, random, burstiness)[1]
        times = np.concatenate((times, times[-1] + gap + more))
    return times[times < duration_s]


Unit = Literal["s", "ms"]


@dataclass(frozen=True, slots=True)
class TraceRow:
    start_s: float
    """Seconds after the trace's first request."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    session: str | None = None
    """Requests of one session are sent one after another; None: a session of its own."""
    think_s: float | None = None
    """Pause after the session's previous answer, s; None: `start_s` says when it is due."""
    messages: tuple[Mapping[str, Any], ...] = ()
    """Sent as they are (tool calls and results included); empty: a prompt is made."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What belongs to the messages in a request's body: tools, tool_choice, response_format."""
    hash_ids: tuple[int, ...] = field(default=(), compare=False)
    """Numbers of the prompt's blocks: equal numbers at the beginning mean an equal beginning."""
    block_tokens: int = field(default=0, compare=False)
    """Tokens of a block."""


@dataclass(frozen=True, slots=True)
class Trace:
    rows: tuple[TraceRow, ...]
    form: str
    """Whose form it has, and the unit of its times, for people."""
    left_out: int = 0
    """Rows of requests without tokens, as traces of real services have them (failed or empty answers)."""
    unread: tuple[str, ...] = ()
    """Columns of its first row that nothing is done with."""

    @property
    def note(self) -> str:
        """One line on how the trace was read."""
        span = self.rows[-1].start_s
        told = f"trace: {self.form}; {len(self.rows)} requests over {span:g} s"
        told += f", {self.left_out} rows without tokens left out" if self.left_out else ""
        return f"{told}; not read: {', '.join(self.unread)}" if self.unread else told


@dataclass(frozen=True, slots=True)
class _Form:
    name: str
    inputs: str
    outputs: str
    unit: Unit | None
    """None: its times are dates, or the unit is not known."""
    block_tokens: int = 512
    time: str = "timestamp"
    published: bool = True
    """Rows without tokens are left out, where an own trace would be refused."""


_OWN = _Form("own form", "input_tokens", "output_tokens", "s", published=False)
_BAILIAN = _Form("Bailian's form", "input_length", "output_length", "s", 16)
_MOONCAKE = _Form("Mooncake's form", "input_length", "output_length", "ms")
_LENGTHS_ONLY = replace(_MOONCAKE, name="Mooncake's or Bailian's form", unit=None)
_PUBLISHED = (
    _Form("Azure's form", "contexttokens", "generatedtokens", None),
    _Form("BurstGPT's form", "request tokens", "response tokens", "s"),
    _Form("Vidur's form", "num_prefill_tokens", "num_decode_tokens", "s", time="arrived_at"),
    _Form("Splitwise's form", "prompt_size", "token_size", "s", time="arrival_timestamp"),
    replace(_OWN, inputs="prompt_tokens", outputs="completion_tokens"),
)
"""Told by both their columns of tokens."""
_FORMS = (_OWN, _BAILIAN, *_PUBLISHED)
_NUMBERS = frozenset(
    {"delay", "think_s"} | {name for form in _FORMS for name in (form.inputs, form.outputs, form.time)}
)
"""Columns of numbers, which are text in a CSV file."""
_LARGEST = 8 * GIB
_A_DATE_IN_MS = 1e11
"""As seconds the year 5138, as milliseconds 1973."""
_MESSAGE_FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "response_format")
_READ = (
    _NUMBERS
    | frozenset(_MESSAGE_FIELDS)
    | frozenset("hash_ids,chat_id,parent_chat_id,turn,session_id,session id,session".split(","))
    | frozenset("messages,input,prompt,text_input,body".split(","))
)
_UNREAD_SHOWN = 8


def read_trace(path: Path, unit: Unit | None = None, speed: float = 1.0, until_s: float | None = None) -> Trace:
    """Read a trace: JSON Lines or CSV (both also .gz), a JSON array or Parquet, in any form of docs/workload.md.

    `unit` is that of its timestamps; without it the form must be one that is known for sure. `speed` 2 replays it twice
    as fast; rows later than `until_s` (s, after that) are not read. Times count from the first row's. Raises UsageError
    with the line: no JSON, no timestamp, times that go backwards, or a unit that cannot be told.
    """
    check_input(path, "--trace", _LARGEST)
    try:
        return _read(path, _rows(path), unit, speed, until_s)
    except UsageError as problem:
        told = str(problem)
        raise UsageError(told if told.startswith("--trace") else f"--trace {told}") from None


def sessions_of(rows: Sequence[TraceRow]) -> list[tuple[TraceRow, ...]]:
    """The rows by session, in the order of the sessions' first requests."""
    sessions: dict[object, list[TraceRow]] = {}
    for number, row in enumerate(rows):
        sessions.setdefault(number if row.session is None else row.session, []).append(row)
    return [tuple(turns) for turns in sessions.values()]


Numbered = Iterator[tuple[int, Mapping[str, Any]]]


def _read(path: Path, rows: Numbered, unit: Unit | None, speed: float, until_s: float | None) -> Trace:
    kept: list[TraceRow] = []
    unread: tuple[str, ...] = ()
    form: _Form | None = None
    told = ""
    first = before = 0.0
    left_out = 0
    roots: dict[str, str] = {}
    for number, row in rows:
        where = f"{path}, row {number}"
        if form is None:
            form = _form_of([one for _, one in islice(_rows(path), _ROWS_LOOKED_AT)], unit, path)
            unread = tuple(visible(name)[:40] for name in row if name not in _READ)[:_UNREAD_SHOWN]
            told = _told(form, unit, row.get(form.time))
        divisor = {"s": 1.0, "ms": 1000.0}[unit or form.unit or "s"]
        later = before if kept and (row.get("delay") is not None or row.get("think_s") is not None) else None
        time_s = _time(row, form.time, divisor, unit or form.unit, later, where)
        if not kept and not left_out:
            first = before = time_s
        if time_s < before:
            raise UsageError(
                f"{where}: {form.time} {time_s * divisor:g} lies before the one above it, {before * divisor:g}. "
                "Sort the trace by time."
            )
        before = time_s
        start_s = (time_s - first) / speed
        if until_s is not None and start_s >= until_s:
            break
        made = _row(row, form, start_s, speed, roots, where)
        if made is None:
            left_out += 1
        else:
            kept.append(made)
    if not kept or form is None:
        raise UsageError(f"--trace {path}: holds no row" + (" with tokens." if left_out else "."))
    return Trace(tuple(kept), told + (f", {speed:g} times as fast" if speed != 1 else ""), left_out, unread)


def _told(form: _Form, unit: Unit | None, first: object) -> str:
    """Whose form it is, and the unit of its times."""
    if isinstance(_numeric(first), str | datetime):
        return f"{form.name}, times as dates"
    words = {"s": "seconds", "ms": "milliseconds"}[unit or form.unit or "s"]
    return f"{form.name}, times in {words}" + (" (--trace-unit)" if unit is not None else "")


def _row(
    row: Mapping[str, Any], form: _Form, start_s: float, speed: float, roots: dict[str, str], where: str
) -> TraceRow | None:
    inputs, outputs = (_tokens(row, name, form, where) for name in (form.inputs, form.outputs))
    if 0 in (inputs, outputs):
        return None
    think_s = None
    for name, divisor in (("delay", 1000.0), ("think_s", 1.0)):
        if row.get(name) is not None:
            think_s = _number(row[name], name, where) / divisor / speed
    messages, fields = _messages(row, where)
    hashes = row.get("hash_ids")
    hash_ids: tuple[int, ...] = ()
    if isinstance(hashes, list) and all(type(one) is int and one >= 0 for one in hashes):
        hash_ids = tuple(hashes)
    session = _session(row, roots)
    return TraceRow(start_s, inputs, outputs, session, think_s, messages, fields, hash_ids, form.block_tokens)


def _form_of(rows: Sequence[Mapping[str, Any]], unit: Unit | None, path: Path) -> _Form:
    """The form that the first rows' columns tell. Raises UsageError when they leave the unit or the lengths open."""
    names = frozenset[str]().union(*rows)
    form = next((form for form in _PUBLISHED if {form.inputs, form.outputs} <= names), _OWN)
    if names & {"input_length", "output_length"}:
        form = _form_of_lengths(rows[0], names)
    elif form is _OWN and not names & {form.inputs, form.outputs} and (found := sorted(filter(_LENGTH.search, names))):
        raise UsageError(
            f"--trace {path}: are {', '.join(map(visible, found))} lengths? Name the columns input_tokens and "
            "output_tokens, or leave them out for the scenario's lengths."
        )
    if unit is None:
        _check_unit(form, [_numeric(row.get(form.time)) for row in rows], path)
    return form


def _form_of_lengths(row: Mapping[str, Any], names: frozenset[str]) -> _Form:
    """Whose rows with input_length these are, by a further column; numbers of the prompt's blocks tell by their count
    how many tokens a block has, and a delay is in milliseconds like the times beside it."""
    if names & {"chat_id", "parent_chat_id", "turn"}:
        return _BAILIAN
    hashes, tokens = row.get("hash_ids"), row.get("input_length")
    if isinstance(hashes, list) and isinstance(tokens, int | float):
        return _BAILIAN if 0 <= len(hashes) * _BAILIAN.block_tokens - tokens < _BAILIAN.block_tokens else _MOONCAKE
    return _MOONCAKE if names & {"hash_ids", "delay"} else _LENGTHS_ONLY


def _check_unit(form: _Form, values: Sequence[object], path: Path) -> None:
    """Raises UsageError with both readings where the form leaves the unit open, or where times read in its unit make a
    load that is hardly one."""
    times = [value for value in values if isinstance(value, int | float)]
    if len(times) < 2 or (times[0] >= _A_DATE_IN_MS and form.unit == "s"):
        return
    span = float(times[-1] - times[0])
    gap = span / (len(times) - 1)
    doubtful = {
        None: True,
        "ms": gap < 1000 / _MOST_A_SECOND or not all(isinstance(time, int) for time in times),
        "s": form is _OWN and gap >= _LONGEST_GAP_S,
    }
    if doubtful[form.unit] and (span > 0 or len(times) == _ROWS_LOOKED_AT):
        both = (
            ("seconds (Bailian)", "milliseconds (Mooncake)") if "length" in form.inputs else ("seconds", "milliseconds")
        )
        raise UsageError(
            f"--trace {path}: its times may be in {both[0]} or in {both[1]}: its {span:g} are {span:g} s or "
            f"{span / 1000:g} s. Say which with --trace-unit s or ms."
        )


_LENGTH = re.compile(r"token|length|(?:^|_)len(?:_|$)|_size$")
_ROWS_LOOKED_AT = 200
_MOST_A_SECOND = 100.0
"""Requests a second: the busiest published traces have some 30, and read in a unit 1,000 times too small 30,000."""
_LONGEST_GAP_S = 60.0
"""Mean gap of a trace of no published form above which its times may as well be milliseconds."""


def _numeric(value: object) -> object:
    """A value, or the number that its text holds."""
    return _number_in(value) if isinstance(value, str) else value


def _time(
    row: Mapping[str, Any], column: str, divisor: float, unit: Unit | None, later: float | None, where: str
) -> float:
    """When a row is due, s; `later` when it has no time but a pause after its session's last answer."""
    value = _numeric(row.get(column))
    if value is None and later is not None:
        return later
    if isinstance(value, datetime | str):
        try:
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value.strip())
        except ValueError:
            raise UsageError(f"{where}: {column} {str(value)[:40]!r} is no date like 2023-11-16 18:15:46.68.") from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    name = "milliseconds" if unit == "ms" else "seconds"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        has = ", ".join(map(visible, row))[:120] or "no columns"
        columns = "" if column in row else f" (it has {has}; name that of its times {column})"
        raise UsageError(f"{where}: {column} must be a number of {name}{columns}.")
    if unit != "ms" and value >= _A_DATE_IN_MS:
        said = "say so with --trace-unit ms" if value < 1000 * _A_DATE_IN_MS else "convert it to milliseconds"
        raise UsageError(f"{where}: {column} {value:.0f} is no date in seconds but in a smaller unit: {said}.")
    return value / divisor


def _tokens(row: Mapping[str, Any], name: str, form: _Form, where: str) -> int | None:
    value = row.get(name)
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or (value < 1 and not form.published):
        raise UsageError(f"{where}: {name} must be a whole number from 1.")
    return max(int(value), 0)


def _session(row: Mapping[str, Any], roots: dict[str, str]) -> str | None:
    """The session of a row: by name, or by the chat that it goes on from (Bailian)."""
    chat, parent = row.get("chat_id"), row.get("parent_chat_id")
    if chat is not None:
        root = roots.get(str(parent), str(chat))
        roots[str(chat)] = root
        return root
    named = row.get("session_id", row.get("session id", row.get("session")))
    return None if named in (None, "") else str(named)


def _number(value: Any, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"{where}: {name} must be a number from 0.")
    return float(value)


def _messages(row: Mapping[str, Any], where: str) -> tuple[tuple[Mapping[str, Any], ...], Mapping[str, Any]]:
    """The messages of an agentic row with what belongs to them, from the row itself or from its request `body`."""
    holder = row["body"] if isinstance(row.get("body"), dict) else row
    messages = holder.get("messages")
    if messages is None and isinstance(holder.get("input"), list):
        messages = holder["input"]
    if messages is None:
        prompt = row.get("prompt", row.get("text_input"))
        return (({"role": "user", "content": prompt},) if isinstance(prompt, str) and prompt else ()), {}
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise UsageError(f"{where}: messages must be a list of objects with a role.")
    return tuple(messages), {name: holder[name] for name in _MESSAGE_FIELDS if holder.get(name) is not None}


def _rows(path: Path) -> Numbered:
    """Rows with their numbers; names in lower case, and numbers of a CSV file as such."""
    for row in rows_of_file(path):
        values = {name.lower(): value for name, value in row.values.items() if isinstance(name, str)}
        for name in values.keys() & _NUMBERS if row.delimiter else ():
            values[name] = _number_in(values[name], decimal_comma=row.delimiter == ";")
        yield row.number, values


def _number_in(cell: str | None, *, decimal_comma: bool = False) -> int | float | str | None:
    """The number that a cell holds, else its text."""
    plain = (cell or "").strip()
    if decimal_comma:
        plain = plain.replace(",", ".")
    try:
        return int(plain) if re.fullmatch(r"-?\d{1,18}", plain) else float(plain)
    except ValueError:
        return plain or None

"""Which sessions a client process sends, read a little ahead so that building them never delays a send."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from qwenbench.workload.sessions import SessionPlan, TurnPlan


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a point's sessions that one process sends: those of its streams.

    Session i belongs to stream i % `streams`, and stream s to process s % `processes`; within a process any
    free stream takes the next session.
    """

    sessions: Sequence[SessionPlan]
    process: int
    processes: int
    streams: int
    indexes: tuple[int, ...] | None = None
    """Point-wide index of each entry of `sessions` when they were cut beforehand; None: all are here."""

    @property
    def own_streams(self) -> int:
        """Streams of this process. Open loop: the connections that it opens beforehand."""
        return len(range(self.process, self.streams, self.processes))

    def __iter__(self) -> Iterator[tuple[int, SessionPlan]]:
        if self.indexes is not None:
            yield from zip(self.indexes, self.sessions, strict=True)
            return
        for index in range(len(self.sessions)):
            if owner(index, self.streams, self.processes) == self.process:
                yield index, self.sessions[index]


def owner(index: int, streams: int, processes: int) -> int:
    """The process that sends session `index`."""
    return index % streams % processes


def shares(sessions: Sequence[SessionPlan], streams: int, processes: int, *, by_start: bool = False) -> list[Share]:
    """One share per process. Lists and tuples are cut, so that each process is sent its part only.

    `by_start` sorts each part by start_s (open loop); a lazy sequence must be in that order already.
    """
    if not isinstance(sessions, (list, tuple)):
        return [Share(sessions, process, processes, streams) for process in range(processes)]
    parts: list[tuple[list[int], list[SessionPlan]]] = [([], []) for _ in range(processes)]
    order = enumerate(sessions)
    for index, session in sorted(order, key=lambda one: one[1].start_s or 0.0) if by_start else order:
        indexes, mine = parts[owner(index, streams, processes)]
        indexes.append(index)
        mine.append(session)
    return [Share(mine, process, processes, streams, tuple(indexes)) for process, (indexes, mine) in enumerate(parts)]


@dataclass(frozen=True, slots=True)
class ReadySession:
    """A session whose first request is encoded already."""

    index: int
    plan: SessionPlan
    first_body: bytes


class SessionSource:
    """Hands out the sessions of a share in order; `refill` reads ahead when there is nothing else to do."""

    def __init__(self, share: Share, ahead: int) -> None:
        self._rest = iter(share)
        self._ahead = ahead
        self._buffer: deque[ReadySession] = deque()
        self._exhausted = False
        while self.refill():
            pass

    def refill(self) -> bool:
        """Read one session ahead; False when there is enough, or no more."""
        if self._exhausted or len(self._buffer) >= self._ahead:
            return False
        for index, plan in self._rest:
            if plan.turns:
                self._buffer.append(ReadySession(index, plan, encode(plan.turns[0], ())))
                return True
        self._exhausted = True
        return False

    def take(self) -> ReadySession | None:
        """The next session, None when all were taken."""
        if not self._buffer:
            self.refill()
        return self._buffer.popleft() if self._buffer else None

    def peek(self) -> ReadySession | None:
        """The session that `take` would return."""
        if not self._buffer:
            self.refill()
        return self._buffer[0] if self._buffer else None


def encode(turn: TurnPlan, answers: Sequence[str]) -> bytes:
    """A turn's request body. `answers` replace the contents of its assistant messages, in order."""
    payload: dict[str, Any] = dict(turn.payload)
    if answers:
        fresh = iter(answers)
        payload["messages"] = [_with_answer(message, fresh.__next__) for message in payload["messages"]]
    return orjson.dumps(payload, option=orjson.OPT_NON_STR_KEYS)


def _with_answer(message: Mapping[str, Any], take: Callable[[], str]) -> Mapping[str, Any]:
    if message.get("role") != "assistant":
        return message
    try:
        return {**message, "content": take()}
    except StopIteration:
        return message

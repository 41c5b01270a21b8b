"""One load point in one client process: streams that take sessions and send their turns.

Callbacks and no coroutines: when an answer ends, the next request leaves in the same callback, before anything
is decoded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import median

from qwenbench.load.client_process import Prepare, SentEntry, SentLog
from qwenbench.load.clock import NS_PER_MS, NS_PER_S, TimedCalls, now_ns
from qwenbench.load.exchange import Channel, RawExchange, Transport
from qwenbench.load.records import Digest, Sending, digest, lost_row
from qwenbench.load.source import ReadySession, SessionSource, encode
from qwenbench.load.spec import Enough, LoadProgress, RequestTimes

_LOOK_EVERY_S = 0.05
_LOOKS_TO_WEIGH = 10
_OVERDUE_NS = 5 * NS_PER_S
_IDLE_LOOKS = 100
"""Looks in a row (5 s) that find nothing under way and nothing due: the point would never end."""
MAX_BYTES_HELD = 160 * 1024 * 1024
"""Bytes of all answers under way in one process."""
_FIRST_PAUSE_NS = 50 * NS_PER_MS
_LONGEST_PAUSE_NS = NS_PER_S
_LONGEST_RETRY_AFTER_S = 10
_SPARE_CHANNELS = 2
_DECODE_AFTER_S = 0.003


@dataclass(eq=False, slots=True)
class _Stream:
    number: int
    channel: Channel
    session: ReadySession | None = None
    at: int = 0
    """Index in the session of the turn that is under way or comes next."""
    answers: list[str] = field(default_factory=list)
    exchange: RawExchange | None = None
    busy: bool = False
    deadline_ns: int = 0
    failures: int = 0
    over: bool = False
    """It was waiting when the point wound down, and sends nothing more."""


class PointRunner:
    """Sends a share of a point's sessions. Use: make it, `run` it, then read `digests`."""

    def __init__(
        self,
        task: Prepare,
        source: SessionSource,
        transport: Transport,
        channels: list[Channel],
        calls: TimedCalls,
        sent_log: SentLog,
    ) -> None:
        self.digests: list[Digest] = []
        self._ttft_sum_ms = 0.0
        self._ttft_count = 0
        self._process = task.share.process
        self._source = source
        self._transport = transport
        self._spec = spec = task.spec
        self._open_loop = spec.open_loop
        self._tell_times = task.tell_times
        self._secrets = spec.target.secrets
        self._calls = calls
        self._sent_log = sent_log
        self._loop = asyncio.get_running_loop()
        self._numbers = count(self._process, task.share.processes)
        self._streams = [_Stream(next(self._numbers), channel) for channel in channels]
        self._idle = list(reversed(self._streams)) if self._open_loop else []
        self._opening: set[asyncio.Task[None]] = set()
        self._active = 0
        """Streams with a session (open loop), or that have not run out of sessions (closed loop)."""
        self._arrivals_left = self._open_loop
        self.stopped = False
        self._winding_down = False
        self._e2e_ms: list[float] = []
        """Of the requests that were answered; kept only while LoadSpec.enough is waited for."""
        self._news: list[RequestTimes] = []
        self._enough = False
        self._on_enough: Callable[[], None] = lambda: None
        self._start_ns = 0
        self._undecoded: deque[tuple[Sending, RawExchange]] = deque()
        self._decoding = False
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._looks = self._idle_looks = 0
        self._sent = self._failed = self._tokens = self._under_way = 0
        self.waiting_since_ns = 0
        """As in LoadProgress."""

    async def run(self, start_ns: int, on_enough: Callable[[], None]) -> None:
        """Let the streams go at `start_ns` (CLOCK_REALTIME) and return when every answer is decoded.

        `on_enough` is called once, when the rule `enough` is met; the load goes on until `wind_down`.
        """
        self._start_ns = start_ns
        self._on_enough = on_enough
        self._calls.at(start_ns, self._begin)
        self._watch = self._loop.call_later(_LOOK_EVERY_S, self._look)
        try:
            await self._finished
        finally:
            self._watch.cancel()
            for task in self._opening:
                task.cancel()

    def stop(self, reason: str) -> None:
        """End what is under way as `cancelled`, and send nothing more."""
        if self.stopped:
            return
        self.stopped = True
        self._calls.clear()
        self._active = 0
        self._arrivals_left = False
        for stream in self._streams:
            if stream.busy:
                stream.channel.abort("cancelled", reason)
        self._maybe_finish()

    def wind_down(self) -> None:
        """Send nothing new; what is in flight is finished."""
        self._winding_down = True
        self._calls.clear()
        self._arrivals_left = False
        for stream in self._streams:
            if stream.session is not None and not stream.busy:  # thinks, or pauses after a failure
                stream.session, stream.over = None, True
                self._active -= 1
        self._maybe_finish()

    def progress(self) -> LoadProgress:
        """Counts so far; tokens in flight are estimated from the reads."""
        busy = [stream.exchange for stream in self._streams if stream.busy]
        in_flight = sum(len(exchange.stamps) for exchange in busy if exchange is not None)
        done = self._sent - len(busy)
        tokens = self._tokens + in_flight
        read_ns = max((one.stamps[-1] for one in busy if one is not None and len(one.stamps) > 1), default=0)
        news, self._news = tuple(self._news), []
        return LoadProgress(
            self._sent,
            done,
            self._failed,
            len(busy),
            tokens,
            self._ttft_sum_ms,
            self._ttft_count,
            news,
            self._enough,
            self.waiting_since_ns,
            read_ns,
        )

    # sending

    def _begin(self) -> None:
        if self._open_loop:
            self._await_arrival()
            self._maybe_finish()
            return
        self._active = len(self._streams)
        for stream in self._streams:
            self._next_session(stream, self._start_ns)

    def _await_arrival(self) -> None:
        coming = self._source.peek()
        if coming is None or self._too_late(self._due(coming)):
            self._arrivals_left = False
            return
        self._calls.at(self._due(coming), self._arrive)

    def _due(self, session: ReadySession) -> int:
        return self._start_ns + round((session.plan.start_s or 0.0) * NS_PER_S)

    def _too_late(self, at_ns: int) -> bool:
        limit = self._spec.duration_s
        return limit is not None and at_ns >= self._start_ns + limit * NS_PER_S

    def _arrive(self) -> None:
        session = self._source.take()
        if session is None or self.stopped:
            return
        stream = self._idle.pop() if self._idle else self._another_stream()
        self._active += 1
        stream.session, stream.at, stream.answers = session, 0, []
        self._send(stream, self._due(session))
        if len(self._idle) < _SPARE_CHANNELS and not self._opening:
            task = self._loop.create_task(self._open_spare())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        self._await_arrival()

    def _another_stream(self) -> _Stream:
        stream = _Stream(next(self._numbers), self._transport.channel())
        self._streams.append(stream)
        return stream

    async def _open_spare(self) -> None:
        """Open connections before they are needed, so that a request does not wait for one."""
        for channel in await self._transport.connect(2 * _SPARE_CHANNELS, self._spec.timeout_s):
            stream = _Stream(next(self._numbers), channel)
            self._streams.append(stream)
            self._idle.insert(0, stream)

    def _next_session(self, stream: _Stream, free_ns: int) -> None:
        if self.stopped or stream.over:
            return
        stream.session = None
        if self._open_loop:
            self._active -= 1
            self._idle.append(stream)
            self._maybe_finish()
            return
        session = None if self._winding_down or self._too_late(free_ns) else self._source.take()
        if session is None:
            self._active -= 1
            self._maybe_finish()
            return
        stream.session, stream.at, stream.answers = session, 0, []
        self._send(stream, free_ns)

    def _send(self, stream: _Stream, due_ns: int) -> None:
        """Send the stream's turn, which was due (open loop) or possible (closed loop) at `due_ns`."""
        session = stream.session
        if session is None or self.stopped:
            return
        turn = session.plan.turns[stream.at]
        body = session.first_body if stream.at == 0 else encode(turn, stream.answers)
        scheduled = due_ns if self._open_loop else None
        sending = Sending(session.plan, turn, self._process, stream.number, scheduled, due_ns)
        now = now_ns()
        self._sent_log.add(SentEntry(now, due_ns, session.index, stream.number, stream.at))
        self._sent += 1
        self.waiting_since_ns = self.waiting_since_ns or now
        stream.deadline_ns = (now if scheduled is None else scheduled) + round(self._spec.timeout_s * 1e9)
        stream.busy = True
        self._under_way += 1
        stream.exchange = stream.channel.start(body, partial(self._ended, stream, sending))

    # receiving

    def _ended(self, stream: _Stream, sending: Sending, exchange: RawExchange) -> None:
        stream.busy = False
        stream.exchange = None
        self._under_way -= 1
        bad = exchange.error is not None or exchange.status != 200
        if exchange.error is None:
            self.waiting_since_ns = now_ns() if self._under_way else 0
        if self.stopped:
            self._keep(sending, exchange)
            return
        stream.failures = stream.failures + 1 if bad else 0
        pause_ns = self._pause_ns(stream.failures, exchange) if bad else 0
        free_ns = exchange.ended_ns + pause_ns
        turns = sending.session.turns
        last = self._winding_down or stream.at + 1 >= len(turns)
        if sending.session.feed_back and not last:
            answer = self._decode(sending, exchange)
            last = answer is None  # without an answer the talk cannot go on
            stream.answers.append(answer or "")
        else:
            self._keep(sending, exchange)
        if not last:
            stream.at += 1
            due_ns = free_ns + round(turns[stream.at].think_s * NS_PER_S)
            due_s = turns[stream.at].due_s
            if due_s is not None:
                due_ns = max(due_ns, self._start_ns + round(due_s * NS_PER_S))
            self._when(due_ns, partial(self._send, stream, due_ns))
        else:
            self._when(free_ns, partial(self._next_session, stream, free_ns))

    def _when(self, due_ns: int, call: Callable[[], None]) -> None:
        if due_ns <= now_ns():
            call()
        else:
            self._calls.at(due_ns, call)

    def _pause_ns(self, failures: int, exchange: RawExchange) -> int:
        """Pause of a stream after a failure, so that a server in trouble is not hammered."""
        longest = min(_FIRST_PAUSE_NS << min(failures - 1, 10), _LONGEST_PAUSE_NS)
        asked = exchange.headers.get("retry-after", "")
        # a value of very many digits is no number of seconds, and int() refuses it
        seconds = int(asked) if len(asked) <= 9 and asked.isascii() and asked.isdigit() else 0
        return max(longest, min(seconds, _LONGEST_RETRY_AFTER_S) * NS_PER_S)

    def _look(self) -> None:
        """Now and then: end what is late or too long, and make sure that the point cannot stand still for ever."""
        self._watch = self._loop.call_later(_LOOK_EVERY_S, self._look)
        now = now_ns()
        # large reads are counted as they come: for small ones now and then is enough, and costs less
        self._looks += 1
        weigh = self._looks % _LOOKS_TO_WEIGH == 0
        busy = False
        held: list[tuple[int, _Stream]] = []
        for at, stream in enumerate(list(self._streams)):
            if not stream.busy:
                continue
            busy = True
            if at % _LOOKS_TO_WEIGH == self._looks % _LOOKS_TO_WEIGH:  # a part of them at a time: nobody waits long
                stream.channel.check()
            exchange = stream.exchange
            if now > stream.deadline_ns:
                stream.channel.abort("timeout", f"no end of the answer after {self._spec.timeout_s:g} s")
                if stream.busy and now > stream.deadline_ns + _OVERDUE_NS:
                    self.fail(RuntimeError("a request could not be ended after its time-out"))
            elif weigh and exchange is not None:
                held.append((exchange.size(), stream))
        if held:
            self._bound(held)
        idle = not busy and not self._undecoded and not self._calls.pending and not self._opening
        self._idle_looks = self._idle_looks + 1 if idle and not self._finished.done() else 0
        if self._idle_looks >= _IDLE_LOOKS:
            self.fail(RuntimeError("the load stands still: nothing is under way and nothing is due"))

    def _bound(self, held: list[tuple[int, _Stream]]) -> None:
        """End answers that are too long, one by one or together."""
        total = sum(size for size, _ in held)
        for size, stream in sorted(held, key=lambda one: -one[0]):
            exchange = stream.exchange
            if exchange is None:
                continue
            problem = exchange.too_long
            if problem is None and total > MAX_BYTES_HELD:
                problem = f"the answers under way hold more than {MAX_BYTES_HELD >> 20} MiB together"
            if problem is None:
                return
            total -= size
            exchange.give_up("malformed", problem)
            stream.channel.abort("malformed", problem)

    def fail(self, problem: BaseException) -> None:
        """End the point because of a defect: `run` raises the problem instead of waiting for ever."""
        if not self._finished.done():
            self._finished.set_exception(problem)

    # decoding, one answer per turn of the event loop

    def _keep(self, sending: Sending, exchange: RawExchange) -> None:
        self._undecoded.append((sending, exchange))
        if not self._decoding:
            self._decoding = True
            # an engine ends many streams in one step: their next requests are to leave first
            self._loop.call_later(_DECODE_AFTER_S, self._decode_next)

    def _decode_next(self) -> None:
        if self._undecoded:
            self._decode(*self._undecoded.popleft())
        self._source.refill()
        if self._undecoded:
            self._loop.call_soon(self._decode_next)
        else:
            self._decoding = False
            self._maybe_finish()

    def _decode(self, sending: Sending, exchange: RawExchange) -> str | None:
        """Decode one exchange into `digests`; returns its answer, None for a failed request."""
        try:
            one = digest(sending, exchange, self._secrets)
        except Exception as problem:  # a defect of ours must not lose the record
            detail = f"decoding failed: {type(problem).__name__}"
            one = Digest(lost_row(sending, exchange.sent_ns, detail), "", "")
        failed = one.row["error"] is not None
        self._failed += failed
        self._tokens += one.row["output_tokens"] or one.row["chunks"] or 0
        if one.row["ttft_ms"] is not None:
            self._ttft_sum_ms += one.row["ttft_ms"]
            self._ttft_count += 1
        if self._spec.enough is not None and not self._enough and not failed:
            self._count_towards(self._spec.enough, one.row["e2e_ms"], exchange.ended_ns)
        # what all streams begin at one time is no part of the steady load that is judged
        if self._tell_times and (self._open_loop or sending.ready_ns > self._start_ns):
            self._news.append(one.times)
        kept = one if self._spec.keeps_texts or sending.session.feed_back else Digest(one.row, "", "")
        self.digests.append(kept)
        return None if failed else one.answer

    def _count_towards(self, enough: Enough, e2e_ms: float, ended_ns: int) -> None:
        self._e2e_ms.append(e2e_ms)
        if len(self._e2e_ms) < enough.completions:
            return
        elapsed_ms = (ended_ns - self._start_ns) / NS_PER_MS
        if elapsed_ms >= enough.median_requests * median(self._e2e_ms):
            self._enough = True
            self._on_enough()

    def _maybe_finish(self) -> None:
        more = self._active > 0 or self._arrivals_left or self._decoding or self._undecoded
        if not more and not self._finished.done():
            self._finished.set_result(None)

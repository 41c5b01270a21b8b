"""A closed loop against the scheduler in pure virtual time: what calibration and tests compare with."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from qwenbench.simulator.scheduler import Pipeline, Scheduler, SimRequest


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that a stream will send. `think_s`: seconds between the end of its last one and this."""

    prompt_tokens: int
    output_tokens: int
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a request; seconds from the beginning of the load."""

    start: float
    planned: Planned
    token_times: list[float] = field(default_factory=list)


def closed_loop(
    scheduler: Scheduler,
    streams: int,
    next_request: Callable[[int], Planned | None],
    *,
    stagger_s: float = 0.0003,
) -> list[Replayed]:
    """Runs `streams` clients, each sending its next request when its last one ended; ordered by start.

    `next_request(stream)` gives what that stream sends next, None when it is done. The streams begin
    `stagger_s` apart, as a single-threaded client writes its first requests one after the other.
    """
    frontend_s = scheduler.model.frontend_ms / 1000.0
    arrivals: list[tuple[float, int, SimRequest]] = []
    owners: dict[str, tuple[int, Replayed]] = {}

    def send(stream: int, now: float) -> None:
        planned = next_request(stream)
        if planned is None:
            return
        start = now + planned.think_s
        number = len(owners)
        request = SimRequest(str(number), planned.prompt_tokens, planned.output_tokens, start + frontend_s)
        owners[request.request_id] = (stream, Replayed(start, planned))
        heapq.heappush(arrivals, (request.arrival, number, request))

    for stream in range(streams):
        send(stream, stream * stagger_s)
    pipeline = Pipeline(scheduler)
    now = 0.0
    while True:
        while arrivals and arrivals[0][0] <= now:
            scheduler.add(heapq.heappop(arrivals)[2])
        turn = pipeline.turn(now)
        if turn is None:
            if not arrivals:
                break
            now = arrivals[0][0]
            continue
        now = turn.at
        for request in scheduler.complete(turn.deliver) if turn.deliver is not None else ():
            stream, replayed = owners[request.request_id]
            replayed.token_times.append(now)
            if request.ended:
                send(stream, now)
    return sorted((replayed for _, replayed in owners.values()), key=lambda replayed: replayed.start)

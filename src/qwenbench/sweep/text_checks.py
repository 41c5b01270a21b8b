"""Whether a server's answers make sense, asked before its load points: canary questions and a natural-stop pass."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any

from qwenbench.errors import RunError
from qwenbench.load.clients import Client
from qwenbench.load.spec import ClosedLoop, LoadSpec
from qwenbench.runfolder.cells import LoadPoint
from qwenbench.runfolder.damage import object_or_none
from qwenbench.runfolder.files import write_json
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.context import SweepContext
from qwenbench.sweep.ready_server import ReadyServer, TextChecks
from qwenbench.sweep.requests import seed_of
from qwenbench.workload.canary import CanaryResult, agreement, ask_canary
from qwenbench.workload.planning import REQUESTS, natural_pass

_IF_RANDOM = (
    ". If the weights are random, so is this, and the times count all the same: --no-natural-stop-check leaves the "
    "check out (and --server-log FILE lets bench see --load-format dummy by itself)"
)
MORE_REQUESTS = 12
"""Answers that are looked at besides, when one of the first few was broken: 16 in all, of which one may be."""


async def check_texts(sweep: SweepContext, server: ReadyServer, client: Client) -> TextChecks:
    """Asks the canary (--canary), and under --ignore-eos a few requests per scenario that may end by themselves.

    A server with dummy weights and the simulator are not judged: their text means nothing.
    """
    options = sweep.plan.options
    if not server.loads.traits.judge_text:
        sweep.note(
            "the weights are random (--load-format dummy): no answer is judged and no thought ends, so a profile that "
            "thinks has no TTFO; times, memory and scheduling count"
        )
        return TextChecks()
    if sweep.site.simulated:
        if options.canary:
            sweep.note("--canary is left out: a simulated server's answers mean nothing")
        return TextChecks()
    canary = await _canary(sweep, server) if options.canary else None
    if not (options.natural_stop_check and options.ignore_eos):
        return TextChecks(canary)
    deadline = time.monotonic() + options.natural_stop_limit_s
    shares: dict[tuple[str, str], float] = {}
    told: dict[tuple[str, str], str] = {}
    for point in sweep.plan.points:
        key = (point.scenario, point.profile)
        if key in shares or sweep.stop.is_set() or server.questions.limit.over:
            continue
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            sweep.note(
                f"the natural-stop check took its {options.natural_stop_limit_s:g} s before every scenario was looked "
                "at (--natural-stop-limit gives it more, --no-natural-stop-check leaves it out)"
            )
            break
        judged = await _natural_answers(sweep, server, client, point, deadline, REQUESTS)
        if any(judged):
            # one odd answer of four says little, since a small model rambles now and then: ask for more
            judged += await _natural_answers(sweep, server, client, point, deadline, MORE_REQUESTS)
        if judged:
            shares[key] = sum(bool(row) for row in judged) / len(judged)
        kinds = Counter(kind for row in judged for kind in row)
        if kinds:
            told[key] = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            sweep.note(
                f"{key[0]}: broken output where answers may end by themselves: {told[key]}"
                + (_IF_RANDOM if shares[key] == 1 else ""),
                server.configuration.config_id,
            )
    return TextChecks(canary, shares, told)


async def _natural_answers(
    sweep: SweepContext, server: ReadyServer, client: Client, point: LoadPoint, deadline: float, requests: int
) -> list[list[str]]:
    """The kinds of broken output of each answer that was judged; requests of another number are other requests."""
    loaded = sweep.plan.scenarios[point.scenario]
    salt = f"{sweep.nonce}n{requests}"
    sessions = natural_pass(
        loaded.file.scenario,
        loaded.prompts,
        server.loads.request_options(point, salt, measured=False),
        seed_of(sweep.plan, point) + requests,
        requests,
    )
    left_s = deadline - time.monotonic()
    if not len(sessions) or left_s <= 0:
        return []
    spec = LoadSpec(
        server.target,
        ClosedLoop(len(sessions)),
        sessions,
        timeout_s=min(left_s, sweep.plan.options.timeout_s),
        judge_text=True,
    )
    result = await client.run(spec, stop=sweep.stop, limit=server.questions.limit)
    return [row for row in result.requests["broken"].to_pylist() if row is not None]


def canaries_beside_the_first(paths: RunPaths, config_ids: Iterable[str]) -> Iterator[str]:
    """Holds the canaries of launches that were made apart against the first configuration's, in canary.json too; what
    there is to tell, a line each."""
    first: CanaryResult | None = None
    for config_id in config_ids:
        path = paths.server(config_id) / "canary.json"
        record: dict[str, Any] | None = object_or_none(path, "its canary is missing")
        if record is None:
            continue
        result = CanaryResult(**{key.name: record[key.name] for key in fields(CanaryResult)})
        if first is None:
            first = result
            continue
        same = agreement(first, result)
        write_json(path, {**record, "agreement_with_first": same})
        yield f"{config_id}: canary answers {same:.0%} as the first configuration"


async def _canary(sweep: SweepContext, server: ReadyServer) -> CanaryResult | None:
    config_id = server.configuration.config_id
    try:
        common = server.loads.request_options(sweep.plan.points[0], f"{sweep.nonce}q", measured=False)
        result = await ask_canary(server.questions, common)
    except RunError as error:
        sweep.note(f"{config_id}: {error}")
        return None
    first = sweep.first_canary
    sweep.first_canary = first or result
    record = asdict(result) | {"agreement_with_first": None if first is None else agreement(first, result)}
    write_json(sweep.paths.server(config_id) / "canary.json", record)
    told = f"{config_id}: canary {result.accuracy:.0%} right ({result.low:.0%} to {result.high:.0%})"
    if result.unanswered:
        told += f", {result.unanswered} of {len(result.correct)} not answered"
    if first is not None:
        told += f", {agreement(first, result):.0%} as the first configuration"
    sweep.note(told)
    return result

"""`qwenbench recommend RUN`: which line to deploy, how sure that is, and what would change it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.errors import RunError, UsageError

if TYPE_CHECKING:
    from qwenbench.analysis.recommend import Answer

_OBJECTIVES = ("tokens", "latency", "context", "energy")
_SHELLS = ("bash", "powershell", "compose")
_SHOWN = (
    "output_tokens_per_s", "output_tokens_per_s_per_user", "ttft_p50", "ttft_p99", "tpot_p50", "itl_p99", "e2e_p50",
    "goodput_rps", "energy_j_per_output_token", "requests_that_fit", "kv_cache_tokens", "kv_cache_gib",
    "vram_peak_mib", "startup_s",
)  # fmt: skip
"""Metrics of the terminal's table; --json has all."""


def command(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    users: Annotated[
        int | None,
        typer.Option(help="Concurrent users; without it each configuration counts at its best concurrency.", min=1),
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(help="Limits, e.g. ttft_p99=1000ms,tpot_p50=25ms; ttft=1000ms means 99 of 100 requests."),
    ] = None,
    context: Annotated[int | None, typer.Option(help="Tokens that one request must be able to hold.", min=1)] = None,
    scenario: Annotated[
        str | None, typer.Option(help="Scenarios and their weights, e.g. math=2,code=1; all alike when left out.")
    ] = None,
    objective: Annotated[str, typer.Option(help="What to make best: tokens, latency, context or energy.")] = "tokens",
    shell: Annotated[str, typer.Option(help="The line to print: bash, powershell or compose.")] = "bash",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Which configuration of a run to deploy for so many users and these limits, as a docker line."""
    from qwenbench.analysis.candidates import Question
    from qwenbench.analysis.limits import parse_point_limits, parse_weights
    from qwenbench.analysis.recommend import recommend
    from qwenbench.runfolder.run import load_run

    for value, known, option in ((objective, _OBJECTIVES, "--objective"), (shell, _SHELLS, "--shell")):
        if value not in known:
            raise UsageError(f"{option} {value!r}: one of {', '.join(known)}.")
    question = Question(
        users=users,
        limits=parse_point_limits(slo) if slo is not None else (),
        context=context,
        weights=parse_weights(scenario) if scenario is not None else None,
        objective=objective,
    )
    answer = recommend(load_run(run), question)
    if as_json:
        import orjson

        print(orjson.dumps(answer.to_json(), option=orjson.OPT_INDENT_2).decode())
    elif answer.config_id is not None:
        print("\n".join(_shown(answer, shell)))
    if answer.config_id is None:
        for name, reason in answer.excluded.items():
            print(f"{name}: {reason}", file=sys.stderr)
        nearest = f" Nearest miss: {answer.nearest_miss}." if answer.nearest_miss else ""
        raise RunError(f"no configuration qualifies.{nearest}")
    return 0


def _shown(answer: Answer, shell: str) -> Iterator[str]:
    if answer.simulated:
        yield "SIMULATED: made by qwenbench's simulator, not measured on a GPU.\n"
    sure = "decided" if answer.decided else "UNDECIDED"
    yield f"{answer.config_id} for {answer.users} users, by {answer.question.objective} ({sure})\n"
    lines = {"bash": answer.lines.bash, "powershell": answer.lines.powershell, "compose": answer.lines.compose}
    yield lines[shell] or "(the run does not tell how this server was launched)"
    yield "\nExpected (95 % interval):"
    yield from _expected(answer)
    for title, entries in (("Risks", answer.risks), ("Notes", answer.notes)):
        if entries:
            yield f"\n{title}:"
            yield from (f"  - {entry}" for entry in entries)
    if answer.headroom:
        yield f"\nRoom left: {', '.join(_room(key, value) for key, value in answer.headroom.items())}"
    if answer.runner_up is not None:
        yield f"\nRunner-up: {answer.runner_up.config_id}. To win, {answer.runner_up.to_win}."
    if answer.would_decide:
        yield "\nThese points would decide (repeats in all):"
        for point in answer.would_decide:
            where = f"{point['config_id']}, {point['scenario']} ({point['profile']}), {point['concurrency']} streams"
            yield f"  - {where}: {point['repeats']}"
    if answer.excluded:
        yield "\nOut:"
        yield from (f"  - {name}: {reason}" for name, reason in answer.excluded.items())


def _expected(answer: Answer) -> Iterator[str]:
    from qwenbench.analysis.columns import POINT_COLUMNS
    from qwenbench.analysis.limits import show

    units = {column.key: column.unit for column in POINT_COLUMNS}
    for key in _SHOWN:
        estimate = answer.expected.get(key)
        if estimate is None or estimate.value is None:
            continue
        interval = ""
        if estimate.low is not None and estimate.high is not None:
            interval = f"  ({show(estimate.low)} to {show(estimate.high)})"
        yield f"  {key:<30}{show(estimate.value, units[key])}{interval}"


def _room(key: str, value: float) -> str:
    return f"{value:+.0f} requests in the KV cache" if key == "requests_that_fit" else f"{key} {value:.0%}"

"""`qwenbench recommend RUN`: which line to deploy, how sure that is, and what would change it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qwenbench.cli.runs import RunArgument, chosen_run
from qwenbench.errors import RunError, UsageError

_OBJECTIVES = ("tokens", "latency", "context", "energy")
_SHELLS = ("bash", "powershell", "compose")


def command(
    run: RunArgument = None,
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
    from qwenbench.analysis.run import load_run

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
    answer = recommend(load_run(chosen_run(run, "recommend")), question)
    if as_json:
        import orjson

        print(orjson.dumps(answer.to_json(), option=orjson.OPT_INDENT_2).decode())
    elif answer.config_id is not None:
        from qwenbench.report.answer import printed_answer
        from qwenbench.report.text_writers import print_document

        print_document(printed_answer(answer, shell))
    if answer.config_id is None:
        for name, reason in answer.excluded.items():
            print(f"{name}: {reason}", file=sys.stderr)
        nearest = f" Nearest miss: {answer.nearest_miss}." if answer.nearest_miss else ""
        raise RunError(f"no configuration qualifies.{nearest}")
    return 0

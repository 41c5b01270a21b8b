"""`qwenbench report RUN`: (re)builds a run's HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwenbench.cli.runs import RunArgument, chosen_run
from qwenbench.errors import UsageError


def command(
    run: RunArgument = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; RUN/report.html when left out.")] = None,
    users: Annotated[int | None, typer.Option(min=1, help="Concurrent users that the page's answer is for.")] = None,
    slo: Annotated[str | None, typer.Option(help="Limits of the answer, e.g. ttft_p99=1000ms,tpot_p50=25ms.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: path and bytes.")] = False,
) -> None:
    """(Re)build the HTML report of a run: one file that opens without a network."""
    from qwenbench.analysis.run import load_run
    from qwenbench.report.answer import question_of
    from qwenbench.report.page import build_report
    from qwenbench.runfolder.files import write_bytes
    from qwenbench.runfolder.names import RunPaths

    folder = chosen_run(run, "report")
    loaded = load_run(folder)
    target = out or RunPaths(folder).report
    page = build_report(loaded, question_of(loaded, users, slo)).encode()
    try:
        write_bytes(target, page)
    except OSError as error:
        raise UsageError(
            f"{target}: cannot be written: {error.strerror or error}. Give another file with --out."
        ) from error
    if json:
        import orjson

        print(orjson.dumps({"path": str(target), "bytes": len(page), "simulated": loaded.simulated}).decode())
    else:
        print(target)

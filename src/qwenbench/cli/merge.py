"""`qwenbench merge RUN RUN ... --out RUN`: runs of one plan that were measured on several hosts, as one run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from qwenbench.cli.runs import NoReportOption
from qwenbench.errors import UsageError


def command(
    runs: Annotated[list[str], typer.Argument(help="Runs of one plan, by folder or name.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="The joined run's folder, which is made", metavar="RUN", show_default=False)
    ],
    no_report: NoReportOption = False,
) -> int:
    """Join runs that were measured apart under one plan into one run; they stay as they are.

    Refused for runs that are not of one plan, that have measured the same cell twice, or on unlike cards.
    """
    from qwenbench.analysis.run import load_run
    from qwenbench.runfolder.files import write_bytes
    from qwenbench.runfolder.names import find_run
    from qwenbench.sweep.merging import merge

    if len(runs) < 2:
        raise UsageError("give two runs or more.")
    merged = merge([find_run(run) for run in runs], out)
    for note in merged.notes:
        print(note)
    print(f"{merged.cells} cells of {len(runs)} runs")
    if merged.missing:
        again = "bench --url URL" if merged.attached else "sweep"
        print(f"{merged.missing} cells of the joined plan are missing. To measure them: "
              f"qwenbench {again} --resume {shlex.quote(str(out))}")  # fmt: skip
    if not no_report and merged.cells:
        from qwenbench.report.page import build_report

        write_bytes(out / "report.html", build_report(load_run(out)).encode())
        print(f"report: {out / 'report.html'}")
    print(f"run:    {out}")
    return 0

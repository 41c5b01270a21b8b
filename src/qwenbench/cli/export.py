"""`qwenbench export RUN`: points, ledgers, figures or a Markdown summary as files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from qwenbench.cli.runs import RunArgument, chosen_run
from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.report.export import Format


def command(
    run: RunArgument = None,
    format: Annotated[
        str, typer.Option(help="csv, parquet, json (points and ledgers); png, svg (figures); markdown.")
    ] = "markdown",
    out: Annotated[
        Path | None, typer.Option(help="The folder to write into, made when it is not there; RUN/export when left out.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object: the files.")] = False,
) -> None:
    """A run's points, ledgers, figures or a Markdown summary as files."""
    from qwenbench.analysis.run import load_run
    from qwenbench.report.export import FORMATS, export_run

    if format not in FORMATS:
        raise UsageError(f"--format {format!r}: choose one of {', '.join(FORMATS)}.")
    folder = chosen_run(run, "export")
    files, missing = export_run(load_run(folder), cast("Format", format), out or folder / "export")
    if missing is not None:
        print(f"qwenbench export: {missing}", file=sys.stderr)
    if json:
        import orjson

        print(orjson.dumps({"files": [str(file) for file in files]}).decode())
        return
    for file in files:
        print(file)

"""The run that a command is about: named, or the newest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

RUN = "Run folder"
"""Panel of the options below in --help."""
OutOption = Annotated[str, typer.Option(help="Folder for runs", rich_help_panel=RUN, metavar="DIR")]
RunIdOption = Annotated[
    str | None, typer.Option(help="Name of the run (default: the time)", rich_help_panel=RUN, show_default=False)
]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Do not build report.html", rich_help_panel=RUN)]
RunArgument = Annotated[
    str | None,
    typer.Argument(help="The run's folder or its name; the newest in results/ when left out.", show_default=False),
]


def chosen_run(given: str | None, command: str) -> Path:
    """The run's folder; says on stderr which one is taken where none was given. Raises UsageError without one."""
    from qwenbench.runfolder.lookup import find_run

    folder = find_run(given)
    if given is None:
        print(f"qwenbench {command}: {folder}, the newest run", file=sys.stderr)
    return folder

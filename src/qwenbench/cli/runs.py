"""The run that a command is about: named, or the newest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

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

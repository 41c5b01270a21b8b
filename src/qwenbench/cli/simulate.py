"""`qwenbench simulate`: the stand-in server alone."""

from __future__ import annotations

from typing import Annotated

import typer

CONTEXT_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def command(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="MODEL, then vLLM's serve flags and --sim-* flags.")
    ] = None,
) -> None:
    """Serves a SIMULATED vLLM: the same flags, the same HTTP, no GPU."""
    from qwenbench.simulator.__main__ import main

    status = main(list(arguments or []))
    if status:
        raise typer.Exit(status)

"""`qwenbench compare RUN RUN`: what got better or worse, and a gate for CI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.errors import RunError, UsageError

UNDECIDED = 3
"""Exit status of a gate that could not be judged: neither passed (0) nor broken (1)."""

if TYPE_CHECKING:
    from qwenbench.analysis.compare import Comparison


def command(
    runs: Annotated[
        list[str], typer.Argument(help="Runs, by folder or name; the first is what the others are held against.")
    ],
    gate: Annotated[
        str | None,
        typer.Option(
            help="Exit 1 where a change is sure and past its limit, 3 where nothing can be judged: ttft_p99:+10%"
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare what should not be: simulated with measured, other scenarios.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every row, not only those with a verdict.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Markdown for a pull request.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Also write a self-contained page with overlaid curves.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Compare runs: first what differs in the conditions, then each metric's change with a verdict."""
    from qwenbench.analysis.compare import compare, parse_gate
    from qwenbench.analysis.run import load_run
    from qwenbench.runfolder.lookup import find_run

    if len(runs) < 2:
        raise UsageError("give two runs or more: the first is what the others are held against.")
    if as_json and markdown:
        raise UsageError("--json and --markdown: give one of them.")
    rules = parse_gate(gate) if gate is not None else ()
    comparison = compare([load_run(find_run(run)) for run in runs], rules, force=force)
    if html is not None:
        _write_page(comparison, html)
    _print(comparison, as_json=as_json, markdown=markdown, everything=everything)
    gated = comparison.gate
    if gated is not None and gated.outcome == "broken":
        count = len(gated.broken)
        raise RunError(f"the gate is broken in {count} place{'' if count == 1 else 's'}.")
    if gated is not None and gated.outcome == "undecided":
        metrics = ", ".join(gated.unjudged)
        print(
            f"the gate is undecided: no change of {metrics} has an interval (a side has one repeat). "
            "Measure again with --repeats 3, or extend the runs: qwenbench sweep --resume RUN --repeats 3.",
            file=sys.stderr,
        )
        return UNDECIDED
    return 0


def _print(comparison: Comparison, *, as_json: bool, markdown: bool, everything: bool) -> None:
    if as_json:
        import orjson

        print(orjson.dumps(comparison.to_json(), option=orjson.OPT_INDENT_2).decode())
        return
    from qwenbench.report.comparison import comparison_blocks
    from qwenbench.report.text_writers import print_document, to_markdown

    blocks = comparison_blocks(comparison, everything)
    if markdown:
        print(to_markdown(blocks), end="")
    else:
        print_document(blocks)


def _write_page(comparison: Comparison, target: Path) -> None:
    from qwenbench.report.page import build_comparison_page
    from qwenbench.runfolder.files import write_bytes

    try:
        write_bytes(target, build_comparison_page(comparison).encode())
    except OSError as error:
        raise UsageError(f"--html {target}: cannot be written: {error.strerror or error}.") from error

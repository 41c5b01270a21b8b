"""Commands over runs that are there (report, recommend, compare, merge, export, card), and how a run is named."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import orjson
import typer

from qwenbench.errors import RunError, UsageError
from qwenbench.runfolder.files import write_bytes
from qwenbench.runfolder.names import find_run

if TYPE_CHECKING:
    from qwenbench.analysis.compare import Comparison
    from qwenbench.analysis.releases import Releases
    from qwenbench.analysis.run import Run
    from qwenbench.report.document import Block

T = TypeVar("T")


def option(text: str, *names: str, panel: str | None = None, metavar: str | None = None, **more: Any) -> Any:
    """An option of a command: what --help says of it, its names (without any the parameter's), and the box it is in."""
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar, **more)


RUN = "Run folder"
"""Panel of the options below in --help."""
OutOption = Annotated[str, option("Folder for runs", panel=RUN, metavar="DIR")]
RunIdOption = Annotated[str | None, option("Name of the run (default: the time)", panel=RUN)]
NoReportOption = Annotated[bool, option("Do not build report.html", "--no-report", panel=RUN)]
ResumeOption = Annotated[
    str | None,
    option("Go on with this run, or add to it (folder or name; the newest when left out)", panel=RUN, metavar="[RUN]"),
]
RunArgument = Annotated[
    str | None,
    typer.Argument(help="The run's folder or its name; the newest in results/ when left out.", show_default=False),
]
JsonOption = Annotated[bool, option("One JSON object on stdout.", "--json")]
SloOption = Annotated[str | None, option("Limits of the answer, e.g. ttft_p99=1000ms,tpot_p50=25ms.")]
UsersOption = Annotated[int | None, option("Concurrent users that the answer is for.", min=1)]

EverythingOption = Annotated[bool, option("Every figure, not only the main ones and those with a verdict.", "--all")]
MarkdownOption = Annotated[bool, option("Markdown for a pull request.", "--markdown")]

UNDECIDED = 3
"""Exit status of a gate that could not be judged: neither passed (0) nor broken (1)."""


def chosen_run(given: str | None, command: str) -> Run:
    """The run; says on stderr which one is taken where none was given. Raises UsageError without one."""
    folder = find_run(given)
    if given is None:
        print(f"qwenbench {command}: {folder}, the newest run", file=sys.stderr)
    return loaded(folder)


def loaded(folder: Path) -> Run:
    from qwenbench.analysis.run import load_run

    return load_run(folder)


def print_json(value: Mapping[str, Any], *, one_line: bool = False) -> None:
    """The one object that `--json` prints."""
    print(orjson.dumps(value, option=None if one_line else orjson.OPT_INDENT_2).decode())


def run_asyncio(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on uvloop where it is there."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def print_compared(compared: Comparison | Releases, blocks: Iterable[Block], *, as_json: bool, markdown: bool) -> None:
    """One JSON object, Markdown, or the terminal's tables."""
    from qwenbench.report.text_writers import print_document, to_markdown

    if as_json:
        print_json(compared.to_json())
    elif markdown:
        print(to_markdown(blocks), end="")
    else:
        print_document(blocks)


def write(target: Path, data: str | bytes, told: object = None, hint: str = "") -> None:
    """Writes a file. Raises UsageError that names `told` (the target) where the system refuses."""
    try:
        write_bytes(target, data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise UsageError(f"{told or target}: cannot be written: {error.strerror or error}.{hint}") from error


def report(
    run: RunArgument = None,
    out: Annotated[Path | None, option("The file to write; RUN/report.html when left out.")] = None,
    users: UsersOption = None,
    slo: SloOption = None,
    json: Annotated[bool, option("Print one JSON object: path and bytes.", "--json")] = False,
) -> None:
    """(Re)build the HTML report of a run: one file that opens without a network."""
    from qwenbench.report.answer import question_of
    from qwenbench.report.page import build_report

    found = chosen_run(run, "report")
    target = out or found.path / "report.html"
    page = build_report(found, question_of(found, users, slo)).encode()
    write(target, page, hint=" Give another file with --out.")
    if json:
        print_json({"path": str(target), "bytes": len(page), "simulated": found.simulated}, one_line=True)
    else:
        print(target)


def recommend(
    run: RunArgument = None,
    users: Annotated[
        int | None, option("Concurrent users; without it each configuration counts at its best concurrency.", min=1)
    ] = None,
    slo: Annotated[
        str | None,
        option("Limits, e.g. ttft_p99=1000ms,tpot_p50=25ms; ttft=1000ms: 99 of 100 requests (default: the run's own)"),
    ] = None,
    context: Annotated[int | None, option("Tokens that one request must be able to hold.", min=1)] = None,
    scenario: Annotated[
        str | None, option("Scenarios and their weights, e.g. math=2,code=1; all alike when left out.")
    ] = None,
    objective: Annotated[str, option("What to make best: tokens, latency, context or energy.")] = "tokens",
    shell: Annotated[str, option("The line to print: bash, powershell or compose.")] = "bash",
    as_json: JsonOption = False,
) -> int:
    """Which configuration of a run to deploy for so many users and these limits, as a docker line."""
    from qwenbench.analysis.candidates import OBJECTIVES
    from qwenbench.analysis.limits import parse_weights
    from qwenbench.analysis.recommend import recommend as answer_of
    from qwenbench.report.answer import SHELLS, printed_answer, question_of

    for value, known, name in ((objective, OBJECTIVES, "--objective"), (shell, SHELLS, "--shell")):
        if value not in known:
            raise UsageError(f"{name} {value!r}: one of {', '.join(known)}.")
    weights = parse_weights(scenario) if scenario is not None else None
    found = chosen_run(run, "recommend")
    question = replace(question_of(found, users, slo), context=context, weights=weights, objective=objective)
    answer = answer_of(found, question)
    if as_json:
        print_json(answer.to_json())
    elif answer.config_id is not None:
        from qwenbench.report.text_writers import print_document

        print_document(printed_answer(answer, shell))
    if answer.config_id is None:
        for name, reason in answer.excluded.items():
            print(f"{name}: {reason}", file=sys.stderr)
        nearest = f" Nearest miss: {answer.nearest_miss}." if answer.nearest_miss else ""
        raise RunError(f"no configuration qualifies.{nearest}")
    return 0


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Runs, by folder or name; the first is what the others are held against.")
    ],
    gate: Annotated[
        str | None,
        option("Exit 1 where a change is sure and past its limit, 3 where nothing can be judged: ttft_p99:+10%"),
    ] = None,
    force: Annotated[
        bool, option("Compare what should not be: simulated with measured, other scenarios.", "--force")
    ] = False,
    everything: EverythingOption = False,
    markdown: MarkdownOption = False,
    html: Annotated[
        Path | None, option("Also write a self-contained page with overlaid curves.", metavar="FILE")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Compare runs: first what differs in the conditions, then each metric's change with a verdict."""
    from qwenbench.analysis.compare import compare as comparison_of
    from qwenbench.analysis.compare import parse_gate
    from qwenbench.analysis.run import load_runs
    from qwenbench.report.comparison import comparison_blocks

    if len(runs) < 2:
        raise UsageError("give two runs or more: the first is what the others are held against.")
    if as_json and markdown:
        raise UsageError("--json and --markdown: give one of them.")
    rules = parse_gate(gate) if gate is not None else ()
    comparison = comparison_of(load_runs([find_run(run) for run in runs]), rules, force=force)
    if html is not None:
        from qwenbench.report.page import build_comparison_page

        write(html, build_comparison_page(comparison), f"--html {html}")
    print_compared(comparison, comparison_blocks(comparison, everything), as_json=as_json, markdown=markdown)
    gated = comparison.gate
    if gated is not None and gated.outcome == "broken":
        count = len(gated.broken)
        raise RunError(f"the gate is broken in {count} place{'' if count == 1 else 's'}.")
    if gated is not None and gated.outcome == "undecided":
        metrics = ", ".join(gated.unjudged)
        print(
            f"the gate is undecided: no change of {metrics} has an interval (a side has one repeat, or none). "
            "Measure again with --repeats 3, or extend the runs: qwenbench sweep --resume RUN --repeats 3.",
            file=sys.stderr,
        )
        return UNDECIDED
    return 0


def merge(
    runs: Annotated[list[str], typer.Argument(help="Runs of one plan, by folder or name.", show_default=False)],
    out: Annotated[Path, option("The joined run's folder, which is made", metavar="RUN")],
    no_report: NoReportOption = False,
) -> None:
    """Join runs that were measured apart under one plan into one run; they stay as they are.

    Refused for runs that are not of one plan, that have measured the same cell twice, or on unlike cards.
    """
    from qwenbench.report.page import build_report
    from qwenbench.sweep.merging import merge as joined

    if len(runs) < 2:
        raise UsageError("give two runs or more.")
    merged = joined([find_run(run) for run in runs], out)
    for note in merged.notes:
        print(note)
    print(f"{merged.cells} cells of {len(runs)} runs")
    if merged.missing:
        again = "bench --url URL" if merged.attached else "sweep"
        line = f"qwenbench {again} --resume {shlex.quote(str(out))}"
        print(f"{merged.missing} cells of the joined plan are missing. To measure them: {line}")
    if not no_report and merged.cells:
        write(out / "report.html", build_report(loaded(out)))
        print(f"report: {out / 'report.html'}")
    print(f"run:    {out}")


def export(
    run: RunArgument = None,
    format: Annotated[
        str, option("csv, parquet, json (points and ledgers); png, svg (figures); markdown.")
    ] = "markdown",
    out: Annotated[
        Path | None, option("The folder to write into, made when it is not there; RUN/export when left out.")
    ] = None,
    json: Annotated[bool, option("Print one JSON object: the files.", "--json")] = False,
) -> None:
    """A run's points, ledgers, figures or a Markdown summary as files."""
    from qwenbench.report.export import FORMATS, Format, export_run

    if format not in FORMATS:
        raise UsageError(f"--format {format!r}: choose one of {', '.join(FORMATS)}.")
    found = chosen_run(run, "export")
    files, missing = export_run(found, cast(Format, format), out or found.path / "export")
    if missing is not None:
        print(f"qwenbench export: {missing}", file=sys.stderr)
    if json:
        print_json({"files": [str(file) for file in files]}, one_line=True)
        return
    for file in files:
        print(file)


def card(
    run: RunArgument = None,
    users: UsersOption = None,
    slo: SloOption = None,
    out: Annotated[Path | None, option("The folder to write into; the run's own when left out.")] = None,
    json: Annotated[bool, option("Print results.json instead of the files' names.", "--json")] = False,
) -> None:
    """card.png and card.svg (1200 x 630): configuration, versions, card and five figures; results.json of the same."""
    from qwenbench.report.answer import answered, question_of
    from qwenbench.report.summary import card_facts, card_svg, results_json
    from qwenbench.report.svg import to_png

    found = chosen_run(run, "card")
    answer = answered(found, question_of(found, users, slo))
    if isinstance(answer, str):
        raise RunError(answer)
    facts = card_facts(found, answer)
    svg = card_svg(facts)
    results = orjson.dumps(results_json(facts), option=orjson.OPT_INDENT_2) + b"\n"
    target = out or found.path
    for name, data in (("results.json", results), ("card.svg", svg.encode()), ("card.png", to_png(svg, 1.0))):
        write(target / name, data, f"--out {target}")
        if not json:
            print(target / name)
    if json:
        print(results.decode(), end="")

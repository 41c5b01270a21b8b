"""From checked options to a finished run: what `sweep` and `bench` have in common."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from qwenbench.cli.live_view import terminal_progress
from qwenbench.cli.runs import run_asyncio
from qwenbench.errors import UsageError
from qwenbench.load.clients import Clients
from qwenbench.runfolder.damage import read_run_json
from qwenbench.runfolder.files import disk_trouble, write_bytes
from qwenbench.runfolder.journal import Journal
from qwenbench.runfolder.names import RunPaths, check_name, find_run, new_run_id
from qwenbench.sweep.extension import extended_fields, find_campaign, known_configurations, load_campaign
from qwenbench.sweep.hardware import budgeted
from qwenbench.sweep.option_values import writable_folder
from qwenbench.sweep.options import SweepOptions, checked_options
from qwenbench.sweep.plan import Plan, make_plan
from qwenbench.sweep.progress import Progress, duration, estimated_seconds
from qwenbench.sweep.record import Site, find_site
from qwenbench.sweep.sweep import Sweep, SweepOutcome

if TYPE_CHECKING:
    from qwenbench.analysis.candidates import Question
    from qwenbench.analysis.run import Run

S = TypeVar("S", bound=Sweep)

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True)
class RunRequest:
    """A sweep as it was asked for: its options, and what becomes of the run."""

    fields: dict[str, Any]
    """Of SweepOptions."""
    out: str
    run_id: str | None
    resume: str | None
    """The run that goes on, by folder or name."""
    dry_run: bool
    build_report: bool


def begun(resume: str | None, out: str, fields: dict[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The run that goes on, and its options with these added; no folder and these where a new one begins."""
    if resume is None:
        return None, fields
    folder = find_run(resume, "--resume", Path(out))
    return folder, extended_fields(folder, fields)


def run_one(request: RunRequest) -> int:
    """One sweep; returns the exit status. Raises UsageError before anything is started or written."""
    resume = request.resume
    folder, fields = begun(resume, request.out, request.fields)
    if folder is not None and read_run_json(folder / "run.json").get("cluster"):
        raise UsageError(f"--resume {resume}: it was measured on a cluster. Go on with --cluster ADDRESS.")
    options = checked_options(fields)
    if options.attached:
        raise UsageError(f"--resume {resume}: bench began this run. Go on with qwenbench bench --url URL --resume RUN.")
    if options.client == "remote":
        raise UsageError("--client remote sends the load from another node: give --cluster as well.")
    plan, site = plan_and_site(options, folder)
    if request.dry_run:
        show_plan(plan, site, folder)
        return 0
    folder = folder or new_folder(request.out, request.run_id)
    return run_plan(plan, folder, site, resumed_by="sweep", build_report=request.build_report)


def plan_and_site(options: SweepOptions, folder: Path | None) -> tuple[Plan, Site]:
    """What will be done, and where; `folder` is that of a run that goes on. Raises UsageError; starts nothing."""
    return make_plan(options, known_configurations(folder) if folder else {}), find_site(options)


def run_campaign(campaign: str, request: RunRequest, run: Callable[[RunRequest], int]) -> int:
    """Each sweep of a campaign file as a `run` of its own; returns the exit status of the whole."""
    sweeps = {name: {**sweep, **request.fields} for name, sweep in load_campaign(find_campaign(campaign)).items()}
    for sweep in sweeps.values():
        make_plan(checked_options(sweep))  # none is begun before all are known to be good
    base = request.run_id or new_run_id(datetime.now())
    statuses = []
    for name, sweep in sweeps.items():
        note(f"campaign {campaign}: {name}")
        folder = Path(request.out) / f"{base}-{name}"
        resume = str(folder) if (folder / "run.json").exists() and not request.dry_run else None
        statuses.append(run(replace(request, fields=sweep, run_id=folder.name, resume=resume)))
        if statuses[-1] == INTERRUPTED:
            return INTERRUPTED
    # one in which nothing could run is a part of the campaign that failed
    return statuses[0] if len(set(statuses)) == 1 else FAILED


def new_folder(out: str, run_id: str | None) -> Path:
    """The folder of a new run, not yet made. Raises UsageError when it exists or could not be written."""
    writable_folder(Path(out), "--out")
    if run_id is not None:
        folder = Path(out) / check_name(run_id, "--run-id")
        if folder.exists():
            raise UsageError(f"--run-id {run_id}: {folder} exists. Choose another, or --resume {folder}.")
        return folder
    base = Path(out) / new_run_id(datetime.now())
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def run_plan(
    plan: Plan, folder: Path, site: Site, *, resumed_by: str, build_report: bool, clients: Clients | None = None
) -> int:
    """Runs a plan into a folder, prints the table and builds the report; returns the exit status.

    `resumed_by` is the command that goes on with it: `sweep`, `bench --url URL`. `clients`: see Sweep.
    """
    _, outcome = run_shown(lambda progress: Sweep(plan, RunPaths(folder), site, progress, clients))
    return closing(outcome, folder, resumed_by, build_report)


def run_shown(make: Callable[[Progress], S]) -> tuple[S, SweepOutcome]:
    """Runs what `make` gives, a sweep or a search, to its end while the terminal shows how far it is."""

    async def work() -> tuple[S, SweepOutcome]:
        with terminal_progress(Console(stderr=True)) as progress:
            sweep = make(progress)
            return sweep, await sweep.run(["qwenbench", *sys.argv[1:]])

    return run_asyncio(work())


def closing(outcome: SweepOutcome, folder: Path, resumed_by: str, build_report: bool) -> int:
    """Table, failures, answer and report of a run that has ended; returns its exit status."""
    from qwenbench.analysis.run import load_run
    from qwenbench.report.answer import question_of
    from qwenbench.report.summary import final_tables
    from qwenbench.report.text_writers import print_document

    run = load_run(folder)
    if len(run.points):
        print_document(final_tables(run))
    tell_doubts(run)
    for config_id, failure in outcome.failures.items():
        note(f"{config_id} failed ({failure.kind}): {failure.evidence} {failure.advice}".rstrip())
    missing = outcome.cells - outcome.cells_done
    if missing:
        why = "interrupted" if outcome.interrupted else "finished with failures"
        again = f"qwenbench {resumed_by} --resume {shlex.quote(str(folder))}"
        note(f"{why}: {missing} of {outcome.cells} cells are missing. To go on: {again}")
    if not outcome.interrupted:
        answer_and_report(run, question_of(run), build_report)
    return outcome.exit_status


def tell_doubts(run: Run) -> None:
    """That a run is simulated, and which of its points are invalid."""
    if run.simulated:
        interval = run.meta.get("simulated_interval") or ""
        print(
            f"SIMULATED: these figures were made by qwenbench's simulator, not measured on a GPU. {interval}".rstrip()
        )
    if len(run.points) and not run.points["valid"].all():
        note(_invalid_points(run))


def answer_and_report(run: Run, question: Question | None, build_report: bool) -> None:
    """The answer to the question, report.html, and where the run lies."""
    from qwenbench.report.answer import answered, closing_answer
    from qwenbench.report.text_writers import print_document

    if len(run.points) and question is not None:
        answer = answered(run, question)
        if not isinstance(answer, str):
            print_document(closing_answer(answer))
    if len(run.points) and build_report:
        from qwenbench.report.page import build_report as build

        try:
            write_bytes(run.path / "report.html", build(run).encode())
        except OSError as error:
            raise disk_trouble(error, run.path) or error from error
        print(f"report: {run.path / 'report.html'}")
    print(f"run:    {run.path}")


def _invalid_points(run: Run) -> str:
    reasons = Counter(str(row["invalid_reason"]) for row in run.points.to_dict("records") if not row["valid"])
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    return f"{reasons.total()} of {len(run.points)} points are INVALID and count nowhere: {told}"


def note(text: str) -> None:
    print(text, file=sys.stderr)


def show_plan(plan: Plan, site: Site, resumed: Path | None = None) -> None:
    """--dry-run: configurations with their launch lines, load points in order, and about how long it takes; of a run
    that goes on what is measured already counts no more."""
    known = {entry.cell for entry in Journal(RunPaths(resumed).journal).readable_entries()} if resumed else set()
    left = [cell for cell in plan.cells() if cell.cell_id not in known]
    some = f"{len(plan.options.only)} of " if plan.options.only else ""
    print(f"{some}{len(plan.configurations)} configurations x {len(plan.points)} load points "
          f"x {plan.options.relaunch_repeats} launches = {len(plan.cells())} cells"
          + (f", {len(left)} of them not measured yet" if resumed else "")
          + (" (SIMULATED)" if site.simulated else ""))  # fmt: skip
    for told in plan.notes:
        print(told)
    for configuration in plan.configurations:
        cells = [cell for cell in left if cell.config_id == configuration.config_id]
        server = budgeted(configuration.server, plan.options, site.hardware)
        print(f"\n{configuration.config_id}{'' if cells else ': measured already'}")
        print(f"  {shlex.join(site.launcher.shown_line(server))}")
    print("\nload points, in order:")
    for point in plan.points:
        print(f"  {point.point_id}{'' if any(cell.point == point for cell in left) else ': measured already'}")
    seconds = estimated_seconds(plan, site.launcher.name, left)
    print(f"\nabout {duration(seconds)} (a guess from recorded speeds of an RTX 5090's budget on an H200)")

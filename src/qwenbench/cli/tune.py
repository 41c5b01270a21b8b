"""`qwenbench tune`: the best configuration for so many users and these limits, in few launches."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from qwenbench.cli.option_parameters import takes_options
from qwenbench.cli.runs import RUN, NoReportOption, OutOption, RunIdOption, option
from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.sweep.options import SweepOptions
    from qwenbench.sweep.tuning import Quest

SEARCH = "What is sought"
_SOUGHT = ("tokens", "users", "rate")
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}


@takes_options("tune")
def command(
    given: dict[str, Any],
    users: Annotated[int | None, option("Concurrent users", panel=SEARCH, min=1, max=4096)] = None,
    slo: Annotated[
        str | None, option("Limits, e.g. ttft_p99=1000ms,tpot_p50=25ms", panel=SEARCH, metavar="METRIC_pNN=LIMIT,..")
    ] = None,
    objective: Annotated[
        str | None,
        option(
            "tokens: most tokens/s at --users; users, rate: most users, or requests a second (open loop), "
            "within the limits (default: tokens)",
            panel=SEARCH,
            metavar="|".join(_SOUGHT),
        ),
    ] = None,
    max_launches: Annotated[
        int | None, option("Servers to start at most, over all resumes (default: 8)", panel=SEARCH, min=1, metavar="N")
    ] = None,
    max_time: Annotated[
        str | None,
        option(
            "Longest time for all of it, over all resumes, e.g. 90m or 2h (no launch begins after it)",
            panel=SEARCH,
            metavar="T",
        ),
    ] = None,
    out: OutOption = "results",
    run_id: RunIdOption = None,
    resume: Annotated[
        str | None,
        option("Go on with this search (folder or name; the newest when left out)", panel=RUN, metavar="[RUN]"),
    ] = None,
    dry_run: Annotated[
        bool, option("Print the space and what is predicted of it, start nothing", "--dry-run", panel=RUN)
    ] = False,
    no_report: NoReportOption = False,
    cluster: Annotated[str | None, option("Of sweep and bench", hidden=True)] = None,
) -> int:
    """Find the configuration to serve with, in few launches: predicted first, raced on equal requests, launched again.

    The claim is `within so many % of the best that was tried, at 95 %`, never `optimal`. Without --capture, --vary or
    --max-num-seqs the space is made from the users: captured sizes about them, three sizes of a step.
    Exit status: 0 an answer; 1 nothing that was tried holds the limits; 2 bad usage or nothing could run;
    130 interrupted (resumable).
    """
    from qwenbench.cli.sweep_run import new_folder
    from qwenbench.runfolder.files import read_json
    from qwenbench.runfolder.names import find_run
    from qwenbench.sweep.extension import extended_fields
    from qwenbench.sweep.options import checked_options
    from qwenbench.sweep.tuning import Quest, default_space

    if cluster is not None:
        raise UsageError(
            "--cluster: a search runs on one machine. Run it on a node, with --devices 0,1 for several of its cards; "
            "qwenbench sweep --cluster measures a list of configurations on all nodes."
        )
    folder = None
    if resume is not None:
        folder = find_run(resume, "--resume", Path(out))
        kept = read_json(folder / "run.json").get("tune")
        if kept is None:
            raise UsageError(f"--resume {resume}: no search began this run. Go on with qwenbench sweep --resume.")
        if any(value is not None for value in (users, slo, objective)):
            raise UsageError(
                f"--resume {resume}: a search goes on with what it seeks (--users, --slo, --objective are kept in "
                "run.json). Leave them out, or start a new run. --max-launches and --max-time may be raised."
            )
        if {"scenario", "profile"} & set(given):
            raise UsageError(
                f"--resume {resume}: what is sent stays as it was, or launches could not be compared. Leave --scenario "
                "and --profile out, or start a new run."
            )
        quest = Quest.from_json(kept)
        rules = replace(quest.rules, launches=max_launches or quest.rules.launches)
        quest = replace(quest, rules=rules if max_time is None else replace(rules, seconds=_seconds(max_time)))
        fields = extended_fields(folder, given)
    else:
        quest = _quest(users, slo, objective, max_launches, max_time)
        fields = {"scenario": ("conversation",), **default_space(checked_options(given), quest.users), **given}
        load: dict[str, Any] = {"rate": (1.0,)} if quest.open_loop else {"concurrency": (quest.users or 32,)}
        fields |= {**load, "slo": {one.latency: one.bound for one in quest.limits}}
    options = checked_options(fields)
    if dry_run:
        return _show(options, quest, folder)
    return _run(options, quest, folder, folder or new_folder(out, run_id), build_report=not no_report)


def _show(options: SweepOptions, quest: Quest, resumed: Path | None) -> int:
    """--dry-run: the space in the order of what is predicted, and what is not launched at all."""
    from rich.console import Console

    from qwenbench.cli.live_view import PlainLines
    from qwenbench.cli.sweep_run import plan_and_site
    from qwenbench.runfolder.names import RunPaths
    from qwenbench.simulator.uncertainty import uncertainty_of
    from qwenbench.sweep.tuning import Tuning, arms_of

    plan, site = plan_and_site(options, resumed)
    tuning = Tuning(plan, RunPaths(resumed or Path("results")), site, PlainLines(Console(stderr=True)), quest)
    arms = sorted(arms_of(tuning), key=lambda arm: -(arm.prior or 0.0))
    unit = "tokens/s" if quest.users else "requests/s" if quest.open_loop else "users"
    print(f"{len(arms)} configurations, at most {quest.rules.launches} launches (predictions are SIMULATED)")
    for arm in arms:
        predicted = (
            "nothing predicted"
            if arm.prior is None
            else f"{arm.prior:,.{1 if quest.open_loop else 0}f} {unit} predicted"
        )
        print(f"  {arm.config_id}: {f'not launched: {arm.refused}' if arm.refused else predicted}")
    if site.hardware.card is not None:
        print(uncertainty_of(site.hardware.card.name, model=plan.configurations[0].server.model).text())
    return 0


def _run(options: SweepOptions, quest: Quest, resumed: Path | None, folder: Path, build_report: bool) -> int:
    """The search to its end; path, conclusion, answer and report; returns the exit status."""
    from qwenbench.analysis.candidates import Question
    from qwenbench.analysis.recommend import lines_of
    from qwenbench.analysis.run import load_run
    from qwenbench.cli.sweep_run import answer_and_report, note, plan_and_site, run_shown, tell_doubts
    from qwenbench.report.course import search_path
    from qwenbench.report.document import Code
    from qwenbench.report.text_writers import print_document
    from qwenbench.runfolder.names import RunPaths
    from qwenbench.sweep.tuning import Tuning

    plan, site = plan_and_site(options, resumed)
    tuning, ended = run_shown(lambda progress: Tuning(plan, RunPaths(folder), site, progress, quest))
    run = load_run(folder)
    print_document(search_path(run))
    tell_doubts(run)
    found = tuning.outcome
    if found is None:
        note(
            f"interrupted after {len(run.points)} points. To go on: qwenbench tune --resume {shlex.quote(str(folder))}"
        )
        return ended.exit_status
    question = None
    if quest.open_loop:
        if found.config_id is not None and (line := lines_of(run, found.config_id).bash):
            print_document([Code(line, "sh", "bash")])
    elif users := quest.users or round(found.value or 0):
        question = Question(users=users, limits=quest.limits)
    answer_and_report(run, question, build_report)
    return ended.exit_status or (1 if found.config_id is None else 0)


def _quest(
    users: int | None, slo: str | None, objective: str | None, max_launches: int | None, max_time: str | None
) -> Quest:
    from qwenbench.analysis.limits import parse_point_limits
    from qwenbench.sweep.tuning import Quest
    from qwenbench.tune.protocol import Rules

    if objective is not None and objective not in _SOUGHT:
        raise UsageError(f"--objective {objective!r}: choose {', '.join(_SOUGHT)}.")
    limits = parse_point_limits(slo) if slo is not None else ()
    if objective in ("users", "rate"):
        if users is not None:
            raise UsageError(f"--objective {objective} seeks the load: leave --users out.")
        if not limits:
            raise UsageError(f"--objective {objective} needs --slo: without a limit a server holds any load.")
    elif users is None:
        raise UsageError("give --users N, or --objective users with --slo. E.g. --users 32 --slo ttft_p99=1000ms.")
    seconds = float("inf") if max_time is None else _seconds(max_time)
    rules = Rules(launches=max_launches or Rules().launches, seconds=seconds)
    return Quest(users, limits, rules, objective == "rate")


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h)?", text.strip())
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"--max-time {text!r}: give a time, e.g. 90m or 2h.")
    return float(match[1]) * _SECONDS[match[2] or ""]

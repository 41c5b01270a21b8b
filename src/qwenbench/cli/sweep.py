"""`qwenbench sweep`: the main job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qwenbench.cli.option_parameters import ClusterOption, takes_options
from qwenbench.cli.runs import RUN, NoReportOption, OutOption, ResumeOption, RunIdOption
from qwenbench.errors import UsageError
from qwenbench.sweep.options import CLUSTER


@takes_options("sweep")
def command(
    given: dict[str, Any],
    campaign: Annotated[
        str | None,
        typer.Option(
            help="Sweeps as a YAML file, or by a shipped name (seed)",
            rich_help_panel=RUN,
            metavar="FILE|NAME",
            show_default=False,
        ),
    ] = None,
    out: OutOption = "results",
    run_id: RunIdOption = None,
    resume: ResumeOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, launch lines and time, start nothing", rich_help_panel=RUN)
    ] = False,
    no_report: NoReportOption = False,
    cluster: ClusterOption = None,
    on: Annotated[
        str | None,
        typer.Option(
            help="Kinds of card (Ray resources) to run the plan on, a run each",
            rich_help_panel=CLUSTER,
            metavar="CARD,..",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Sweep vLLM configurations x load points: relaunch, measure, show what each setting costs and buys.

    Exit status: 0 done; 1 some cells failed or no point is valid (the rest is there); 2 bad usage or nothing could run;
    130 interrupted.
    """
    from qwenbench.cli.cluster_run import cluster_choice
    from qwenbench.cli.sweep_run import run_campaign, run_one

    chosen = cluster_choice(cluster, on)
    if campaign is not None and resume is not None:
        raise UsageError("--resume with --campaign: give the campaign with the same --run-id again instead.")
    if campaign is not None:
        return run_campaign(
            campaign, given, out=out, run_id=run_id, dry_run=dry_run, build_report=not no_report, cluster=chosen
        )
    return run_one(
        given, out=out, run_id=run_id, resume=resume, dry_run=dry_run, build_report=not no_report, cluster=chosen
    )

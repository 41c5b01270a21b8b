"""`qwenbench sweep`: the main job."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from qwenbench.cli.option_parameters import ClusterOption, takes_options
from qwenbench.cli.runs import RUN, NoReportOption, OutOption, ResumeOption, RunIdOption, option
from qwenbench.errors import UsageError
from qwenbench.sweep.options import CLUSTER


@takes_options("sweep")
def command(
    given: dict[str, Any],
    campaign: Annotated[
        str | None, option("Sweeps as a YAML file, or by a shipped name (seed)", panel=RUN, metavar="FILE|NAME")
    ] = None,
    out: OutOption = "results",
    run_id: RunIdOption = None,
    resume: ResumeOption = None,
    dry_run: Annotated[
        bool, option("Print plan, launch lines and time, start nothing", "--dry-run", panel=RUN)
    ] = False,
    no_report: NoReportOption = False,
    cluster: ClusterOption = None,
    on: Annotated[
        str | None,
        option("Kinds of card (Ray resources) to run the plan on, a run each", panel=CLUSTER, metavar="CARD,.."),
    ] = None,
) -> int:
    """Sweep vLLM configurations x load points: relaunch, measure, show what each setting costs and buys.

    Exit status: 0 done; 1 some cells failed or no point is valid (the rest is there); 2 bad usage or nothing could run;
    130 interrupted.
    """
    from qwenbench.cli.sweep_run import RunRequest, run_campaign, run_one

    run = run_one
    if cluster is not None:
        from qwenbench.cli.cluster_run import kinds_of, run_on_cluster

        run = partial(run_on_cluster, address=cluster, kinds=kinds_of(on))
    elif on is not None:
        raise UsageError("--on names cards of a cluster: give --cluster as well.")
    request = RunRequest(given, out, run_id, resume, dry_run, not no_report)
    if campaign is None:
        return run(request)
    if resume is not None:
        raise UsageError("--resume with --campaign: give the campaign with the same --run-id again instead.")
    return run_campaign(campaign, request, run)

"""`qwenbench bench`: load points against a server that runs already."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from qwenbench.cli.option_parameters import ClusterOption, takes_options
from qwenbench.cli.runs import NoReportOption, OutOption, ResumeOption, RunIdOption, option, run_asyncio
from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.bounded_http import WaitLimit
    from qwenbench.engine.config import ServerConfig
    from qwenbench.sweep.options import SweepOptions


@takes_options("bench")
def command(
    given: dict[str, Any],
    url: Annotated[str, option("Address of the server, e.g. http://127.0.0.1:8000")],
    model: Annotated[str | None, option("Model name (default: asked from /v1/models)")] = None,
    out: OutOption = "results",
    run_id: RunIdOption = None,
    resume: ResumeOption = None,
    no_report: NoReportOption = False,
    cluster: ClusterOption = None,
) -> int:
    """Measure a server that is already there; nothing is started or stopped.

    Writes the same run folder as `sweep`, with one configuration, and ends with the same exit status.
    """
    from qwenbench.cli.cluster_run import client_nodes
    from qwenbench.cli.sweep_run import begun, new_folder, run_plan
    from qwenbench.engine.attached import AttachedLauncher, is_local, processes_behind
    from qwenbench.sweep.hardware import find_attached_hardware
    from qwenbench.sweep.options import checked_options
    from qwenbench.sweep.plan import make_bench_plan
    from qwenbench.sweep.probing import says_simulated
    from qwenbench.sweep.record import Site

    resumed, fields = begun(resume, out, given)
    folder = resumed or new_folder(out, run_id)
    if cluster is not None:
        fields = {"client_nodes": 1, **fields}
    options = checked_options({**fields, "launcher": "url"})
    if options.client_nodes is not None and cluster is None:
        raise UsageError("--client-nodes are nodes of a cluster: give --cluster as well.")
    ray = None
    if cluster is not None:
        from qwenbench.cluster.ray_fleet import connect

        ray = connect(cluster)  # before the server, which may be waited for, is asked
    launcher = AttachedLauncher(url, options.server_log)
    server, version = run_asyncio(_attached_server(url, model, options, launcher.limit))
    launcher.simulated = says_simulated(version)
    plan = make_bench_plan(options, server)
    local = is_local(url) and not launcher.simulated
    hardware, launcher.pids = find_attached_hardware(
        options, run_asyncio(processes_behind(url)) if local else (), local
    )
    site = Site(launcher, hardware, version)
    command_line = f"bench --url {shlex.quote(url)}"
    clients = None
    if cluster is not None and ray is not None:
        clients = client_nodes(ray, cluster, options, url)
        plan = replace(plan, notes=(*plan.notes, clients.told()))
        command_line += f" --cluster {shlex.quote(cluster)}"
    return run_plan(plan, folder, site, resumed_by=command_line, build_report=not no_report, clients=clients)


async def _attached_server(
    url: str, model: str | None, options: SweepOptions, limit: WaitLimit
) -> tuple[ServerConfig, str | None]:
    """The server's description, and the version that it tells.

    Raises UsageError when it does not answer or does not serve the model.
    """
    import aiohttp

    from qwenbench.bounded_http import Questions, server_base
    from qwenbench.engine.config import ServerConfig
    from qwenbench.sweep.context import resolve_headers
    from qwenbench.sweep.probing import check_answers_for, model_facts, server_version, wait_for_server

    base = server_base(url)
    named = options.served_model_name or model
    headers = resolve_headers(options)
    starting = "startup_timeout_s" in options.model_fields_set
    limit.restart(options.startup_timeout_s if starting else min(limit.limit_s, options.timeout_s))
    async with aiohttp.ClientSession() as session:
        questions = Questions(session, base, headers, limit)
        found = await wait_for_server(
            questions,
            model=named,
            endpoint=options.endpoint,
            starting=starting,
            tell=lambda text: print(text, file=sys.stderr, flush=True),
        )
        limit.tighten(options.timeout_s)
        version = await server_version(questions)
        chosen = named or (found.models[0] if found.models else None)
        if chosen is None:
            raise UsageError(f"--url {url}: it answers but lists no model at /v1/models; name one with --model.")
        if found.models and (told := await check_answers_for(questions, chosen, found.models, options.endpoint)):
            print(told, file=sys.stderr, flush=True)
        root, length = model_facts(found.listed, chosen)
    weights = model if options.served_model_name is not None else None  # --model is then the model, not its name here
    return ServerConfig(model=weights or root or chosen, served_model_name=chosen, max_model_len=length), version

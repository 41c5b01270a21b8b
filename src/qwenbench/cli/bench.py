"""`qwenbench bench`: load points against a server that runs already."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbench.cli.option_parameters import takes_options

if TYPE_CHECKING:
    from qwenbench.engine.config import ServerConfig
    from qwenbench.sweep.options import SweepOptions

RUN = "Run folder"
VALUES_LEFT_OUT = {"--resume": ""}
"""--resume alone means the newest run."""


@takes_options("bench")
def command(
    given: dict[str, Any],
    url: Annotated[str, typer.Option(help="Address of the server, e.g. http://127.0.0.1:8000", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Model name (default: asked from /v1/models)", show_default=False)
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for runs", rich_help_panel=RUN, metavar="DIR")] = "results",
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run (default: the time)", rich_help_panel=RUN, show_default=False)
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Go on with this run, or add to it (folder or name; the newest when left out)",
            rich_help_panel=RUN,
            metavar="[RUN]",
            show_default=False,
        ),
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Do not build report.html", rich_help_panel=RUN)
    ] = False,
) -> int:
    """Measure a server that is already there; nothing is started or stopped.

    Writes the same run folder as `sweep`, with one configuration.
    """
    from qwenbench.cli.sweep_run import new_folder, run_asyncio, run_plan
    from qwenbench.engine.attached import AttachedLauncher
    from qwenbench.runfolder.lookup import find_run
    from qwenbench.sweep.extension import extended_fields
    from qwenbench.sweep.hardware import find_hardware
    from qwenbench.sweep.options import checked_options
    from qwenbench.sweep.plan import make_bench_plan
    from qwenbench.sweep.record import Site

    fields = given
    if resume is not None:
        folder = find_run(resume, "--resume", Path(out))
        fields = extended_fields(folder, fields)
    else:
        folder = new_folder(out, run_id)
    options = checked_options({**fields, "launcher": "url"})
    launcher = AttachedLauncher(url)
    server, version = run_asyncio(_attached_server(url, model, options))
    launcher.simulated = "simulated" in (version or "")
    plan = make_bench_plan(options, server)
    site = Site(launcher, find_hardware(options, local=_is_local(url)), version)
    command_line = f"bench --url {shlex.quote(url)}"
    return run_plan(plan, folder, site, resumed_by=command_line, build_report=not no_report)


def _is_local(url: str) -> bool:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


async def _attached_server(url: str, model: str | None, options: SweepOptions) -> tuple[ServerConfig, str | None]:
    """The server's description, and the version that it tells.

    Raises UsageError when it does not answer or does not serve the model.
    """
    import aiohttp

    from qwenbench.engine.config import ServerConfig
    from qwenbench.errors import UsageError
    from qwenbench.sweep.probing import check_served, served_models, server_version
    from qwenbench.sweep.sweep import resolve_headers

    base = url.rstrip("/").removesuffix("/v1")
    headers = resolve_headers(options)
    async with aiohttp.ClientSession() as session:
        served = await served_models(session, base, headers)
        if not served:
            raise UsageError(
                f"--url {url}: no OpenAI-compatible server answers there (GET /v1/models gave no model). "
                "Is it running, is that its address, does it need --api-key-env?"
            )
        chosen = model or served[0]
        check_served(chosen, served, base)
        version = await server_version(session, base, headers)
    return ServerConfig(model=chosen, served_model_name=chosen), version

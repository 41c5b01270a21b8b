"""`qwenbench bench`: load points against a server that runs already."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbench.cli import load_options as lo

if TYPE_CHECKING:
    from qwenbench.engine.config import ServerConfig
    from qwenbench.sweep.options import SweepOptions


def command(
    url: Annotated[str, typer.Option(help="Address of the server, e.g. http://127.0.0.1:8000", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="Model name (default: asked from /v1/models)", show_default=False)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable that holds the API key", metavar="NAME", show_default=False),
    ] = None,
    scenario: lo.Scenario = None,
    input_tokens: lo.InputTokens = None,
    output_tokens: lo.OutputTokens = None,
    ignore_eos: lo.IgnoreEos = None,
    prefix_reuse: lo.PrefixReuse = None,
    profile: lo.Profile = None,
    endpoint: lo.Endpoint = None,
    extra_body: lo.ExtraBody = None,
    header_env: lo.HeaderEnv = None,
    save_text: lo.SaveText = None,
    concurrency: lo.Concurrency = None,
    rate: lo.Rate = None,
    burstiness: lo.Burstiness = None,
    ramp: lo.Ramp = None,
    trace: lo.Trace = None,
    requests: lo.Requests = None,
    duration: lo.Duration = None,
    timeout: lo.Timeout = None,
    slo: lo.Slo = None,
    client_processes: lo.ClientProcesses = None,
    client_cpus: lo.ClientCpus = None,
    repeats: lo.Repeats = None,
    until_ci: lo.UntilCi = None,
    order: lo.Order = None,
    seed: lo.Seed = None,
    canary: lo.Canary = None,
    out: lo.Out = "results",
    run_id: lo.RunId = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Finish this run", rich_help_panel=lo.RUN, metavar="RUN", show_default=False),
    ] = None,
    no_report: lo.NoReport = False,
) -> int:
    """Measure a server that is already there; nothing is started or stopped.

    Writes the same run folder as `sweep`, with one configuration.
    """
    given = dict(locals())
    for name in ("url", "model", "api_key_env", "out", "run_id", "resume", "no_report"):
        given.pop(name)
    from qwenbench.cli.sweep_run import new_folder, resumed_folder, run_asyncio, run_plan
    from qwenbench.engine.attached_launcher import AttachedLauncher
    from qwenbench.sweep.hardware import find_hardware
    from qwenbench.sweep.loading import make_bench_plan
    from qwenbench.sweep.run_json import stored_options

    fields = lo.load_fields(given)
    if resume is not None:
        folder = resumed_folder(resume, out)
        fields = {**stored_options(folder).model_dump(exclude_defaults=True), **fields}
    else:
        folder = new_folder(out, run_id)
    options = _options(fields, api_key_env)
    launcher = AttachedLauncher(url)
    server, version = run_asyncio(_attached_server(url, model, options))
    launcher.simulated = "simulated" in (version or "")
    plan = make_bench_plan(options, server)
    hardware = find_hardware(options, local=_is_local(url))
    return run_plan(
        plan,
        folder,
        launcher,
        hardware,
        command=f"bench --url {shlex.quote(url)}",
        build_report=not no_report,
        vllm_version=version,
    )


def _options(fields: dict[str, Any], api_key_env: str | None) -> SweepOptions:
    if api_key_env is not None:
        fields["bearer_env"] = api_key_env
    options: SweepOptions = lo.checked_options({**fields, "launcher": "url"})
    return options


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
    from qwenbench.sweep.runner import resolve_headers

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

"""`qwenbench sweep`: the main job."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from qwenbench.cli import load_options as lo
from qwenbench.errors import UsageError

SERVER = "Servers"
LAUNCHERS = ("docker", "process", "sim")


def _option(help_text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=SERVER, metavar=metavar, show_default=False)


def command(
    capture: Annotated[str | None, _option("--max-cudagraph-capture-size values", metavar="N,..")] = None,
    max_num_seqs: Annotated[
        str | None, _option("`match` (follow capture) or values crossed with it (default: match)", metavar="match|N,..")
    ] = None,
    gpu_memory_utilization: Annotated[
        str | None, _option("Fractions of the card; with --card of that card", metavar="F,..")
    ] = None,
    vary: Annotated[
        list[str] | None, _option("Any other vLLM flag as a dimension (repeatable)", metavar="FLAG=V1,V2")
    ] = None,
    launcher: Annotated[str | None, _option("docker, process or sim (default: docker)")] = None,
    deployment: Annotated[
        str | None, _option("Deployment to start from (default: generic)", metavar="NAME|FILE")
    ] = None,
    card: Annotated[
        str | None, _option("sim: the card to simulate (rtx-5090); else keep this smaller card's budget")
    ] = None,
    devices: Annotated[str | None, _option("Cards to use; several run side by side", metavar="0,1|UUID,..")] = None,
    model: Annotated[str | None, _option("Model to serve")] = None,
    served_model_name: Annotated[str | None, _option("Name under which it is served")] = None,
    image: Annotated[str | None, _option("docker: image and tag")] = None,
    cache_dir: Annotated[str | None, _option("docker: host folder for /root/.cache")] = None,
    port: Annotated[int | None, _option("Loopback port (default: 8000)")] = None,
    vllm_command: Annotated[str | None, _option("process: what to run (default: vllm serve)", metavar="CMD")] = None,
    vllm_arg: Annotated[list[str] | None, _option("Further argument for vLLM, last (repeatable)")] = None,
    startup_timeout: Annotated[float | None, _option("Longest wait for a server (default: 1200)", metavar="S")] = None,
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
    relaunch_repeats: Annotated[
        int | None,
        typer.Option(help="Launches per configuration (default: 1)", rich_help_panel=lo.REPEATS, show_default=False),
    ] = None,
    until_ci: lo.UntilCi = None,
    order: lo.Order = None,
    seed: lo.Seed = None,
    canary: lo.Canary = None,
    force: Annotated[
        bool | None, _option("Start configurations that cannot work; take over another host's lock", "--force")
    ] = None,
    campaign: Annotated[str | None, _option("A whole sweep as a YAML file", metavar="FILE")] = None,
    out: lo.Out = "results",
    run_id: lo.RunId = None,
    resume: Annotated[
        str | None,
        typer.Option(help="Finish this run", rich_help_panel=lo.RUN, metavar="RUN", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan, launch lines and time, start nothing", rich_help_panel=lo.RUN)
    ] = False,
    no_report: lo.NoReport = False,
) -> int:
    """Sweep vLLM configurations x load points: relaunch, measure, show what each setting costs and buys.

    Exit status: 0 done; 1 some cells failed (the rest is there); 2 bad usage or nothing could run; 130 interrupted.
    """
    given = dict(locals())
    from qwenbench.cli.sweep_run import run_campaign, run_one

    for name in ("campaign", "out", "run_id", "resume", "dry_run", "no_report"):
        given.pop(name)
    if launcher is not None and launcher not in LAUNCHERS:
        raise UsageError(f"--launcher {launcher!r}: choose {', '.join(LAUNCHERS)} (a server that runs already: bench).")
    fields = {**_server_fields(given), **lo.load_fields(given)}
    if campaign is not None and resume is not None:
        raise UsageError("--resume with --campaign: give the campaign with the same --run-id again instead.")
    if campaign is not None:
        return run_campaign(campaign, fields, out=out, run_id=run_id, dry_run=dry_run, build_report=not no_report)
    return run_one(fields, out=out, run_id=run_id, resume=resume, dry_run=dry_run, build_report=not no_report)


def _server_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Takes the server's options out of `given`; returns them as fields of SweepOptions."""
    from qwenbench.sweep.options import fraction, parse_list, parse_vary, positive

    fields: dict[str, Any] = {}
    capture, utilization = given.pop("capture"), given.pop("gpu_memory_utilization")
    seqs, varied, devices = given.pop("max_num_seqs"), given.pop("vary"), given.pop("devices")
    startup = given.pop("startup_timeout")
    if capture is not None:
        fields["capture"] = parse_list(capture, "--capture", int, positive)
    if seqs is not None:
        fields["max_num_seqs"] = seqs if seqs == "match" else parse_list(seqs, "--max-num-seqs", int, positive)
    if utilization is not None:
        fields["gpu_memory_utilization"] = parse_list(utilization, "--gpu-memory-utilization", float, fraction)
    if varied:
        fields["vary"] = parse_vary(varied)
    if devices is not None:
        fields["devices"] = parse_list(devices, "--devices", str, lambda value: None)
    if startup is not None:
        fields["startup_timeout_s"] = startup
    return fields

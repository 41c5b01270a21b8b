"""`qwenbench doctor`, `proxy` and `simulate`: the host that servers run on, and servers of qwenbench's own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.cli.runs import option, print_json, run_asyncio
from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.proxy.relay import ProxyOptions
    from qwenbench.proxy.target import TargetAddress


def doctor(
    deployment: Annotated[str, option("The deployment to check for (name or path).")] = "generic",
    image: Annotated[str | None, option("Another image than the deployment's.")] = None,
    port: Annotated[int | None, option("Another port than the deployment's.", min=1, max=65535)] = None,
    cache_dir: Annotated[str | None, option("Another cache folder than the deployment's.")] = None,
    launcher: Annotated[str, option("How servers would be started.", metavar="docker|process")] = "docker",
    vllm_command: Annotated[str, option("process: what would be run.", metavar="CMD")] = "vllm serve",
    remove_leftovers: Annotated[
        bool, option("Stop and remove what dead qwenbench processes have left.", "--remove-leftovers")
    ] = False,
    as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False,
) -> int:
    """Check engine, runtime, GPU, driver, image, port, disk, token, clock, CPU governor, settings that cost speed and
    leftovers.

    Ends with status 1 when something that is needed is missing.
    """
    import asyncio
    from dataclasses import asdict, replace

    from qwenbench.engine.checkup import check_all
    from qwenbench.engine.deployments import find_deployment
    from qwenbench.engine.leftovers import find_leftovers, remove_leftover
    from qwenbench.observe.nvml import open_nvml

    if launcher not in ("docker", "process"):
        raise UsageError(f"--launcher {launcher!r}: choose docker or process (sim needs nothing).")

    config = find_deployment(deployment)
    docker = replace(
        config.docker,
        image=image or config.docker.image,
        cache_mount=f"{cache_dir}:/root/.cache" if cache_dir else config.docker.cache_mount,
    )
    config = replace(config, docker=docker, port=port or config.port)
    leftovers = find_leftovers(None)
    if remove_leftovers:
        for leftover in leftovers:
            gone = asyncio.run(remove_leftover(leftover))
            print(f"{leftover.name}: {'removed' if gone else 'could not be removed'}", file=sys.stderr)
        leftovers = find_leftovers(None)
    nvml, reason = open_nvml()
    gpus = nvml.gpus() if nvml is not None else []
    checks = check_all(config, gpus, reason, leftovers, vllm_command if launcher == "process" else None)
    status = int(any(check.status == "missing" for check in checks))
    if as_json:
        print_json({"checks": [asdict(check) for check in checks]}, one_line=True)
        return status
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.fix and check.status != "ok":
            print(f"{'':<7}  {'':<{width}}  -> {check.fix}")
    return status


def proxy(
    target: Annotated[str | None, option("The server, e.g. http://127.0.0.1:8000.", "--target")] = None,
    served_model: Annotated[str | None, option("The name under which it serves its model.", "--served-model")] = None,
    host: Annotated[str, option("Address to listen on.", "--host")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on; 0: a free one.", "--port", min=0, max=65535)] = 9000,
    prefix: Annotated[str, option("Virtual names are this and the profile's.", "--prefix")] = "qwen3.5-",
    enforce: Annotated[bool, option("Replace sampling parameters that a request brings along.", "--enforce")] = False,
) -> None:
    """Serve the four sampling profiles as virtual model names in front of one server. Ctrl-C ends it."""
    from qwenbench.proxy.relay import ProxyOptions
    from qwenbench.proxy.rewriting import virtual_models
    from qwenbench.proxy.target import parse_target

    if target is None or served_model is None:
        raise UsageError(
            "--target and --served-model are needed, e.g. --target http://127.0.0.1:8000 --served-model Qwen3.5-9B."
        )
    address = parse_target(target)
    options = ProxyOptions(served_model, virtual_models(prefix), enforce)
    run_asyncio(_serve(address, options, host, port))


async def _serve(address: TargetAddress, options: ProxyOptions, host: str, port: int) -> None:
    import asyncio
    import signal

    from qwenbench.proxy.relay import serving

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with serving(address, options, host, port) as bound:
        print(f"qwenbench proxy: http://{host}:{bound}/v1 serves {', '.join(options.models)}", file=sys.stderr)
        await ended.wait()


def simulate(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="MODEL, then vLLM's serve flags and --sim-* flags.")
    ] = None,
) -> None:
    """Serves a SIMULATED vLLM: the same flags, the same HTTP, no GPU."""
    from qwenbench.simulator.__main__ import main

    status = main(list(arguments or []))
    if status:
        raise typer.Exit(status)

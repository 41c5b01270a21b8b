"""`qwenbench doctor`: what this host lacks for a deployment, and what to do about it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def command(
    deployment: Annotated[str, typer.Option(help="The deployment to check for (name or path).")] = "generic",
    image: Annotated[str | None, typer.Option(help="Another image than the deployment's.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Another port than the deployment's.")] = None,
    cache_dir: Annotated[str | None, typer.Option(help="Another cache folder than the deployment's.")] = None,
    launcher: Annotated[str, typer.Option(help="How servers would be started.", metavar="docker|process")] = "docker",
    vllm_command: Annotated[str, typer.Option(help="process: what would be run.", metavar="CMD")] = "vllm serve",
    remove_leftovers: Annotated[
        bool, typer.Option("--remove-leftovers", help="Stop and remove what dead qwenbench processes have left.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Check engine, runtime, GPU, driver, image, port, disk, token, clock, CPU governor, settings that cost speed and
    leftovers.

    Ends with status 1 when something that is needed is missing.
    """
    import asyncio
    from dataclasses import replace

    from qwenbench.engine.checkup import check_all
    from qwenbench.engine.deployments import find_deployment
    from qwenbench.engine.leftovers import find_leftovers, remove_leftover
    from qwenbench.errors import UsageError
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
        import orjson

        print(orjson.dumps({"checks": [check.to_json() for check in checks]}).decode())
        return status
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{check.status:<7}  {check.name:<{width}}  {check.detail}")
        if check.fix and check.status != "ok":
            print(f"{'':<7}  {'':<{width}}  -> {check.fix}")
    return status

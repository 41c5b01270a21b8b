"""`qwenbench deployment`: the deployments that come with qwenbench, as lines to paste."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from qwenbench.cli.runs import option, print_json
from qwenbench.errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Shell(StrEnum):
    bash = "bash"
    powershell = "powershell"
    compose = "compose"


@app.callback(invoke_without_command=True)
def deployments(context: typer.Context) -> None:
    """The deployments that come with qwenbench, as lines to paste: `list`, `show NAME`."""
    if context.invoked_subcommand is None:
        list_deployments(as_json=False)
        print("\nqwenbench deployment show NAME [--shell bash|powershell|compose] prints one as a line to paste.")


@app.command("list")
def list_deployments(as_json: Annotated[bool, option("Print one JSON object.", "--json")] = False) -> None:
    """Names of the deployments and what they are for."""
    from qwenbench.engine.deployments import deployment_names, load_deployment

    files = [load_deployment(name) for name in deployment_names()]
    if as_json:
        rows = [{"name": f.name, "platform": f.platform, "description": f.description} for f in files]
        print_json({"deployments": rows}, one_line=True)
        return
    width = max(len(file.name) for file in files)
    for file in files:
        print(f"{file.name:<{width}}  {file.description}")


@app.command("show")
def show(
    name: Annotated[
        str | None, typer.Argument(help="A deployment's name, or the path of its YAML file.", show_default=False)
    ] = None,
    shell: Annotated[Shell | None, option("Default: powershell for deployments under WSL, otherwise bash.")] = None,
    as_json: Annotated[bool, option("Print all three as one JSON object.", "--json")] = False,
) -> None:
    """Print a deployment as a docker line or a compose file."""
    from qwenbench.engine.deployments import deployment_names, load_deployment
    from qwenbench.engine.docker.line import compose, docker_bash, docker_powershell

    if name is None:
        raise UsageError(f"show which? Give one of {', '.join(deployment_names())}, or the path of a YAML file.")
    deployment = load_deployment(name, "name")
    config = deployment.server()
    if as_json:
        answer = {
            "name": deployment.name,
            "platform": deployment.platform,
            "docker_bash": docker_bash(config),
            "docker_powershell": docker_powershell(config),
            "compose": compose(config),
        }
        print_json(answer, one_line=True)
        return
    chosen = shell or (Shell.powershell if deployment.platform == "wsl" else Shell.bash)
    write = {Shell.bash: docker_bash, Shell.powershell: docker_powershell, Shell.compose: compose}[chosen]
    print(write(config).rstrip("\n"))

"""From a run's launch.json to the lines that deploy that configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qwenbench.engine.config import DockerOptions, ServerConfig
from qwenbench.engine.docker.line import compose, docker_bash, docker_powershell

ATTACHED = "url"
"""Launcher of a server that was measured as it was found."""


@dataclass(frozen=True, slots=True)
class DeployLines:
    """How to start a configuration. None where the run does not tell enough."""

    bash: str | None = None
    powershell: str | None = None
    compose: str | None = None


def server_config_of(launch: Mapping[str, Any]) -> ServerConfig | None:
    """The server that a launch.json describes; None when it has no `server` (a server that was already there).

    With --card the launched flags hold the budget of a smaller card; `requested` has those to deploy on it.
    """
    server = launch.get("server")
    if not isinstance(server, Mapping):
        return None
    docker_names = {option.name for option in fields(DockerOptions)}
    docker = {name: value for name, value in (server.get("docker") or {}).items() if name in docker_names}
    given: dict[str, Any] = {name: server[name] for name in ("model", "served_model_name", "port") if name in server}
    return ServerConfig(
        **given,
        flags=dict(launch.get("requested") or server.get("flags") or {}),
        extra_args=tuple(server.get("extra_args") or ()),
        env=dict(server.get("env") or {}),
        env_names=tuple(server.get("env_names") or ()),
        docker=DockerOptions(**docker),
    )


def deploy_lines(launch: Mapping[str, Any]) -> DeployLines:
    """The docker run lines and the compose file of a launched configuration.

    None for a server that was already there: how it was started is not known, and is not made up.
    """
    config = server_config_of(launch)
    if config is None or launch.get("launcher") == ATTACHED:
        return DeployLines()
    return DeployLines(docker_bash(config), docker_powershell(config), compose(config))

"""From a run's launch.json to the lines that deploy that configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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


def deploy_lines(launch: Mapping[str, Any], vllm_version: str | None = None, port: int | None = None) -> DeployLines:
    """The docker run lines and the compose file of a launched configuration.

    The image is that of the version that was measured (`vllm_version`, where the launch used no image of it), the
    port the deployment's. None for a server that was already there: how it was started is not known, and is not made
    up.
    """
    config = server_config_of(launch)
    if config is None or launch.get("launcher") == ATTACHED:
        return DeployLines()
    if port is not None:
        config = replace(config, port=port)
    if launch.get("launcher") != "docker":
        docker = config.docker
        if vllm_version is not None:
            docker = replace(docker, image=image_of(docker.image, vllm_version))
        if docker.gpus and docker.gpus.strip('"').startswith("device="):
            docker = replace(docker, gpus="all")  # a card of the machine that measured; only Docker's user chose one
        config = replace(config, docker=docker)
    config = _with_real_weights(config)
    return DeployLines(docker_bash(config), docker_powershell(config), compose(config))


def _with_real_weights(config: ServerConfig) -> ServerConfig:
    """Without `--load-format dummy`: a run may measure random weights, nobody serves them."""
    flags = {name: value for name, value in config.flags.items() if (name, value) != ("load-format", "dummy")}
    kept: list[str] = []
    for word in config.extra_args:
        if word == "dummy" and kept and kept[-1] in ("--load-format", "--load_format"):
            kept.pop()
        elif word not in ("--load-format=dummy", "--load_format=dummy"):
            kept.append(word)
    return replace(config, flags=flags, extra_args=tuple(kept))


def image_of(image: str, vllm_version: str) -> str:
    """The image with the tag of this version of vLLM; as it is where it has that version, or another project's image.

    Tags such as `v0.18.0-cu130` keep their ending only for their own version: another one may not have it.
    """
    release = re.match(r"\d+\.\d+\.\d+", vllm_version)
    name, _, tag = image.rpartition(":")
    known = re.match(r"v?(\d+\.\d+\.\d+)", tag)
    if release is None or known is None or known[1] == release[0]:
        return image
    return f"{name}:v{release[0]}"

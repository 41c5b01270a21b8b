"""Deployments: whole server configurations as YAML files, the model card's three among them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qwenbench.engine.config import DockerOptions, FlagValue, ServerConfig
from qwenbench.masking import is_secret_name, refuse_secret_arguments
from qwenbench.workload.scenario import scenario_folder
from qwenbench.yaml_reader import named_file, names_in, parse_yaml_model, read_yaml_text


class DockerPart(BaseModel):
    """What a docker line needs beyond vLLM's flags."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = Field(min_length=1, description="Image with its tag.")
    runtime: str | None = Field(default="nvidia", description="--runtime; null leaves it out.")
    gpus: str | None = Field(default="all", description="--gpus; null leaves it out.")
    ipc: str | None = Field(default="host", description="--ipc; null leaves it out.")
    cache_mount: str | None = Field(default=None, description="HOST:CONTAINER for -v, e.g. /srv/cache:/root/.cache.")
    network: str | None = Field(default=None, description="--network.")


class DeploymentFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")
    description: str = Field(default="", description="One line for people.")
    platform: Literal["linux", "wsl"] = Field(default="linux", description="Where it is meant to run.")
    model: str = Field(min_length=1, description="Model name or folder.")
    served_model_name: str = Field(min_length=1)
    port: int = Field(default=8000, ge=1, le=65535)
    docker: DockerPart
    env_names: tuple[str, ...] = Field(default=(), description="Variables handed through by name, e.g. HF_TOKEN.")
    env: dict[str, str] = Field(default_factory=dict, description="Variables that are no secrets, with their values.")
    flags: dict[str, str | int | float | Literal[True]] = Field(
        default_factory=dict, description="vLLM's flags without dashes; true: a flag without a value."
    )
    extra_args: tuple[str, ...] = Field(default=(), description="Further arguments, last and verbatim.")

    @field_validator("env")
    @classmethod
    def _no_secret_values(cls, value: dict[str, str]) -> dict[str, str]:
        secret = next((name for name in value if is_secret_name(name)), None)
        if secret:
            raise ValueError(f"{secret} is a secret: list its name in env_names and export its value")
        return value

    @field_validator("flags")
    @classmethod
    def _flag_names(cls, value: dict[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
        for name in value:
            if name.startswith("-"):
                raise ValueError(f"write {name.lstrip('-')!r} without its dashes")
        return value

    def server(self) -> ServerConfig:
        flags: dict[str, FlagValue] = {
            name: None if value is True else str(value) for name, value in self.flags.items()
        }
        alike = self.model_dump(exclude={"name", "description", "platform", "flags", "docker"})
        return ServerConfig(**alike, flags=flags, docker=DockerOptions(**self.docker.model_dump()))


def deployment_folder() -> Path:
    """Where the deployments that come with qwenbench lie."""
    return scenario_folder() / "deployments"


def deployment_names() -> list[str]:
    return names_in(deployment_folder())


def load_deployment(name_or_path: str, what: str = "--deployment") -> DeploymentFile:
    """A deployment by its name or by the path of its file; `what` is what a message calls it.

    Raises UsageError: unknown name (with the near miss), unreadable file, malformed YAML (file, line, field),
    a secret among the arguments.
    """
    path = named_file(name_or_path, deployment_folder(), what)
    text = read_yaml_text(path, "deployment")
    deployment = parse_yaml_model(DeploymentFile, text, f"deployment {path}")
    refuse_secret_arguments(deployment.server().vllm_args(), f"deployment {path}")
    return deployment


def find_deployment(name_or_path: str) -> ServerConfig:
    return load_deployment(name_or_path).server()

r"""The docker line: what is shown to the user (the model card's; for bash, PowerShell and compose), and what is run.

What is run differs from what is shown by this list only, which a test holds:
- no --rm: the end state must be readable before the launcher removes the container itself;
- --init: SIGTERM reaches the server at once, also before its handler exists;
- --pull=never: the image was pulled before, where progress can be shown;
- a name of its own, so that nothing of the user's is in the way;
- labels that say whose container it is;
- variables that put compile caches into the cache mount, or for --caches fresh nowhere that is kept;
- a cache under a Windows path is mounted from where WSL sees it (E:\cache -> /mnt/e/cache), since the shown line is
  for a Windows terminal and qwenbench runs in WSL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml

from qwenbench.engine.config import ATTACHED, DockerOptions, ServerConfig

CONTAINER_PORT = 8000
"""vLLM's default port; the image's server listens there."""
_PLAIN = re.compile(r"\d+\Z")
_SAFE_FLAG = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9._=-]*\Z|[a-z]+\Z")
_MOUNT = re.compile(r"(?P<source>[A-Za-z]:[\\/][^:]*|[^:]+):(?P<target>[^:]+)(?::(?P<mode>[a-z,]+))?\Z")
PROXY_IMAGE = "qwenbench:latest"
"""Made from Dockerfile.bench."""
PROXY_PORT = 9000
_WINDOWS_MOUNT = re.compile(r"(?P<drive>[A-Za-z]):(?P<folder>[\\/][^:]*)(?P<rest>:.*)\Z")


class Value(str):
    """A word of the line that is quoted when it is shown, where a flag is not."""

    __slots__ = ()


Group = tuple[str, ...]
"""Words that stand on one line of the shown command."""


def container_name(config: ServerConfig) -> str:
    """The name in the shown line: the model's, as in the model card."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", config.model.rstrip("/").rsplit("/", 1)[-1]).lstrip("_.-")
    return name if len(name) > 1 else f"vllm-{name}"  # Docker wants two characters


def shown_groups(config: ServerConfig) -> list[Group]:
    """The docker line that is shown for a configuration, line by line."""
    docker = config.docker
    devices: Group = ()
    if docker.runtime:
        devices += (f"--runtime={docker.runtime}",)
    if docker.gpus:
        devices += ("--gpus", Value(docker.gpus))
    if docker.ipc:
        devices += (f"--ipc={docker.ipc}",)
    options = [
        *([("--network", docker.network)] if docker.network else []),
        *(("-e", name) for name in config.env_names),
        *(("-e", f"{name}={text}") for name, text in config.env.items()),
        *(("-v", mount) for mount in _mounts(docker)),
        ("-p", f"{_published(config.host)}:{config.port}:{CONTAINER_PORT}"),
    ]
    return [
        ("docker", "run", "--rm", "--name", Value(container_name(config))),
        *([devices] if devices else []),
        *((flag, Value(text)) for flag, text in options),
        (Value(docker.image),),
        (Value(config.model),),
        *_argument_groups(config.vllm_args()),
    ]


def _mounts(docker: DockerOptions) -> list[str]:
    return [mount for mount in (docker.cache_mount, docker.model_mount) if mount]


def _published(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _argument_groups(arguments: list[str]) -> list[Group]:
    """vLLM's arguments, each flag with its values on one line."""
    groups: list[Group] = []
    for argument in arguments:
        if not groups or argument.startswith("--"):
            groups.append(())
        plain = argument.startswith("--") and "=" not in argument
        groups[-1] += (argument if plain else Value(argument),)
    return groups


def shown_argv(config: ServerConfig) -> list[str]:
    return [str(word) for group in shown_groups(config) for word in group]


def run_argv(
    config: ServerConfig,
    name: str,
    labels: Mapping[str, str],
    caching: Mapping[str, str] | None = None,
    docker: str = "docker",
) -> list[str]:
    """What is run for it: the shown line with the documented differences; `caching` are engine.caches' variables."""
    own = [docker, "run", "--init", "--pull=never", "--name", name]
    for key, text in labels.items():
        own += ["--label", f"{key}={text}"]
    for key, text in (caching or {}).items():
        own += ["-e", f"{key}={text}"]  # before the deployment's own, which count
    shown = shown_argv(config)[len(shown_groups(config)[0]) :]
    mount = config.docker.cache_mount
    if mount is not None and (seen := seen_from_wsl(mount)) != mount:
        shown[shown.index(mount)] = seen
    return own + shown


def seen_from_wsl(mount: str) -> str:
    """A mount whose host part is a Windows path, with that path as WSL mounts its drive; others unchanged."""
    found = _WINDOWS_MOUNT.match(mount)
    if found is None:
        return mount
    folder = found["folder"].replace("\\", "/").strip("/")
    return f"/mnt/{found['drive'].lower()}/{folder}".rstrip("/") + found["rest"]


def docker_bash(config: ServerConfig) -> str:
    """The docker line for bash, as the model card writes it."""
    return _joined(config, " \\\n  ", "'\\''")


def docker_powershell(config: ServerConfig) -> str:
    """The docker line for PowerShell: back-ticks at the ends of lines."""
    return _joined(config, " `\n  ", "''")


def _joined(config: ServerConfig, separator: str, inner_quote: str) -> str:
    def shown(word: str) -> str:
        bare = _PLAIN.match(word) if isinstance(word, Value) else _SAFE_FLAG.match(word)
        return word if bare else "'" + word.replace("'", inner_quote) + "'"

    return separator.join(" ".join(map(shown, group)) for group in shown_groups(config))


def compose(config: ServerConfig) -> str:
    """A compose file: the server with a health check, and the profiles' proxy (`--profile proxy`)."""
    document: dict[str, Any] = {
        "name": container_name(config).lower().replace(".", "-"),
        "services": {"vllm": _vllm_service(config), "proxy": _proxy_service(config)},
    }
    if config.docker.network:
        document["networks"] = {"default": {"name": config.docker.network, "external": True}}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _vllm_service(config: ServerConfig) -> dict[str, Any]:
    docker = config.docker
    service = {
        "image": docker.image,
        "command": [_escaped(word) for word in (config.model, *config.vllm_args())],
        "restart": "unless-stopped",
        "runtime": docker.runtime,
        "ipc": docker.ipc,
        "environment": [*config.env_names, *(f"{name}={_escaped(text)}" for name, text in config.env.items())],
        "volumes": [_volume(mount) for mount in _mounts(docker)],
        "ports": [f"127.0.0.1:{config.port}:{CONTAINER_PORT}"],
        # a first start downloads the model and compiles
        "healthcheck": {**_healthcheck("python3", CONTAINER_PORT), "retries": 6, "start_period": "20m"},
        "deploy": docker.gpus and {"resources": {"reservations": {"devices": [_devices(docker.gpus)]}}},
    }
    return {name: value for name, value in service.items() if value}


def _proxy_service(config: ServerConfig) -> dict[str, Any]:
    return {
        "image": PROXY_IMAGE,
        "profiles": ["proxy"],
        "command": [
            *f"proxy --target http://vllm:{CONTAINER_PORT} --host 0.0.0.0 --port {PROXY_PORT}".split(),
            "--served-model",
            _escaped(config.served_model_name),
        ],
        "ports": [f"127.0.0.1:{PROXY_PORT}:{PROXY_PORT}"],
        "depends_on": {"vllm": {"condition": "service_healthy"}},
        "healthcheck": _healthcheck("python", PROXY_PORT),
        "restart": "unless-stopped",
    }


def _healthcheck(python: str, port: int) -> dict[str, Any]:
    ask = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/health', timeout=5)"
    return {"test": ["CMD", python, "-c", ask], "interval": "10s", "timeout": "6s"}


def _escaped(text: str) -> str:
    return text.replace("$", "$$")  # compose replaces $NAME


def _volume(mount: str) -> dict[str, Any]:
    found = _MOUNT.match(mount)
    if found is None:
        return {"type": "bind", "source": mount, "target": "/root/.cache"}
    volume: dict[str, Any] = {"type": "bind", "source": _escaped(found["source"]), "target": found["target"]}
    if "ro" in (found["mode"] or "").split(","):
        volume["read_only"] = True
    return volume


def _devices(gpus: str) -> dict[str, Any]:
    wanted: dict[str, Any] = {"count": int(gpus) if gpus.isdigit() else gpus}
    if gpus != "all" and not gpus.isdigit():
        wanted = {"device_ids": gpus.strip('"').removeprefix("device=").split(",")}
    return {"driver": "nvidia", **wanted, "capabilities": ["gpu"]}


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
    config = _deployable(config)
    return DeployLines(docker_bash(config), docker_powershell(config), compose(config))


def _deployable(config: ServerConfig) -> ServerConfig:
    """Without the simulator's own flags, which no vLLM takes, and without `--load-format dummy`: a run may measure
    random weights, nobody serves them."""

    def wanted(name: str, value: str | None) -> bool:
        return not name.startswith("sim-") and (name, value) != ("load-format", "dummy")

    options: list[list[str]] = []
    for word in config.extra_args:
        if not options or re.match("-{1,2}[A-Za-z]", word):
            options.append([])
        options[-1].append(word)
    kept: list[str] = []
    for option in options:
        name, _, value = option[0].removeprefix("--").partition("=")
        if wanted(name.replace("_", "-"), value or next(iter(option[1:]), None)):
            kept += option
    flags = {name: value for name, value in config.flags.items() if wanted(name, value)}
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

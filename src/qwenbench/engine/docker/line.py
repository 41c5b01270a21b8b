"""The docker line: what is shown to the user (the model card's), and what is run.

What is run differs from what is shown by this list only, which a test holds:
- no --rm: the end state must be readable before the launcher removes the container itself;
- --init: SIGTERM reaches the server at once, also before its handler exists;
- --pull=never: the image was pulled before, where progress can be shown;
- a name of its own, so that nothing of the user's is in the way;
- labels that say whose container it is;
- a cache under a Windows path is mounted from where WSL sees it (E:\\cache -> /mnt/e/cache), since the shown line is
  for a Windows terminal and qwenbench runs in WSL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qwenbench.engine.config import ServerConfig

CONTAINER_PORT = 8000
"""vLLM's default port; the image's server listens there."""
_WINDOWS_MOUNT = re.compile(r"(?P<drive>[A-Za-z]):(?P<folder>[\\/][^:]*)(?P<rest>:.*)\Z")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the line; values are quoted when they are shown, flags are not."""

    text: str
    value: bool = False


Group = tuple[Word, ...]
"""Words that stand on one line of the shown command."""


def _flag(text: str) -> Word:
    return Word(text)


def _value(text: str) -> Word:
    return Word(text, value=True)


def container_name(config: ServerConfig) -> str:
    """The name in the shown line: the model's, as in the model card."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", config.model.rstrip("/").rsplit("/", 1)[-1]).lstrip("_.-")
    return name if len(name) > 1 else f"vllm-{name}"  # Docker wants two characters


def shown_groups(config: ServerConfig) -> list[Group]:
    """The docker line that is shown for a configuration, line by line."""
    docker = config.docker
    groups: list[Group] = [(*map(_flag, ("docker", "run", "--rm", "--name")), _value(container_name(config)))]
    devices: Group = ()
    if docker.runtime:
        devices += (_flag(f"--runtime={docker.runtime}"),)
    if docker.gpus:
        devices += (_flag("--gpus"), _value(docker.gpus))
    if docker.ipc:
        devices += (_flag(f"--ipc={docker.ipc}"),)
    if devices:
        groups.append(devices)
    if docker.network:
        groups.append((_flag("--network"), _value(docker.network)))
    groups += [(_flag("-e"), _value(name)) for name in config.env_names]
    groups += [(_flag("-e"), _value(f"{name}={text}")) for name, text in config.env.items()]
    if docker.cache_mount:
        groups.append((_flag("-v"), _value(docker.cache_mount)))
    groups.append((_flag("-p"), _value(f"127.0.0.1:{config.port}:{CONTAINER_PORT}")))
    groups.append((_value(docker.image),))
    groups.append((_value(config.model),))
    return groups + _argument_groups(config.vllm_args())


def _argument_groups(arguments: list[str]) -> list[Group]:
    """vLLM's arguments, each flag with its values on one line."""
    groups: list[Group] = []
    for argument in arguments:
        if argument.startswith("--"):
            groups.append((_flag(argument) if "=" not in argument else _value(argument),))
        elif groups:
            groups[-1] += (_value(argument),)
        else:
            groups.append((_value(argument),))
    return groups


def shown_argv(config: ServerConfig) -> list[str]:
    """The shown line as words."""
    return [word.text for group in shown_groups(config) for word in group]


def run_argv(config: ServerConfig, name: str, labels: Mapping[str, str], docker: str = "docker") -> list[str]:
    """What is run for it: the shown line with the documented differences."""
    first, *rest = shown_groups(config)
    assert [word.text for word in first[:4]] == ["docker", "run", "--rm", "--name"]
    own = [docker, "run", "--init", "--pull=never", "--name", name]
    for key, text in labels.items():
        own += ["--label", f"{key}={text}"]
    shown = [word.text for group in rest for word in group]
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

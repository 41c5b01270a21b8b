"""A configuration as something to paste: a bash line, a PowerShell line, a compose file."""

from __future__ import annotations

import re
from typing import Any

import yaml

from qwenbench.engine.config import ServerConfig
from qwenbench.engine.docker.line import CONTAINER_PORT, Word, container_name, shown_groups

_PLAIN = re.compile(r"\d+\Z")
_SAFE_FLAG = re.compile(r"--?[A-Za-z0-9][A-Za-z0-9._=-]*\Z|[a-z]+\Z")
_MOUNT = re.compile(r"(?P<source>[A-Za-z]:[\\/][^:]*|[^:]+):(?P<target>[^:]+)(?::(?P<mode>[a-z,]+))?\Z")
_HEALTH = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}/health', timeout=5)"
PROXY_IMAGE = "qwenbench:latest"
"""Made from Dockerfile.bench."""
PROXY_PORT = 9000


def docker_bash(config: ServerConfig) -> str:
    """The docker line for bash, as the model card writes it."""
    return _joined(config, " \\\n  ", _bash_word)


def docker_powershell(config: ServerConfig) -> str:
    """The docker line for PowerShell: back-ticks at the ends of lines."""
    return _joined(config, " `\n  ", _powershell_word)


def _joined(config: ServerConfig, separator: str, quote: Any) -> str:
    return separator.join(" ".join(quote(word) for word in group) for group in shown_groups(config))


def _bash_word(word: Word) -> str:
    if _stands_bare(word):
        return word.text
    return "'" + word.text.replace("'", "'\\''") + "'"


def _powershell_word(word: Word) -> str:
    if _stands_bare(word):
        return word.text
    return "'" + word.text.replace("'", "''") + "'"


def _stands_bare(word: Word) -> bool:
    return bool(_PLAIN.match(word.text)) if word.value else bool(_SAFE_FLAG.match(word.text))


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
    service: dict[str, Any] = {
        "image": docker.image,
        "command": [_escaped(word) for word in (config.model, *config.vllm_args())],
        "restart": "unless-stopped",
    }
    if docker.runtime:
        service["runtime"] = docker.runtime
    if docker.ipc:
        service["ipc"] = docker.ipc
    environment = [*config.env_names, *(f"{name}={_escaped(text)}" for name, text in config.env.items())]
    if environment:
        service["environment"] = environment
    if docker.cache_mount:
        service["volumes"] = [_volume(docker.cache_mount)]
    service["ports"] = [f"127.0.0.1:{config.port}:{CONTAINER_PORT}"]
    service["healthcheck"] = {
        "test": ["CMD", "python3", "-c", _HEALTH.format(port=CONTAINER_PORT)],
        "interval": "10s",
        "timeout": "6s",
        "retries": 6,
        "start_period": "20m",  # a first start downloads the model and compiles
    }
    if docker.gpus:
        service["deploy"] = {"resources": {"reservations": {"devices": [_devices(docker.gpus)]}}}
    return service


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
        "healthcheck": {
            "test": ["CMD", "python", "-c", _HEALTH.format(port=PROXY_PORT)],
            "interval": "10s",
            "timeout": "6s",
        },
        "restart": "unless-stopped",
    }


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
    wanted: dict[str, Any] = {"driver": "nvidia"}
    ids = gpus.strip('"').removeprefix("device=")
    if gpus == "all":
        wanted["count"] = "all"
    elif gpus.isdigit():
        wanted["count"] = int(gpus)
    else:
        wanted["device_ids"] = ids.split(",")
    wanted["capabilities"] = ["gpu"]
    return wanted

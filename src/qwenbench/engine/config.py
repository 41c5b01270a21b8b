"""One typed description of a vLLM server: what is printed, recorded and run all come from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

ATTACHED = "url"
"""Launcher of a server that was there already, and was measured as it was found (bench)."""
FlagValue = str | None
"""None: a flag without a value (`--enable-auto-tool-choice`)."""


@dataclass(frozen=True, slots=True)
class DockerOptions:
    """What a `docker run` line needs beyond vLLM's own flags."""

    image: str = "vllm/vllm-openai:v0.18.0-cu130"
    runtime: str | None = "nvidia"
    gpus: str | None = "all"
    ipc: str | None = "host"
    cache_mount: str | None = "/srv/cache:/root/.cache"
    network: str | None = None
    model_mount: str | None = None
    """HOST:CONTAINER:ro for -v, where the model is a folder of this machine."""


@dataclass(frozen=True, slots=True)
class AssignedCard:
    index: int
    """NVML's number, in the order of PCI bus ids; CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    uuid: str
    """GPU-xxxxxxxx-..."""
    name: str
    """The product's name."""


@dataclass(frozen=True, slots=True)
class Gpu(AssignedCard):
    """A card of this machine, as NVML knows it."""

    total_mib: float
    """Total memory, as NVML reports it."""
    driver: str
    """The driver's version."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A vLLM server as it will be launched.

    `flags` are vLLM flags in the order in which they are printed, without leading dashes
    (`{"max-num-seqs": "64"}`); `extra_args` come last, verbatim (`--vllm-arg`).
    """

    model: str = "ig1/Qwen3.5-9B-NVFP4"
    served_model_name: str = "Qwen3.5-9B"
    flags: Mapping[str, FlagValue] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    """Values that are no secrets (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=1)."""
    env_names: tuple[str, ...] = ("HF_TOKEN",)
    """Names of variables passed through from the environment; their values are never written anywhere."""
    docker: DockerOptions = DockerOptions()
    cards: tuple[AssignedCard, ...] = ()
    """The cards that it was given, and is watched on; empty: it takes what it finds."""
    host: str = "127.0.0.1"
    """Where it listens. Another address than loopback only where its load comes from another node of a cluster."""
    port: int = 8000
    max_model_len: int | None = None
    """As a server that runs already tells it, in tokens."""

    def with_flag(self, name: str, value: FlagValue) -> ServerConfig:
        """A copy in which the flag has this value: replaced where it stood, else added at the end."""
        return replace(self, flags={**self.flags, name: value})

    def int_flag(self, name: str) -> int | None:
        """The value of a flag as an integer; None when it is unset or not a whole number (`auto`)."""
        value = self.flags.get(name)
        try:
            return int(value) if value is not None else None
        except ValueError:
            return None

    @property
    def capture(self) -> int | None:
        return self.int_flag("max-cudagraph-capture-size")

    @property
    def max_num_seqs(self) -> int | None:
        return self.int_flag("max-num-seqs")

    @property
    def gpu_memory_utilization(self) -> float | None:
        """--gpu-memory-utilization as requested, a fraction of the card."""
        value = self.flags.get("gpu-memory-utilization")
        return float(value) if value is not None else None

    def vllm_args(self) -> list[str]:
        """vLLM's arguments after `vllm serve MODEL` (or after the image and model in a docker line)."""
        args = ["--served-model-name", self.served_model_name]
        for name, value in self.flags.items():
            args.append(f"--{name}")
            if value is not None:
                args.append(value)
        return args + list(self.extra_args)


@dataclass(frozen=True)
class Configuration:
    config_id: str
    server: ServerConfig
    """As asked for; what is launched may differ in its budget (--card)."""
    vary: Mapping[str, str]
    """--vary flag -> its value here."""
    utilization: float | None
    """--gpu-memory-utilization as asked for (with --card: of that card)."""

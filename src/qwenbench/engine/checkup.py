"""What a host has and lacks for measuring a deployment: one check a line, each with what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwenbench.engine import failures, readiness
from qwenbench.engine.config import Gpu, ServerConfig
from qwenbench.engine.docker import command
from qwenbench.engine.failures import LaunchError
from qwenbench.engine.flags import flags_of
from qwenbench.engine.leftovers import Leftover
from qwenbench.input_files import GIB
from qwenbench.masking import Masker

Status = Literal["ok", "warning", "missing"]
_MODEL_AND_CACHE_GIB = 30.0
"""Room for an 8 GB model, its compile cache and a spare; the image is kept elsewhere."""
_DRIVERS = {"13": 580, "12.8": 570, "12.9": 575}
"""Lowest NVIDIA driver branch on Linux for a CUDA version, from NVIDIA's CUDA release notes."""
_CUDA_TAG = re.compile(r"-cu(\d{2})(\d)\b")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_GOVERNORS = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"
_SAMPLER_COST = (
    "top-k and top-p without FlashInfer's sampler took 9 for 6 ms a token at 16 streams, 14 for 10 at 64 "
    "(H100, vLLM 0.26)"
)
_SLOW_VARIABLES = {
    "VLLM_USE_FLASHINFER_SAMPLER": ("0", _SAMPLER_COST),
    "CUDA_LAUNCH_BLOCKING": ("1", "every kernel is waited for"),
    "VLLM_DISABLE_COMPILE_CACHE": ("1", "every start compiles anew (40 to 60 s)"),
    "VLLM_ENABLE_V1_MULTIPROCESSING": ("0", "the engine shares its process with the HTTP server"),
    "VLLM_LOGGING_LEVEL": ("DEBUG", "the log itself takes time"),
}
_SLOW_FLAGS = {
    "enforce-eager": "no CUDA graphs: every step launches its kernels one by one",
    "no-async-scheduling": "a step waits for the scheduler: 21 % fewer tokens/s at one stream, 16 % at 64 (H100)",
    "no-enable-chunked-prefill": "a long prompt stops all others",
}
"""Costs measured on vLLM 0.26, H100: docs/memory.md and engine/speed_settings.py."""
_SM_120 = re.compile(r"RTX 50\d\d|RTX PRO \d000 Blackwell|GB10\b|RTX PRO [456]000\b")
_TOOLKIT_OF_SM_120 = (12, 9)
_ON_ENGINE = ("runtime", "image")
_STEADY_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    status: Status
    detail: str
    fix: str = ""


async def check_docker(config: ServerConfig) -> list[Check]:
    """Engine, NVIDIA runtime and image; the later ones cannot be told when the engine does not answer."""
    try:
        said = await command.docker("info", "--format", "{{json .}}")
    except LaunchError as error:
        return _no_engine(error.failure.evidence, error.failure.advice)
    info: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        info = json.loads(said.out) or {}
    problems = said.err.strip() or "; ".join(info.get("ServerErrors") or [])
    if not said.ok or not info.get("ServerVersion"):
        failure = failures.explain(problems, said.code)
        return _no_engine(failure.evidence, failure.advice)
    where = "rootless " if any("rootless" in option for option in info.get("SecurityOptions") or []) else ""
    engine = Check("engine", "ok", f"{where}Docker Engine {info['ServerVersion']} ({info.get('OperatingSystem', '')})")
    return [engine, _runtime(config, info), await _image(config)]


def _no_engine(evidence: str, advice: str) -> list[Check]:
    rest = [
        Check(name, "missing", "cannot be told without an engine", "Start the engine first.") for name in _ON_ENGINE
    ]
    return [Check("engine", "missing", evidence, advice), *rest]


def _runtime(config: ServerConfig, info: Mapping[str, Any]) -> Check:
    wanted = config.docker.runtime
    runtimes = sorted(info.get("Runtimes") or {})
    if wanted is None:
        return Check("runtime", "ok", "the deployment asks for none")
    if wanted in runtimes:
        return Check("runtime", "ok", f"--runtime={wanted} is known to the engine")
    fix = (
        "Install nvidia-container-toolkit, then sudo nvidia-ctk runtime configure --runtime=docker "
        "&& sudo systemctl restart docker."
    )
    return Check("runtime", "missing", f"the engine knows {', '.join(runtimes)}, not {wanted}", fix)


async def _image(config: ServerConfig) -> Check:
    image = config.docker.image
    try:
        digest = await command.image_digest(image)
    except LaunchError as error:
        return Check("image", "missing", error.failure.evidence, error.failure.advice)
    if digest is None:
        told = f"{image} is not on this host: the first launch pulls it"
        return Check("image", "warning", told, f"docker pull {image}")
    return Check("image", "ok", f"{image} ({digest.rpartition('@')[2][:19]})")


def check_gpu(gpus: Sequence[Gpu], reason: str, config: ServerConfig) -> list[Check]:
    """Cards, and whether the driver is new enough for the image's CUDA; `reason` is why NVML shows no card."""
    if not gpus:
        fix = "Install NVIDIA's driver and check with nvidia-smi. Without a card: --launcher sim, or bench --url."
        return [Check("gpu", "missing", reason, fix), Check("driver", "missing", "no driver answers", fix)]
    cards = ", ".join(f"{gpu.name} ({gpu.total_mib:,.0f} MiB)" for gpu in gpus)
    return [Check("gpu", "ok", cards), _driver(gpus[0].driver, config.docker.image)]


def _driver(version: str, image: str) -> Check:
    tag = _CUDA_TAG.search(image)
    if tag is None:
        return Check("driver", "ok", f"NVIDIA {version}")
    cuda = f"{tag[1]}.{tag[2]}"
    needed = _DRIVERS.get(cuda) or _DRIVERS.get(tag[1])
    branch = version.partition(".")[0]
    if needed is None or not branch.isdigit():
        return Check("driver", "ok", f"NVIDIA {version}; which driver CUDA {cuda} needs is not known here")
    if int(branch) >= needed:
        return Check("driver", "ok", f"NVIDIA {version} runs CUDA {cuda} (needs {needed} or later)")
    fix = f"Update the driver to {needed} or later, or choose an image for an older CUDA with --image."
    return Check("driver", "missing", f"NVIDIA {version} is too old for {image} (CUDA {cuda})", fix)


def check_port(config: ServerConfig) -> Check:
    if readiness.port_in_use(config.host, config.port):
        fix = "Stop what runs there, or choose another with --port."
        return Check("port", "missing", f"{config.port} is in use", fix)
    return Check("port", "ok", f"{config.port} is free")


def check_disk(config: ServerConfig) -> Check:
    mount = config.docker.cache_mount
    if mount is None:
        return Check("disk", "warning", "no cache mount: every launch downloads the model", "Set one with --cache-dir.")
    if re.match(r"[A-Za-z]:[\\/]", mount):
        return Check("disk", "ok", f"{mount}: a Windows path, not visible from here")
    folder = Path(mount.split(":")[0]).expanduser()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / GIB
    detail = f"{free:.0f} GiB free for {folder}" + ("" if folder.exists() else " (Docker will create it)")
    if free < _MODEL_AND_CACHE_GIB:
        fix = "Free space (docker system df), or move the cache with --cache-dir."
        detail += f"; a model with its caches takes up to {_MODEL_AND_CACHE_GIB:.0f}"
        return Check("disk", "warning", detail, fix)
    return Check("disk", "ok", detail)


def check_token(environ: Mapping[str, str] = os.environ) -> Check:
    """Whether HF_TOKEN is set; never its value."""
    if environ.get("HF_TOKEN"):
        return Check("hf_token", "ok", "HF_TOKEN is set")
    return Check("hf_token", "warning", "HF_TOKEN is not set", "Only gated models need it: export HF_TOKEN=...")


def check_clock(source: Path = _CLOCK) -> Check:
    """Whether the kernel's clock is read from a steady counter: all latencies come from it."""
    try:
        name = source.read_text().strip()
    except OSError:
        return Check("clock", "warning", "the kernel's clock source cannot be read", "Measure on Linux.")
    if name in _STEADY_CLOCKS:
        return Check("clock", "ok", f"clock source {name}")
    fix = "A slow clock source costs CPU at every time stamp: boot with clocksource=tsc where the CPU allows it."
    return Check("clock", "warning", f"clock source {name}", fix)


def check_governor(pattern: str = _GOVERNORS) -> Check:
    """Whether the CPU keeps its clock up while the client measures."""
    found = {path.read_text().strip() for path in Path("/").glob(pattern.lstrip("/"))}
    if found <= {"performance"}:
        return Check("cpu_governor", "ok", "performance" if found else "the CPU clock is not governed from here")
    fix = "sudo cpupower frequency-set -g performance, for measurements that can be compared."
    return Check("cpu_governor", "warning", ", ".join(sorted(found)), fix)


def check_command(vllm_command: str) -> Check:
    words = vllm_command.split()
    found = shutil.which(words[0]) if words else None
    if found is not None:
        return Check("vllm", "ok", found)
    fix = "Install vLLM, or give its path: --vllm-command '/opt/vllm/bin/vllm serve'."
    return Check("vllm", "missing", f"{words[0] if words else 'nothing'} is no program that can be run here", fix)


def check_toolkit(gpus: Sequence[Gpu], environ: Mapping[str, str] = os.environ) -> Check:
    """The CUDA toolkit that FlashInfer compiles its kernels with (--launcher process; images bring their own).

    An RTX 50 card with one before 12.9 loses FlashInfer's sampler (vllm#48956); vLLM before that change died at start
    (vllm#42393, #50705).
    """
    home = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else None
    nvcc = nvcc or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    fix = (
        "Install CUDA toolkit 12.9 or newer and point CUDA_HOME at it, or flashinfer-jit-cache in its version. "
        f"Without: {_SAMPLER_COST}"
    )
    if nvcc is None:
        return Check("cuda_toolkit", "warning", "no nvcc: FlashInfer can compile no kernel that its wheel lacks", fix)
    version = _nvcc_version(nvcc)
    if version is None:
        return Check("cuda_toolkit", "warning", f"{nvcc} does not tell its version", fix)
    told = f"CUDA {version[0]}.{version[1]} ({nvcc})"
    blackwell = [gpu.name for gpu in gpus if _SM_120.search(gpu.name)]
    if blackwell and version < _TOOLKIT_OF_SM_120:
        return Check("cuda_toolkit", "warning", f"{told} does not know {blackwell[0]}: no FlashInfer sampler", fix)
    return Check("cuda_toolkit", "ok", told)


def _nvcc_version(nvcc: str) -> tuple[int, int] | None:
    try:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"release (\d+)\.(\d+)", said)
    return None if found is None else (int(found[1]), int(found[2]))


def check_speed(config: ServerConfig, environ: Mapping[str, str] = os.environ) -> Check:
    """Settings of the deployment, and of this environment for processes, that cost speed in silence."""
    found = [
        f"{name}={value}: {cost}"
        for name, (value, cost) in _SLOW_VARIABLES.items()
        if (config.env.get(name) or environ.get(name)) == value
    ]
    given = flags_of(config)
    found += [f"--{flag}: {cost}" for flag, cost in _SLOW_FLAGS.items() if flag in given]
    if not found:
        return Check("speed", "ok", "nothing that is known to cost speed is set")
    return Check("speed", "warning", "; ".join(found), "Leave it out, unless it is what you want to measure.")


def check_leftovers(leftovers: Sequence[Leftover]) -> Check:
    if not leftovers:
        return Check("leftovers", "ok", "none")
    names = ", ".join(left.name + (f" of run {left.run_id}" if left.run_id else "") for left in leftovers)
    return Check("leftovers", "warning", names, "qwenbench doctor --remove-leftovers, or sweep --resume of that run.")


def check_all(
    config: ServerConfig,
    gpus: Sequence[Gpu],
    no_gpu_reason: str,
    leftovers: Sequence[Leftover],
    vllm_command: str | None = None,
) -> list[Check]:
    """Every check for one deployment, secrets masked: as containers, or as processes of `vllm_command`.

    Takes up to 20 s when the engine hangs.
    """
    by_launcher = (
        asyncio.run(check_docker(config))
        if vllm_command is None
        else [check_command(vllm_command), check_toolkit(gpus)]
    )
    checks = [
        *by_launcher,
        *check_gpu(gpus, no_gpu_reason, config),
        check_speed(config, {} if vllm_command is None else os.environ),
        check_port(config),
        check_disk(config),
        check_token(),
        check_clock(),
        check_governor(),
        check_leftovers(leftovers),
    ]
    mask = Masker.from_environment(config.env_names)
    return [Check(check.name, check.status, mask(" ".join(check.detail.split())), check.fix) for check in checks]

"""What a sweep was asked for: one value that the command line, a campaign file and run.json share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from qwenbench.errors import UsageError

T = TypeVar("T", int, float, str)

_FLAG = re.compile(r"[a-z0-9][a-z0-9._-]*\Z")
_REQUESTS = re.compile(r"\d+x?\Z|\d+\.\d+x\Z")


class SweepOptions(BaseModel):
    """Options of `sweep`, checked. None means: not asked for, so the deployment's or the scenario's value holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # the server's side
    capture: tuple[int, ...] | None = Field(default=None, description="--max-cudagraph-capture-size values.")
    max_num_seqs: Literal["match"] | tuple[int, ...] = Field(default="match", description="match follows capture.")
    gpu_memory_utilization: tuple[float, ...] | None = Field(default=None, description="Fractions of the card.")
    vary: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="Further vLLM flags as dimensions.")
    launcher: Literal["docker", "process", "sim", "url"] = "docker"
    deployment: str = Field(default="generic", description="The deployment to start from.")
    model: str | None = None
    served_model_name: str | None = None
    image: str | None = None
    cache_dir: str | None = Field(default=None, description="Host folder for the image's /root/.cache.")
    vllm_command: str = "vllm serve"
    vllm_arg: tuple[str, ...] = ()
    port: int | None = Field(default=None, ge=1, le=65535)
    card: str | None = None
    devices: tuple[str, ...] = ()
    startup_timeout_s: float = Field(default=1200.0, gt=0)
    # the load's side
    scenario: tuple[str, ...] = ("conversation", "math", "code", "multilingual")
    concurrency: tuple[int, ...] = (1, 8, 32, 64)
    rate: tuple[float, ...] = ()
    burstiness: float | Literal["constant"] | None = None
    ramp_s: float = Field(default=0.0, ge=0)
    trace: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    ignore_eos: bool = True
    prefix_reuse: Literal["none", "natural"] = "none"
    profile: str | None = None
    requests: str | None = None
    duration_s: float | None = Field(default=None, gt=0)
    endpoint: Literal["chat", "completions"] = "chat"
    extra_body: dict[str, Any] = Field(default_factory=dict)
    header_env: dict[str, str] = Field(default_factory=dict, description="Header name -> environment variable.")
    bearer_env: str | None = Field(default=None, description="Environment variable that holds the API key.")
    timeout_s: float = Field(default=600.0, gt=0)
    slo: dict[str, float] = Field(default_factory=dict, description="Per-request limits in ms for goodput.")
    save_text: bool = False
    client_processes: int | None = Field(default=None, ge=1)
    client_cpus: tuple[int, ...] = ()
    # the plan
    repeats: int = Field(default=1, ge=1, le=1000)
    relaunch_repeats: int = Field(default=1, ge=1, le=100)
    until_ci: float | None = Field(default=None, gt=0, lt=1)
    order: Literal["listed", "shuffled"] = "shuffled"
    seed: int = Field(default=0, ge=0)
    canary: bool = False
    force: bool = False

    @field_validator("requests")
    @classmethod
    def _requests(cls, value: str | None) -> str | None:
        if value is not None and (not _REQUESTS.match(value) or float(value.rstrip("x")) <= 0):
            raise ValueError("give N or Nx, e.g. 200 or 4x")
        return value


def parse_list(text: str, option: str, kind: Callable[[str], T], check: Callable[[T], str | None]) -> tuple[T, ...]:
    """Reads `a,b,c`. Raises UsageError for empty, non-numeric, refused (`check` says why) or repeated values."""
    values: list[T] = []
    for part in text.split(","):
        word = part.strip()
        if not word:
            raise UsageError(f"{option} {text!r}: an empty value. Give numbers separated by commas, e.g. 16,32,64.")
        try:
            value = kind(word)
        except ValueError:
            raise UsageError(f"{option} {text!r}: {word!r} is no number.") from None
        problem = check(value)
        if problem:
            raise UsageError(f"{option} {text!r}: {word} {problem}.")
        if value in values:
            raise UsageError(f"{option} {text!r}: {word} stands twice.")
        values.append(value)
    return tuple(values)


def positive(value: float) -> str | None:
    """A check for `parse_list`: numbers above zero."""
    return None if math.isfinite(value) and value > 0 else "must be above 0"


def fraction(value: float) -> str | None:
    """A check for `parse_list`: memory utilisations."""
    return None if 0 < value <= 1 else "must lie above 0 and not above 1 (it is a fraction of the card)"


def parse_vary(items: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Reads `--vary FLAG=V1,V2`. Raises UsageError that names the option given."""
    varied: dict[str, tuple[str, ...]] = {}
    for item in items:
        name, equals, values = item.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        if not equals or not _FLAG.match(name):
            raise UsageError(f"--vary {item!r}: give FLAG=V1,V2, e.g. max-num-batched-tokens=2048,8192.")
        own = {
            "max-cudagraph-capture-size": "--capture",
            "max-num-seqs": "--max-num-seqs",
            "gpu-memory-utilization": "--gpu-memory-utilization",
        }
        if name in own:
            raise UsageError(f"--vary {item!r}: use {own[name]} for that flag.")
        if name in varied:
            raise UsageError(f"--vary {item!r}: {name} stands twice.")
        words = tuple(word.strip() for word in values.split(","))
        if not all(words) or len(set(words)) != len(words):
            raise UsageError(f"--vary {item!r}: an empty or repeated value.")
        varied[name] = words
    return varied


def parse_limits(text: str, option: str) -> dict[str, float]:
    """Reads `ttft=1000ms,tpot=25ms`: metric key -> limit in ms (s accepted; rates without a unit)."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        match = re.fullmatch(r"(inf|[0-9.]+)\s*(ms|s)?", value)
        if not equals or not match:
            raise UsageError(f"{option} {part!r}: give METRIC=LIMIT, e.g. ttft=1000ms.")
        try:
            number = float(match[1])
        except ValueError:
            raise UsageError(f"{option} {part!r}: {match[1]!r} is no number.") from None
        if number <= 0:
            raise UsageError(f"{option} {part!r}: the limit must be above 0.")
        if name in limits:
            raise UsageError(f"{option} {text!r}: {name} stands twice.")
        limits[name] = number * (1000.0 if match[2] == "s" else 1.0)
    return limits


def read_header_env(items: Sequence[str]) -> dict[str, str]:
    """Reads `--header-env NAME=ENV`. Raises UsageError that names the option given."""
    headers: dict[str, str] = {}
    for item in items:
        name, equals, variable = item.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9-]+", name) or not re.fullmatch(r"[A-Za-z_]\w*", variable):
            raise UsageError(f"--header-env {item!r}: give HEADER=ENVIRONMENT_VARIABLE, e.g. Authorization=MY_HEADER.")
        headers[name] = variable
    return headers


def writable_folder(folder: Path, option: str) -> None:
    """Raises UsageError when a run could not be written below this folder."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {folder}: cannot be written ({nearest} is not a writable folder).")

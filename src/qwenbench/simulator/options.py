"""The command line of `vllm serve`, as far as it changes what the simulator does, and the --sim-* flags.

argparse reads it with the names of vllm_flags.json, so that a flag which vLLM would refuse is refused here too;
pydantic judges the values, as it does in vLLM.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qwenbench.capacity.graphs import capture_sizes
from qwenbench.errors import UsageError

FAILURES = ("oom-at-start", "kv-too-small", "die-under-load", "hang-at-start", "exit-silently", "crash-first-request")
"""What --sim-fail takes."""
VLLM_VERSIONS = ("0.26.0", "0.20.2")
"""Versions whose start-up lines the simulator has; the first is the default."""
FALSE_WORDS = ("0", "false", "False")


class ServeOptions(BaseModel):
    """A server as it was asked for. None: not given. Each field has the name of vLLM's flag or of --sim-FIELD."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    served_model_name: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_num_seqs: int = Field(256, ge=1)
    max_cudagraph_capture_size: int | None = Field(None, ge=1)
    cudagraph_capture_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    enforce_eager: bool = False
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    max_num_batched_tokens: int = Field(2048, ge=1)
    max_model_len: int | None = None
    """None: the model's; -1: `auto`, as long as fits."""
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = Field(None, ge=1)
    num_gpu_blocks_override: int | None = Field(None, ge=1)
    enable_prefix_caching: bool = False
    enable_prompt_tokens_details: bool = False
    async_scheduling: bool = True
    reasoning_parser: str | None = None
    speculative_tokens: int = Field(0, ge=0, le=64)
    """Tokens that a drafter proposes for each step of a sequence; 0 without one."""
    speculative_method: str = ""
    access_log: bool = True
    count_graphs: bool = True
    """Whether the estimate of the CUDA graphs is taken from the KV cache (0.20's default)."""
    flashinfer_sampler: bool = True
    """VLLM_USE_FLASHINFER_SAMPLER; without it top-k and top-p cost a sort of every row."""
    api_keys: tuple[str, ...] = Field((), repr=False)
    ignored: Mapping[str, str | None] = Field(default_factory=dict)
    """Flags of vLLM that change nothing here."""
    card: str = "rtx-5090"
    machine: str | None = None
    """--sim-host: a host by name, or a file that `qwenbench simulate --measure-host` wrote; None: the card's."""
    seed: int = Field(0, ge=0)
    startup: Literal["fast", "real"] = "fast"
    startup_s: float | None = Field(None, ge=0)
    """A start's length in all; its phases keep their shares."""
    warm: bool = False
    fail: str | None = None
    vllm_version: str = VLLM_VERSIONS[0]
    time_scale: float = Field(1.0, gt=0)
    """Every simulated duration is multiplied by this (tests: 0.1 makes a server ten times as fast)."""
    acceptance: float = Field(0.0, ge=0, le=1)
    """Chance that a drafted token is accepted, given that those before it were."""
    host_pace: float = Field(1.0, gt=0)
    """The machine takes so many times as long as usual, as beside another server."""
    jit_stall_s: float = Field(0.0, ge=0)
    """For so long the first request waits for what Triton compiles only then."""
    spread: bool = False
    """Plays how points and launches of one configuration differ."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be greater than or equal to "
                f"max_num_seqs ({self.max_num_seqs})."
            )
        if self.max_model_len is not None and self.max_model_len < 1 and self.max_model_len != -1:
            raise ValueError(f"max_model_len must be a positive number, got {self.max_model_len}")
        return self

    @property
    def served_model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the model itself when none is given."""
        return self.served_model_name or (self.model,)

    @property
    def capture_sizes(self) -> tuple[int, ...]:
        """Batch sizes that get a CUDA graph: vLLM's list (1, 2, 4, by 8 to 256, then by 16) up to the limit."""
        if self.enforce_eager:
            return ()
        if self.cudagraph_capture_sizes:
            return tuple(sorted(set(self.cudagraph_capture_sizes)))
        limit = self.max_cudagraph_capture_size
        limit = min(2 * self.max_num_seqs, 512) if limit is None else limit
        return capture_sizes(min(limit, self.max_num_batched_tokens), 1 + self.speculative_tokens)


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> ServeOptions:
    """`serve MODEL --flag value ...` or `MODEL --flag value ...` as a typed value.

    Raises UsageError for what vLLM would refuse.
    """
    words, nested = _without_nested([word for at, word in enumerate(argv) if at or word != "serve"])
    given = vars(_parser().parse_args(words))
    model = given.pop("model_tag", None) or given.pop("model", None)
    given.pop("model", None)
    if model is None:
        raise UsageError("vllm serve: error: no model: give it as the first argument (serve MODEL ...)")
    values = _values(given, nested, environ or {})
    try:
        return ServeOptions(model=model, **values)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        message = found["msg"].removeprefix("Value error, ")
        raise UsageError(f"vllm serve: error: {place + ': ' if place else ''}{message}") from None


def flashinfer_by_default(version: str) -> bool:
    """Whether VLLM_USE_FLASHINFER_SAMPLER is on where it is unset: in 0.26.0, not yet in 0.20.2 (vllm/envs.py)."""
    return not version.startswith("0.20.")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: error: {message}")


def human_readable_int(value: str) -> int:
    """vLLM's 1k = 1,000, 1K = 1,024 notation, decimal points with the small letters included."""
    factor = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}.get(value[-1:])
    if factor is None:
        return int(value)
    return int(float(value[:-1]) * factor) if value[-1].islower() else int(value[:-1]) * factor


def human_readable_int_or_auto(value: str) -> int:
    """The same, and `auto` or -1 for as long as fits."""
    return -1 if value in ("auto", "-1") else human_readable_int(value)


def _sizes(value: str) -> list[int]:
    return [int(size) for size in (json.loads(value) if value.startswith("[") else [value])]


_sizes.__name__ = "int"  # argparse names the type in its messages

_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("port", "max-num-seqs", "max-cudagraph-capture-size", "num-gpu-blocks-override"), int),
    **dict.fromkeys(("spec-tokens", "seed", "sim-seed"), int),
    **dict.fromkeys(("gpu-memory-utilization", "sim-time-scale", "sim-startup-s", "sim-acceptance"), float),
    **dict.fromkeys(("sim-host-pace", "sim-jit-stall"), float),
    **dict.fromkeys(("max-num-batched-tokens", "kv-cache-memory-bytes"), human_readable_int),
    "max-model-len": human_readable_int_or_auto,
    "cudagraph-capture-sizes": _sizes,
    "speculative-config": json.loads,
}
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "uvicorn-log-level": ("critical", "debug", "error", "info", "trace", "warning"),
    "sim-fail": FAILURES,
    "sim-startup": ("fast", "real"),
    "sim-vllm-version": VLLM_VERSIONS,
}
_SIM_VALUES = ("card", "host", "seed", "startup", "startup-s", "fail", "vllm-version", "time-scale", "acceptance",
               "host-pace", "jit-stall")  # fmt: skip
_SIM_SWITCHES = ("warm", "spread")


@cache
def _flags() -> Mapping[str, Any]:
    """vllm_flags.json: `boolean` (without a value, each also as --no-NAME), `many`, `one`, and `short` names."""
    loaded: dict[str, Any] = json.loads((resources.files(__package__) / "vllm_flags.json").read_text("utf-8"))
    return loaded


@cache
def _parser() -> argparse.ArgumentParser:
    names = _flags()
    parser = _Parser(prog="vllm serve", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("model_tag", nargs="?")

    def add(name: str, **settings: Any) -> None:
        short = [f"-{letter}" for letter, long in names["short"].items() if long == name]
        parser.add_argument(f"--{name}", *short, **settings)

    for name in names["boolean"]:
        add(name, action=argparse.BooleanOptionalAction)
    for name in names["many"]:
        add(name, nargs="+", type=_TYPES.get(name, str))
    for name in (*names["one"], *(f"sim-{name}" for name in _SIM_VALUES)):
        add(name, type=_TYPES.get(name, str), choices=_CHOICES.get(name), metavar="VALUE")
    for name in _SIM_SWITCHES:
        add(f"sim-{name}", action="store_true")
    return parser


def _without_nested(words: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Words with underscores in names made dashes, and the values of --NAME.KEY VALUE by name and key."""
    plain: list[str] = []
    nested: dict[str, dict[str, str]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            plain.append(word)
            continue
        name = name.replace("_", "-")
        root, dot, key = name.removeprefix("--").partition(".")
        if not dot or root not in _flags()["one"]:
            plain.append(name + equals + value)
            continue
        given = value if equals else next(rest, None)
        if given is None:
            raise UsageError(f"vllm serve: error: argument {name}: expected one argument")
        nested.setdefault(root, {})[key.replace("-", "_")] = given
    return plain, nested


def _values(
    given: dict[str, Any], nested: Mapping[str, Mapping[str, str]], environ: Mapping[str, str]
) -> dict[str, Any]:
    """The fields of ServeOptions, without the model; what is left of `given` changes nothing and is told as such."""
    values: dict[str, Any] = {}
    for name in ServeOptions.model_fields:
        if name in given and name not in ("seed", "model"):
            values[name] = given.pop(name)
    for name in [name for name in given if name.startswith("sim_")]:
        field = {"sim_host": "machine", "sim_jit_stall": "jit_stall_s"}.get(name, name.removeprefix("sim_"))
        values[field] = given.pop(name)
    own_seed = given.pop("seed", None)
    if own_seed is not None:
        values.setdefault("seed", own_seed)
    if "cudagraph_capture_sizes" in values:
        values["cudagraph_capture_sizes"] = [size for sizes in values["cudagraph_capture_sizes"] for size in sizes]
    values["api_keys"] = tuple(given.pop("api_key", None) or filter(None, [environ.get("VLLM_API_KEY")]))
    quiet = given.pop("disable_uvicorn_access_log", False)
    values["access_log"] = not quiet and given.pop("uvicorn_log_level", "info") in ("debug", "info", "trace")
    values["count_graphs"] = environ.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "1") not in FALSE_WORDS
    usual = "1" if flashinfer_by_default(values.get("vllm_version", VLLM_VERSIONS[0])) else "0"
    values["flashinfer_sampler"] = environ.get("VLLM_USE_FLASHINFER_SAMPLER", usual) not in FALSE_WORDS
    config = given.pop("speculative_config", None) or {}
    if not isinstance(config, dict):
        raise UsageError("vllm serve: error: argument --speculative-config: Input should be a valid dictionary")
    drafter = {**config, **nested.get("speculative-config", {})}
    drafted = values["speculative_tokens"] = given.pop("spec_tokens", drafter.get("num_speculative_tokens", 0))
    method = drafter.get("method", "draft_model" if drafted else "")
    values["speculative_method"] = str(given.pop("spec_method", method))
    values["ignored"] = _ignored(given, nested)
    return values


def _ignored(given: Mapping[str, Any], nested: Mapping[str, Mapping[str, str]]) -> dict[str, str | None]:
    told: dict[str, str | None] = {}
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            told[flag if value else f"no-{flag}"] = None
        else:
            told[flag] = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    for name, entries in nested.items():
        if name != "speculative-config":
            told[name] = " ".join(f".{key} {value}" for key, value in entries.items())
    return told

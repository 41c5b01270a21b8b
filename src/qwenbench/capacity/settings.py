"""vLLM's settings as far as memory depends on them, read from flags in vLLM's own spellings or from what a log repeats.

The same value comes from `plan`'s options, a sweep's configuration and a probe's log, so that all feed one model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenbench.capacity.kv import Drafter, parse_drafter, release_minor
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError

LARGE_CARD_GIB = 70.0
"""vLLM's defaults for max-num-seqs and batched tokens differ from this size on."""
ESTIMATE_VARIABLE = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
_SUFFIXES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SHORT = {
    "tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "cc": "compilation-config",
    "O": "compilation-config", "sc": "speculative-config", "ac": "attention-config",
    "kv-cache-memory": "kv-cache-memory-bytes", "capture": "max-cudagraph-capture-size",
    "cuda-graph-sizes": "cudagraph-capture-sizes",
}  # fmt: skip
SWITCHES = {
    "enforce-eager", "language-model-only", "enable-prefix-caching", "no-enable-prefix-caching", "async-scheduling",
    "no-async-scheduling", "trust-remote-code", "enable-expert-parallel", "enable-chunked-prefill",
    "no-enable-chunked-prefill", "calculate-kv-scales", "enable-auto-tool-choice",
}  # fmt: skip
"""Flags without a value."""


def default_utilization(version: str) -> float:
    """vLLM's default --gpu-memory-utilization: 0.90 up to 0.20, 0.92 since graphs are profiled by default (0.21,
    vLLM's pull request 38284)."""
    return 0.92 if release_minor(version) >= 21 else 0.90


def default_max_num_seqs(cuda_total_gib: float) -> int:
    """vLLM's default --max-num-seqs of a server: 256 under 70 GiB, else 1024."""
    return 256 if cuda_total_gib < LARGE_CARD_GIB else 1024


def default_batched_tokens(cuda_total_gib: float) -> int:
    """vLLM's default --max-num-batched-tokens of a server: 2048 under 70 GiB, else 8192."""
    return 2048 if cuda_total_gib < LARGE_CARD_GIB else 8192


def default_capture(max_num_seqs: int, batched_tokens: int, rows_per_sequence: int = 1) -> int:
    """vLLM's default --max-cudagraph-capture-size: twice the rows of max-num-seqs, at most 512 and the batched
    tokens. Rows count the drafted tokens (read in 0.26)."""
    return min(2 * max_num_seqs * rows_per_sequence, 512, batched_tokens)


@dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; None leaves it to vLLM's default."""

    utilization: float | None = None
    capture: int | None = None
    """--max-cudagraph-capture-size; 0 without graphs (--enforce-eager, cudagraph_mode NONE)."""
    max_num_seqs: int | None = None
    batched_tokens: int | None = None
    max_model_len: int | None = None
    """None: the model's own, or `auto` (then `auto_model_len`)."""
    auto_model_len: bool = False
    kv_dtype: str = "auto"
    dtype: str | None = None
    state_dtype: str | None = None
    block_size: int | None = None
    prefix_caching: bool | None = None
    mamba_cache_mode: str | None = None
    drafter: Drafter | None = None
    text_only: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    kv_cache_bytes: int | None = None
    """--kv-cache-memory-bytes: the cache's size is given, the utilisation does not count."""
    blocks_override: int | None = None
    estimate_graphs: bool = True
    """VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS, the default from 0.21 on and in 0.20.2, and set in the seed's
    deployments."""

    @property
    def rows_per_sequence(self) -> int:
        """Rows of a decode step for each sequence."""
        return self.drafter.rows_per_sequence if self.drafter is not None else 1


def settings_of_config(config: ServerConfig) -> Settings:
    """The settings of a configuration, extra arguments included. Raises UsageError naming a flag that is unusable."""
    return settings_of_flags(flags_of(config), config.env)


def settings_of_flags(flags: Mapping[str, str | None], env: Mapping[str, str] | None = None) -> Settings:
    """The settings of vLLM's flags (names without dashes in front; None: a flag without a value)."""
    compilation = _json(flags, "compilation-config")
    capture = _int(flags, "max-cudagraph-capture-size")
    if capture is None and isinstance(compilation.get("max_cudagraph_capture_size"), int):
        capture = compilation["max_cudagraph_capture_size"]
    sizes = _sizes(flags.get("cudagraph-capture-sizes")) or compilation.get("cudagraph_capture_sizes")
    if capture is None and sizes:
        capture = max(sizes)
    mode = str(compilation.get("cudagraph_mode") or "").upper()
    if "enforce-eager" in flags or mode == "NONE":
        capture = 0
    length = flags.get("max-model-len")
    estimate = (env or {}).get(ESTIMATE_VARIABLE, "1")
    return Settings(
        utilization=_float(flags, "gpu-memory-utilization"),
        capture=capture,
        max_num_seqs=_int(flags, "max-num-seqs"),
        batched_tokens=_int(flags, "max-num-batched-tokens"),
        max_model_len=None if length in ("auto", "-1") else _int(flags, "max-model-len"),
        auto_model_len=length in ("auto", "-1"),
        kv_dtype=flags.get("kv-cache-dtype") or "auto",
        dtype=_dtype(flags.get("dtype")),
        state_dtype=_dtype(flags.get("mamba-ssm-cache-dtype")),
        block_size=_int(flags, "block-size"),
        prefix_caching=_switch(flags, "enable-prefix-caching"),
        mamba_cache_mode=flags.get("mamba-cache-mode"),
        drafter=_drafter(flags),
        text_only="language-model-only" in flags or _text_only(_json(flags, "limit-mm-per-prompt")),
        tensor_parallel=_int(flags, "tensor-parallel-size") or 1,
        pipeline_parallel=_int(flags, "pipeline-parallel-size") or 1,
        kv_cache_bytes=parse_bytes(flags.get("kv-cache-memory-bytes") or ""),
        blocks_override=_int(flags, "num-gpu-blocks-override"),
        estimate_graphs=estimate.strip().lower() not in ("0", "false"),
    )


def settings_of_log(log: StartupLog) -> Settings:
    """The settings of a server that was seen, as its log repeats them and as its engine says them."""
    asked = log.requested
    drafter = parse_drafter(asked.get("speculative_config"))
    if drafter is None and log.speculative_tokens:
        drafter = parse_drafter({"method": log.speculative_method, "num_speculative_tokens": log.speculative_tokens})
    limits = asked.get("limit_mm_per_prompt")
    text_only = asked.get("language_model_only") is True or log.vision_profiled is False
    if isinstance(limits, Mapping):
        text_only = text_only or _text_only(limits)
    capture = log.capture_effective if log.capture_effective is not None else asked.get("max_cudagraph_capture_size")
    if log.eager or asked.get("enforce_eager"):
        capture = 0
    size = asked.get("kv_cache_memory_bytes")
    caching = log.enable_prefix_caching
    if caching is None and isinstance(asked.get("enable_prefix_caching"), bool):
        caching = asked["enable_prefix_caching"]
    return Settings(
        utilization=asked.get("gpu_memory_utilization"),
        capture=capture,
        max_num_seqs=asked.get("max_num_seqs"),
        batched_tokens=log.max_num_batched_tokens,
        max_model_len=log.max_model_len_effective,
        kv_dtype=log.kv_cache_dtype or asked.get("kv_cache_dtype") or "auto",
        dtype=_dtype(log.dtype),
        state_dtype=_dtype(asked.get("mamba_ssm_cache_dtype")),
        block_size=asked.get("block_size"),
        prefix_caching=caching,
        mamba_cache_mode=log.mamba_cache_mode or ("none" if caching is False else None),
        drafter=drafter,
        text_only=text_only,
        tensor_parallel=log.tensor_parallel or asked.get("tensor_parallel_size") or 1,
        pipeline_parallel=log.pipeline_parallel or asked.get("pipeline_parallel_size") or 1,
        kv_cache_bytes=size if isinstance(size, int) else None,
        blocks_override=asked.get("num_gpu_blocks_override"),
        estimate_graphs=log.graphs_estimate_applied is not False,
    )


def flags_of(config: ServerConfig) -> dict[str, str | None]:
    """A configuration's flags by their usual names; extra arguments come last, as vLLM takes the last one."""
    return _usual_names({**config.flags, **parse_flags(config.extra_args)})


def parse_flags(arguments: Sequence[str]) -> dict[str, str | None]:
    """vLLM's command line as flags: `--name value`, `--name=value`, `--name`, `-tp 2`, `--json-flag.key value`."""
    flags: dict[str, str | None] = {}
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if not argument.startswith("-") or re.fullmatch(r"-\d.*", argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if equals:
            flags[name] = value
        elif name in SWITCHES or index >= len(arguments) or re.match("--?[A-Za-z]", arguments[index]):
            flags[name] = None
        else:
            flags[name] = arguments[index]
            index += 1
    return _usual_names(flags)


def parse_bytes(text: str) -> int | None:
    """A size as vLLM takes it: 67108864, 64M (2^20), 1.5g (10^9); None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text.strip())
    if found is None:
        return None
    return int(float(found.group(1)) * _SUFFIXES[found.group(2)])


def _usual_names(flags: Mapping[str, str | None]) -> dict[str, str | None]:
    """Dashes for underscores, long names for short ones, and dotted keys gathered into one JSON object."""
    usual: dict[str, str | None] = {}
    dotted: dict[str, dict[str, Any]] = {}
    for name, value in flags.items():
        head, dot, key = name.partition(".")
        head = _SHORT.get(head, head.replace("_", "-"))
        if not dot:
            usual[head] = value
            continue
        try:
            dotted.setdefault(head, {})[key.replace("-", "_")] = json.loads(value or "true")
        except json.JSONDecodeError:
            dotted.setdefault(head, {})[key.replace("-", "_")] = value
    for head, values in dotted.items():
        usual[head] = json.dumps({**_json(usual, head), **values})
    for short, key in (("spec-method", "method"), ("spec-tokens", "num_speculative_tokens"), ("spec-model", "model")):
        if short in usual:
            value = usual.pop(short)
            given = int(value) if value is not None and value.isdigit() else value
            usual["speculative-config"] = json.dumps({**_json(usual, "speculative-config"), key: given})
    return usual


def _json(flags: Mapping[str, str | None], name: str) -> dict[str, Any]:
    text = flags.get(name)
    if not text:
        return {}
    if re.fullmatch(r"[\w]+=\d+(,[\w]+=\d+)*", text):  # image=2,video=0, as older versions take it
        return {key: int(number) for key, _, number in (part.partition("=") for part in text.split(","))}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if name == "compilation-config":
            return {}  # also a level: -O2
        raise UsageError(f"--{name} {text}: no JSON ({error.msg} at column {error.colno})") from None
    return value if isinstance(value, dict) else {}


def _switch(flags: Mapping[str, str | None], name: str) -> bool | None:
    return False if f"no-{name}" in flags else True if name in flags else None


def _drafter(flags: Mapping[str, str | None]) -> Drafter | None:
    return parse_drafter(_json(flags, "speculative-config") or None)


def _text_only(limits: Mapping[str, Any]) -> bool:
    """Whether every kind of picture is limited to none: then vLLM leaves the vision part out (text-only mode)."""
    images = limits.get("image")
    videos = limits.get("video")

    def none_of(limit: Any) -> bool:
        return limit == 0 or (isinstance(limit, Mapping) and limit.get("count") == 0)

    return none_of(images) and none_of(videos)


def _dtype(text: object) -> str | None:
    name = str(text).removeprefix("torch.") if text not in (None, "", "auto") else None
    return {"half": "float16", "float": "float32"}.get(name, name) if name else None


def _sizes(text: str | None) -> list[int]:
    return [int(size) for size in re.findall(r"\d+", text or "")]


def _int(flags: Mapping[str, str | None], name: str) -> int | None:
    value = flags.get(name)
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgG]?)", value)
    if found is None:
        return None
    return int(float(found.group(1)) * _SUFFIXES[found.group(2)])  # 32k, 32K as vLLM takes them


def _float(flags: Mapping[str, str | None], name: str) -> float | None:
    value = flags.get(name)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise UsageError(f"--{name} {value} is no number") from None

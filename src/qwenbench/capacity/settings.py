"""vLLM's settings as far as memory depends on them, read from flags in vLLM's own spellings or from what a log repeats.

The same value comes from `plan`'s options, a sweep's configuration and a probe's log, so that all feed one model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwenbench.capacity.kv import Drafter, parse_drafter, release_minor
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.flags import flags_of, json_flag
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError

LARGE_CARD_GIB = 70.0
"""vLLM's defaults for max-num-seqs and batched tokens differ from this size on."""
ESTIMATE_VARIABLE = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
_SUFFIXES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


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

    @property
    def mtp(self) -> bool:
        """Whether the model's own drafter is loaded."""
        return self.drafter is not None and self.drafter.method == "mtp"


def settings_of_config(config: ServerConfig) -> Settings:
    """The settings of a configuration, extra arguments included. Raises UsageError naming a flag that is unusable."""
    return settings_of_flags(flags_of(config), config.env)


def settings_of_flags(flags: Mapping[str, str | None], env: Mapping[str, str] | None = None) -> Settings:
    """The settings of vLLM's flags (names without dashes in front; None: a flag without a value)."""
    compilation = json_flag(flags, "compilation-config")
    capture = _int(flags, "max-cudagraph-capture-size")
    if capture is None and isinstance(compilation.get("max_cudagraph_capture_size"), int):
        capture = compilation["max_cudagraph_capture_size"]
    sizes = flags.get("cudagraph-capture-sizes") or str(compilation.get("cudagraph_capture_sizes") or "")
    if capture is None and (listed := re.findall(r"\d{1,9}", sizes)):
        capture = max(map(int, listed))
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
        prefix_caching=False if "no-enable-prefix-caching" in flags else "enable-prefix-caching" in flags or None,
        mamba_cache_mode=flags.get("mamba-cache-mode"),
        drafter=parse_drafter(json_flag(flags, "speculative-config") or None),
        text_only="language-model-only" in flags or _text_only(json_flag(flags, "limit-mm-per-prompt")),
        tensor_parallel=_int(flags, "tensor-parallel-size") or 1,
        pipeline_parallel=_int(flags, "pipeline-parallel-size") or 1,
        kv_cache_bytes=_int(flags, "kv-cache-memory-bytes"),
        blocks_override=_int(flags, "num-gpu-blocks-override"),
        estimate_graphs=estimate.strip().lower() not in ("0", "false"),
    )


def settings_of_log(log: StartupLog) -> Settings:
    """The settings of a server that was seen: as its log repeats them, and over that as its engine says them."""
    asked = settings_of_flags(dict(_as_flags(log.requested)))
    drafter = asked.drafter
    if drafter is None and log.speculative_tokens:
        drafter = parse_drafter({"method": log.speculative_method, "num_speculative_tokens": log.speculative_tokens})
    capture = asked.capture if log.capture_effective is None else log.capture_effective
    caching = asked.prefix_caching if log.enable_prefix_caching is None else log.enable_prefix_caching
    return replace(
        asked,
        capture=0 if log.eager or asked.capture == 0 else capture,
        batched_tokens=log.max_num_batched_tokens,
        max_model_len=log.max_model_len_effective,
        auto_model_len=False,
        kv_dtype=log.kv_cache_dtype or asked.kv_dtype,
        dtype=_dtype(log.dtype),
        prefix_caching=caching,
        mamba_cache_mode=log.mamba_cache_mode or ("none" if caching is False else None),
        drafter=drafter,
        text_only=asked.text_only or log.vision_profiled is False,
        tensor_parallel=log.tensor_parallel or asked.tensor_parallel,
        pipeline_parallel=log.pipeline_parallel or asked.pipeline_parallel,
        estimate_graphs=log.graphs_estimate_applied is not False,
    )


def _as_flags(requested: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Arguments as a log repeats them (`max_num_seqs: 64`), as they stand on a command line."""
    for name, value in requested.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield (flag if value else f"no-{flag}"), None
        elif value is not None:
            yield flag, str(value) if isinstance(value, str | int | float) else json.dumps(value, default=str)


def parse_bytes(text: str) -> int | None:
    """A whole number as vLLM takes it: 67108864, 64M (2^20), 1.5g (10^9), 32k; None for anything else."""
    found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)([kmgKMG]?)", text.strip())
    if found is None:
        return None
    return int(float(found.group(1)) * _SUFFIXES[found.group(2)])


def _int(flags: Mapping[str, str | None], name: str) -> int | None:
    return parse_bytes(flags.get(name) or "")


def _text_only(limits: Mapping[str, Any]) -> bool:
    """Whether every kind of picture is limited to none: then vLLM leaves the vision part out (text-only mode)."""
    kinds = (limits.get("image"), limits.get("video"))
    return all(limit == 0 or (isinstance(limit, Mapping) and limit.get("count") == 0) for limit in kinds)


def _dtype(text: object) -> str | None:
    name = str(text).removeprefix("torch.") if text not in (None, "", "auto") else None
    return {"half": "float16", "float": "float32"}.get(name, name) if name else None


def _float(flags: Mapping[str, str | None], name: str) -> float | None:
    value = flags.get(name)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise UsageError(f"--{name} {value} is no number") from None

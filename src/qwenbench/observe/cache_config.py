"""What the labels of `vllm:cache_config_info` add to a start-up log: all that there is of a server whose log is not
at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qwenbench.engine.startup_log import StartupLog

GIB = 1024**3


def with_cache_labels(
    startup: StartupLog, labels: Mapping[str, str], max_model_len: int | None = None, version: str | None = None
) -> StartupLog:
    """The log with what it does not tell taken from the labels (vLLM 0.26 and later tell most of them).

    `max_model_len` is /v1/models' figure, in tokens; `version` is /version's.
    """
    tokens, concurrency = _number(labels, "kv_cache_size_tokens"), _number(labels, "kv_cache_max_concurrency")
    length = max_model_len
    if length is None and tokens and concurrency:
        length = round(tokens / concurrency)
    memory = _number(labels, "kv_cache_memory_bytes")
    if _number(labels, "num_gpu_blocks_override") is not None:
        memory = None  # the cache is then not as large as the memory that was set aside
    told: dict[str, Any] = {
        "vllm_version": version,
        "kv_cache_gib": None if memory is None else memory / GIB,
        "kv_cache_tokens_logged": None if tokens is None else int(tokens),
        "max_concurrency_logged": concurrency,
        "max_concurrency_tokens": length if concurrency is not None else None,
        "max_model_len_effective": length,
        "enable_prefix_caching": _flag(labels, "enable_prefix_caching"),
        "mamba_cache_mode": labels.get("mamba_cache_mode"),
        "kv_cache_dtype": labels.get("cache_dtype"),
    }
    missing = {
        name: value
        for name, value in told.items()
        if value not in (None, "None", "") and getattr(startup, name) is None
    }
    return replace(startup, **missing)


def _number(labels: Mapping[str, str], name: str) -> float | None:
    try:
        return float(labels[name])
    except (KeyError, ValueError):
        return None  # `None` is how a label says that it is not set


def _flag(labels: Mapping[str, str], name: str) -> bool | None:
    return {"True": True, "False": False}.get(labels.get(name, ""))

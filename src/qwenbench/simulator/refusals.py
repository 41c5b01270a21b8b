"""Configurations that cannot start: vLLM's refusals, word for word."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qwenbench.simulator import log
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.options import ServeOptions


class StartFailure(Exception):
    """The start ends here: `lines` go to the log, then the process exits with `code`."""

    def __init__(self, lines: Sequence[str], code: int = 1) -> None:
        super().__init__(lines[-1] if lines else "")
        self.lines = tuple(lines)
        self.code = code


def check_free_memory(options: ServeOptions, plan: MemoryPlan) -> None:
    """Raises StartFailure when the budget is larger than what is free on the card."""
    if plan.requested_gib > plan.free_gib:
        raise engine_failure(
            "ValueError: Free memory on device cuda:0 "
            f"({plan.free_gib:.2f}/{plan.total_gib:.2f} GiB) on startup is less than desired GPU memory "
            f"utilization ({options.gpu_memory_utilization}, {plan.requested_gib:.2f} GiB). Decrease GPU memory "
            "utilization or reduce GPU memory used by other processes."
        )


def check_fits(options: ServeOptions, plan: MemoryPlan) -> None:
    """Raises StartFailure when there is no block at all, or not one request of the asked length fits."""
    if plan.kv_cache_gib <= 0 and options.num_gpu_blocks_override is None:
        raise engine_failure(
            "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when "
            "initializing the engine. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for "
            "more details."
        )
    if not plan.max_model_len:
        raise engine_failure(
            "ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single "
            "token. Try increasing `gpu_memory_utilization`."
        )
    if plan.max_concurrency < 1:
        raise kv_too_small(plan)


def kv_too_small(plan: MemoryPlan) -> StartFailure:
    """The refusal for a context length that does not fit the KV cache."""
    longest = max(plan.num_blocks - plan.state_blocks, 0) * plan.block_tokens
    return engine_failure(
        f"ValueError: To serve at least one request with the models's max seq len ({plan.max_model_len}), "
        f"({gib(plan.needed_gib)} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({gib(plan.kv_cache_gib)} GiB). Based on the available memory, the estimated maximum model length is "
        f"{longest}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the "
        "engine. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )


def engine_failure(error: str) -> StartFailure:
    """A start that ends in the engine core: its error, then the API server's."""
    return StartFailure(
        [
            log.line(log.CORE, "core.py:1136", "EngineCore failed to start.", "ERROR"),
            log.line(log.CORE, "core.py:1136", "Traceback (most recent call last):", "ERROR"),
            log.line(log.CORE, "core.py:1136", error, "ERROR"),
            f"({log.API} pid={os.getpid()}) Traceback (most recent call last):",
            f"({log.API} pid={os.getpid()}) RuntimeError: Engine core initialization failed. See root cause "
            "above. Failed core proc(s): {}",
        ]
    )


def gib(value: float) -> str:
    """GiB as vLLM prints them: rounded to two places, without a trailing zero."""
    return f"{round(value, 2):g}"

"""Starts that cannot succeed, in vLLM's words, and the failures that --sim-fail injects, in those of real logs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace

from qwenbench.capacity.kv import GIB
from qwenbench.simulator import log
from qwenbench.simulator.engine import Engine
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.options import ServeOptions
from qwenbench.simulator.scheduler import Step
from qwenbench.simulator.startup import gib

DEATH_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DIES_AFTER_STEPS = 40
"""die-under-load: so many steps with at least two requests."""


class StartFailure(Exception):
    """The start ends here: `lines` go to the log, then the process exits with `code`. `reason`: the error's text."""

    def __init__(self, lines: Sequence[str], code: int = 1, reason: str = "") -> None:
        super().__init__(reason)
        self.lines = tuple(lines)
        self.code = code
        self.reason = reason


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
    longest = max(plan.num_blocks - plan.layout.state_blocks, 0) * plan.layout.block_tokens
    return engine_failure(
        f"ValueError: To serve at least one request with the models's max seq len ({plan.max_model_len}), "
        f"({gib(plan.needed_gib)} GiB KV cache is needed, which is larger than the available KV cache memory "
        f"({gib(plan.kv_cache_gib)} GiB). Based on the available memory, the estimated maximum model length is "
        f"{longest}. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the "
        "engine. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )


def engine_failure(error: str) -> StartFailure:
    """A start that ends in the engine core: its error, then the API server's."""
    told = ("EngineCore failed to start.", "Traceback (most recent call last):", error)
    api = f"({log.API} pid={os.getpid()})"
    lines = [
        *(log.line(log.CORE, "core.py:1136", text, "ERROR") for text in told),
        f"{api} Traceback (most recent call last):",
        f"{api} RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}",
    ]
    return StartFailure(lines, reason=error)


async def check_start(options: ServeOptions, plan: MemoryPlan, point: str) -> None:
    """Ends a start at the point of the template at which vLLM would find out, or --sim-fail was seen to happen.

    Raises StartFailure, or never returns (hang-at-start).
    """
    kind = options.fail
    if point == "memory":
        check_free_memory(options, plan)
    elif point == "loaded" and kind == "hang-at-start":
        await asyncio.Event().wait()
    elif point == "loaded" and kind == "exit-silently":
        raise StartFailure([], code=0)
    elif point == "profiled":
        if kind == "kv-too-small":
            few = 4 * plan.layout.bytes_per_block / GIB
            raise kv_too_small(replace(plan, num_blocks=plan.layout.state_blocks + 1, kv_cache_gib=few))
        check_fits(options, plan)
    elif point == "capturing" and kind == "oom-at-start":
        raise engine_failure(_out_of_memory(plan))


def arm(options: ServeOptions, engine: Engine, plan: MemoryPlan) -> None:
    """Makes the engine die at its first step, or under load."""
    left = DIES_AFTER_STEPS

    def burn(step: Step) -> None:
        nonlocal left
        left -= len(step.work) >= 2
        if left == 0:
            _die(engine, _out_of_memory(plan))

    if options.fail == "crash-first-request":
        engine.on_step = lambda _step: _die(engine, "RuntimeError: Triton Error [CUDA]: out of memory")
    elif options.fail == "die-under-load":
        engine.on_step = burn


def _die(engine: Engine, error: str) -> None:
    log.say(log.CORE, "dump_input.py:72", "Dumping input data for V1 LLM engine", "ERROR")
    for text in ("EngineCore encountered a fatal error.", "Traceback (most recent call last):", error):
        log.say(log.CORE, "core.py:1138", text, "ERROR")
    for text in ("AsyncLLM output_handler failed.", f"vllm.v1.engine.exceptions.EngineDeadError: {DEATH_MESSAGE}"):
        log.say(log.API, "async_llm.py:704", text, "ERROR")
    engine.die(DEATH_MESSAGE)


def _out_of_memory(plan: MemoryPlan) -> str:
    used = plan.total_gib - 0.11
    return (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of "
        f"{plan.total_gib:.2f} GiB of which 115.19 MiB is free. Including non-PyTorch memory, this process has "
        f"{used:.2f} GiB memory in use. Of the allocated memory {used - 1.2:.2f} GiB is allocated by PyTorch, and "
        "310.52 MiB is reserved by PyTorch but unallocated."
    )

"""The failures that --sim-fail injects, with the words that real servers left in their logs."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from qwenbench.simulator import log
from qwenbench.simulator.engine import Engine
from qwenbench.simulator.memory import BLOCK_BYTES, GIB, MemoryPlan
from qwenbench.simulator.refusals import StartFailure, engine_failure, kv_too_small
from qwenbench.simulator.scheduler import Step
from qwenbench.simulator.startup import StartPoint

DEATH_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DIES_AFTER_STEPS = 40
"""die-under-load: so many steps with at least two requests."""


class Fault:
    """Makes a start fail at the point at which the real failure was seen; does nothing for other kinds."""

    def __init__(self, kind: str | None, plan: MemoryPlan) -> None:
        self._kind = kind
        self._plan = plan

    async def at(self, point: StartPoint) -> None:
        """The start has come to this point. Raises StartFailure, or never returns (hang-at-start)."""
        if point is StartPoint.LOADED and self._kind == "hang-at-start":
            await asyncio.Event().wait()
        if point is StartPoint.LOADED and self._kind == "exit-silently":
            raise StartFailure([], code=0)
        if point is StartPoint.PROFILED and self._kind == "kv-too-small":
            small = replace(self._plan, num_blocks=self._plan.state_blocks + 1, kv_cache_gib=4 * BLOCK_BYTES / GIB)
            raise kv_too_small(small)
        if point is StartPoint.CAPTURING and self._kind == "oom-at-start":
            raise engine_failure(_out_of_memory(self._plan))


def arm(kind: str | None, engine: Engine, plan: MemoryPlan) -> None:
    """Makes the engine die at its first step, or under load."""
    if kind == "crash-first-request":
        engine.on_step = lambda step: _die(engine, "RuntimeError: Triton Error [CUDA]: out of memory")
    elif kind == "die-under-load":
        engine.on_step = _Fuse(engine, plan).burn


class _Fuse:
    def __init__(self, engine: Engine, plan: MemoryPlan) -> None:
        self._engine = engine
        self._plan = plan
        self._left = DIES_AFTER_STEPS

    def burn(self, step: Step) -> None:
        if len(step.work) >= 2:
            self._left -= 1
        if self._left == 0:
            _die(self._engine, _out_of_memory(self._plan))


def _die(engine: Engine, error: str) -> None:
    where = "core.py:1138"
    log.say(log.CORE, "dump_input.py:72", "Dumping input data for V1 LLM engine (v0.20.2)", "ERROR")
    log.say(log.CORE, where, "EngineCore encountered a fatal error.", "ERROR")
    log.say(log.CORE, where, "Traceback (most recent call last):", "ERROR")
    log.say(log.CORE, where, error, "ERROR")
    log.say(log.API, "async_llm.py:704", "AsyncLLM output_handler failed.", "ERROR")
    log.say(log.API, "async_llm.py:704", f"vllm.v1.engine.exceptions.EngineDeadError: {DEATH_MESSAGE}", "ERROR")
    engine.die(DEATH_MESSAGE)


def _out_of_memory(plan: MemoryPlan) -> str:
    used = plan.total_gib - 0.11
    return (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 256.00 MiB. GPU 0 has a total capacity of "
        f"{plan.total_gib:.2f} GiB of which 115.19 MiB is free. Including non-PyTorch memory, this process has "
        f"{used:.2f} GiB memory in use. Of the allocated memory {used - 1.2:.2f} GiB is allocated by PyTorch, and "
        "310.52 MiB is reserved by PyTorch but unallocated."
    )

"""What Docker, NVIDIA's tools, Hugging Face and vLLM say when a server fails, and what to do: known_failures.txt.

Its tables (`== NAME`) list one cause after another: the class, then indented the texts by which it is known (regular
expressions, one or more a line) and behind `>` the advice. The order is reasoned, and the first that matches wins: the
specific before the general (a full /dev/shm before a full disk), a cause before its consequence (a toolkit that is too
old before the kernel that it could not build), what is wrong with the machine before what is wrong with the model, and
both before a lack of memory, which many of them end in. A text is matched against single lines that were neither INFO
nor a request's, without the logger's prefix. Where it was seen stands in tests/data/failures, one file a cause.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Literal, NamedTuple


class Rule(NamedTuple):
    kind: str
    pattern: re.Pattern[str]
    advice: str


Table = Literal["docker", "causes", "consequences", "places"]


@cache
def rules(table: Table) -> tuple[Rule, ...]:
    """A table of known_failures.txt, in its order; `places` has advice only."""
    text = (resources.files(__package__) / "known_failures.txt").read_text("utf-8")
    section = re.split(r"(?m)^== (\w+)\n", text)
    found: list[tuple[str, list[str], list[str]]] = []
    for line in section[section.index(table) + 1].splitlines():
        if line.startswith("    > "):
            found[-1][2].append(line[6:])
        elif line.startswith("    "):
            found[-1][1].append(line[4:])
        elif line and not line.startswith("#"):
            found.append((line, [], []))
    return tuple(Rule(kind, re.compile("|".join(says)), " ".join(advice)) for kind, says, advice in found)


def advice_on(kind: str) -> str:
    """What to do where the card ran out of memory (`oom_load`, ...) or a server died without a word."""
    return next(rule.advice for rule in rules("places") if rule.kind == kind)


OUT_OF_MEMORY = re.compile(
    r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError: .*|CUDA out of memory|CUDA (?:driver )?error: out of memory"
    r"|CUDA_ERROR_OUT_OF_MEMORY|Triton Error \[CUDA\]: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|cudaErrorMemoryAllocation|CUDA error: out of memory|NCCL WARN Cuda failure.*out of memory"
    r"|NVML_SUCCESS == r INTERNAL ASSERT FAILED"
)
"""A lack of the card's memory, in any of its words."""
OTHERS_MEMORY = re.compile(r"Process \d+ has (?P<size>[\d.]+ [GM]iB) memory in use")

DYING = re.compile(
    r"EngineCore encountered a fatal error|WorkerProc hit an exception|EngineCore failed to start"
    r"|WorkerProc failed to start|Engine core initialization failed|died unexpectedly|engine core exited unexpectedly"
)
"""vLLM's own words for the death of one of its processes."""
STOPPING = re.compile(r"\[shutdown\] (?:API server|EngineCore): |Shutdown initiated|(?:INFO:\s+|^)Shutting down")
"""Lines of an ordinary stop: errors after them are its consequences (EngineDeadError in an output handler). What
clients and process managers say at their end is said after a death as well, sometimes before its own line."""
SECONDHAND = re.compile(
    r"EngineDeadError|See (?:root cause|stack trace|the stack trace)|Engine core initialization failed"
    r"|Worker failed with error|WorkerProc initialization failed|RayTaskError|RayActorError|ActorDiedError"
    r"|BackendCompilerFailed|validation errors? for |Error in inspecting model architecture|failed to be inspected"
    r"|CalledProcessError|Error raised in subprocess|Error executing method"
    r"|asyncio\.exceptions\.CancelledError|generation failed|ChildFailedError|SystemExit"
)
"""Exceptions that report another one, which stands elsewhere in the log."""

"""Settings that cost speed in silence, as a server's start-up log tells them, each with what it was measured to cost.

vLLM starts all the same with any of these and says so in one line among hundreds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwenbench.engine.log_lines import taken_apart

if TYPE_CHECKING:
    from qwenbench.engine.startup_log import StartupLog

MEASURED = "measured on vLLM 0.26.0, Qwen3.5-9B-NVFP4, H100: docs/memory.md"
USUAL_BATCHED_TOKENS = 2048
"""vLLM's default of a server on a card under 70 GiB; fewer were measured to cost speed."""

_SAMPLERS = {
    "flashinfer": re.compile(r"Using FlashInfer for top-p & top-k sampling"),
    "off": re.compile(r"FlashInfer top-p/top-k sampling disabled via (VLLM_USE_FLASHINFER_SAMPLER=0)"),
    "unavailable": re.compile(
        r"FlashInfer top-p/top-k sampling unavailable: (.+?)(?:; falling back|\. (?:Unset|Set|Please)|$)"
        r"|(FlashInfer is not available)\. Falling back to the PyTorch-native implementation of top-p"
        r"|FlashInfer top-p & top-k sampling sampler is disabled because (.+?)\. Falling back"
    ),
}
"""How top-k and top-p are sampled, texts of 0.8 to 0.33; without FlashInfer, by PyTorch or a Triton kernel."""
_SCHEDULING = re.compile(r"Asynchronous scheduling is (enabled|disabled)")
_JIT = re.compile(r"JIT compilation during inference: ([\w.]+?)\.?(?:\s|$)")
_GRAPH_ROW = re.compile(
    r"\| *(\d+) *\| *\d+ *\| *-?\d+ *\| *(?:CUDAGraphMode\.)?(NONE|PIECEWISE|FULL)\w* *\| *(\d+) *\|"
)
"""A row of the tables that --cudagraph-metrics logs: tokens, padded, paddings, mode, steps (read in 0.26)."""
_OTHERS = {
    "moe-config": re.compile(r"Using default MoE config\. Performance might be sub-optimal"),
    "all-reduce": re.compile(r"Custom allreduce is disabled because (.+?)(?:\. |$)"),
    "full-graphs": re.compile(r"CUDAGraphMode\.FULL\w* is not supported .*; setting cudagraph_mode=(\w+)"),
}


@dataclass(frozen=True, slots=True)
class SpeedSetting:
    """One setting that makes this server slower than it could be."""

    name: str
    state: str
    """What the log says, in words."""
    cost: str | None
    """What it was measured to cost; None where nobody here measured it."""
    advice: str
    source: str
    """Where the cost, or without one the effect, is known from."""


def sampler_of(line: str) -> str | None:
    """`flashinfer`, `off: why` or `unavailable: why`; None for lines about something else."""
    if "ampl" not in line:
        return None
    for state, pattern in _SAMPLERS.items():
        found = pattern.search(line)
        if found:
            reason = next((text for text in found.groups() if text), "")
            return f"{state}: {reason.strip()}" if reason else state
    return None


def async_scheduling_of(line: str) -> bool | None:
    """Whether the line says that asynchronous scheduling is on or off; None for other lines."""
    found = _SCHEDULING.search(line) if "ynchronous scheduling" in line else None
    return None if found is None else found.group(1) == "enabled"


def jit_kernel_of(line: str) -> str | None:
    """The kernel that was compiled during inference, as jit_monitor names it."""
    found = _JIT.search(line) if "JIT compilation during inference" in line else None
    return found.group(1) if found else None


def graph_steps_of(line: str) -> tuple[int, str, int] | None:
    """(tokens, NONE, PIECEWISE or FULL, steps) of a row that --cudagraph-metrics logged; None for other lines."""
    found = _GRAPH_ROW.search(line) if line.count("|") >= 6 else None
    return None if found is None else (int(found.group(1)), found.group(2), int(found.group(3)))


@dataclass(frozen=True, slots=True)
class GraphSteps:
    tokens: int
    """Of a step, without padding: rows of a decode step are its requests, times 1 + drafted tokens."""
    mode: str
    """`FULL`, `PIECEWISE` or `NONE`."""
    count: int


def graph_steps(lines: Iterable[str]) -> list[GraphSteps]:
    """What the tables among these lines of a log count, each kind of step once; empty without any table."""
    counted: dict[tuple[int, str], int] = {}
    for line in lines:
        if "|" in line and (found := graph_steps_of(taken_apart(line).text)):
            tokens, mode, count = found
            counted[tokens, mode] = counted.get((tokens, mode), 0) + count
    return [GraphSteps(tokens, mode, count) for (tokens, mode), count in counted.items()]


def full_graph_share(steps: Iterable[GraphSteps], most_rows: int | None) -> float | None:
    """Share of the steps of at most so many tokens (the rows of the largest decode batch) that ran in a full graph.

    Larger steps carry prompts, which full graphs are not made for. None without such steps, or an unknown batch.
    """
    decoding = [step for step in steps if most_rows is not None and step.tokens <= most_rows]
    total = sum(step.count for step in decoding)
    return sum(step.count for step in decoding if step.mode == "FULL") / total if total else None


def other_setting_of(line: str) -> tuple[str, str] | None:
    """(name, what it says) of the settings that have a warning of their own and nothing more."""
    for name, pattern in _OTHERS.items():
        found = pattern.search(line)
        if found:
            return name, next((text for text in found.groups() if text), "")
    return None


def speed_settings(startup: StartupLog) -> tuple[SpeedSetting, ...]:
    """What makes this server slower than it could be, the costliest first; empty where the log shows nothing."""
    found = (
        _sampler(startup),
        _scheduling(startup),
        _eager(startup),
        _chunks(startup),
        _prefix_caching(startup),
        _jit(startup),
        _outside_graphs(startup),
        *(_other(name, what) for name, what in startup.other_speed_settings.items()),
    )
    return tuple(setting for setting in found if setting is not None)


def _sampler(startup: StartupLog) -> SpeedSetting | None:
    sampler = startup.sampler
    opted_out = sampler is None and startup.ready and (startup.vllm_version or "").startswith("0.20.")
    if opted_out:  # vllm/v1/sample/ops/topk_topp_sampler.py of 0.20.2: asked for or silent
        sampler = "off: vLLM 0.20 leaves it off unless it is asked for"
    if sampler is None or sampler == "flashinfer":
        return None
    state, _, why = sampler.partition(": ")
    advice = "unset VLLM_USE_FLASHINFER_SAMPLER" if state == "off" else "let FlashInfer's sampler work"
    if opted_out:
        advice = "set VLLM_USE_FLASHINFER_SAMPLER=1, and look at the answers once"
    if "12.9" in why or "CUDA" in why:
        advice = "use an image with CUDA 12.9 or later: on an RTX 50 card FlashInfer compiles with no older toolkit"
    return SpeedSetting(
        "sampler",
        f"FlashInfer's sampler is {state} ({why})" if why else f"FlashInfer's sampler is {state}",
        "with top-k and top-p a token takes 9.0 instead of 6.0 ms at 16 streams, 14.0 instead of 10.0 at 64",
        advice,
        MEASURED,
    )


def _scheduling(startup: StartupLog) -> SpeedSetting | None:
    if startup.async_scheduling is not False:
        return None
    return SpeedSetting(
        "async-scheduling",
        "asynchronous scheduling is off",
        "tokens/s -21 % at one stream and -16 % at 64; a token takes 6.5-7.5 / 8.4 / 14.9 instead of 5.0 / 6.0 / "
        "10.0 ms at 1 / 16 / 64 streams",
        "leave out --no-async-scheduling, or the setting that excludes it (the log names it)",
        MEASURED,
    )


def _eager(startup: StartupLog) -> SpeedSetting | None:
    if startup.eager is not True or startup.device == "cpu":
        return None
    return SpeedSetting(
        "eager",
        "eager mode: no CUDA graphs and no compilation",
        "outside the graphs a token took 24.0 instead of 13 ms at 128 streams",
        "leave --enforce-eager out",
        "recorded on vLLM 0.20.2, H200: docs/memory.md",
    )


def _chunks(startup: StartupLog) -> SpeedSetting | None:
    tokens = startup.max_num_batched_tokens
    if tokens is None or tokens >= USUAL_BATCHED_TOKENS or startup.device == "cpu":
        return None
    return SpeedSetting(
        "batched-tokens",
        f"prompts are computed in chunks of {tokens:,} tokens",
        "1,024 instead of 2,048: tokens/s -11 % with short prompts, -21 % with long ones, TTFT twice as long",
        f"--max-num-batched-tokens {USUAL_BATCHED_TOKENS} or more",
        MEASURED,
    )


def _prefix_caching(startup: StartupLog) -> SpeedSetting | None:
    if startup.enable_prefix_caching is not False:
        return None
    return SpeedSetting(
        "prefix-caching",
        "prefix caching is off: a beginning that requests share is computed for each of them",
        None,
        "--enable-prefix-caching, where prompts share a beginning (a hybrid then holds 3 more blocks a request)",
        "vLLM's documentation, automatic prefix caching",
    )


def _jit(startup: StartupLog) -> SpeedSetting | None:
    if not startup.jit_kernels:
        return None
    return SpeedSetting(
        "jit",
        f"compiled while requests were running: {', '.join(startup.jit_kernels)}",
        "some 7 s of stalls in the first load with sampling fields (_topk_topp_kernel), once a start",
        "warm up with the requests' own sampling fields",
        MEASURED,
    )


def _outside_graphs(startup: StartupLog) -> SpeedSetting | None:
    """Steps no larger than the sequences allowed that ran without a graph: measured, not inferred."""
    seqs = startup.requested.get("max_num_seqs")
    if not isinstance(seqs, int) or not startup.graph_steps:
        return None
    largest = seqs * (1 + (startup.speculative_tokens or 0))
    small = [(mode, steps) for (tokens, mode), steps in startup.graph_steps.items() if tokens <= largest]
    outside, every = sum(steps for mode, steps in small if mode == "NONE"), sum(steps for _, steps in small)
    if not outside:
        return None
    return SpeedSetting(
        "graph-miss",
        f"{outside:,} of {every:,} steps of at most {largest:,} tokens ran outside the graphs (--cudagraph-metrics)",
        "outside the graphs a token took 24.0 instead of 13 ms at 128 streams",
        "a --max-cudagraph-capture-size that covers max-num-seqs, times 1 + drafted tokens",
        "recorded on vLLM 0.20.2, H200: docs/memory.md",
    )


def _other(name: str, what: str) -> SpeedSetting:
    texts = {
        "moe-config": (
            "no tuned MoE configuration for this card: vLLM takes its default",
            "tune one with vLLM's benchmarks/kernels/benchmark_moe.py, or take another MoE backend",
        ),
        "all-reduce": (
            f"custom all-reduce is off: {what}",
            "nothing on consumer cards (no peer-to-peer); --disable-custom-all-reduce only silences it",
        ),
        "full-graphs": (
            f"FULL graphs are not supported here: cudagraph_mode is {what}",
            "another --attention-backend, where the model has one with FULL graphs",
        ),
    }
    state, advice = texts[name]
    return SpeedSetting(name, state, None, advice, "vLLM's own warning")

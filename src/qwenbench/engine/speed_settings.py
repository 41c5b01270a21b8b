"""Settings that cost speed in silence, as a server's start-up log tells them, each with what it was measured to cost.

vLLM starts all the same with any of these and says so in one line among hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qwenbench.engine.log_lines import taken_apart
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_patterns import graph_steps_of

MEASURED = "measured on vLLM 0.26.0, Qwen3.5-9B-NVFP4, H100: docs/memory.md"
USUAL_BATCHED_TOKENS = 2048
"""vLLM's default of a server on a card under 70 GiB; fewer were measured to cost speed."""

_OTHERS = {
    "moe-config": (
        "no tuned MoE configuration for this card: vLLM takes its default",
        "tune one with vLLM's benchmarks/kernels/benchmark_moe.py, or take another MoE backend",
    ),
    "all-reduce": (
        "custom all-reduce is off: {}",
        "nothing on consumer cards (no peer-to-peer); --disable-custom-all-reduce only silences it",
    ),
    "full-graphs": (
        "FULL graphs are not supported here: cudagraph_mode is {}",
        "another --attention-backend, where the model has one with FULL graphs",
    ),
}
"""Settings with a warning of their own and nothing more (startup_patterns.py): what it means, what to do."""


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


def speed_settings(startup: StartupLog) -> tuple[SpeedSetting, ...]:
    """What makes this server slower than it could be, the costliest first; empty where the log shows nothing."""
    sampler = _sampler(startup)
    return (
        *(() if sampler is None else (sampler,)),
        *(
            SpeedSetting(name, state, cost, advice, source)
            for name, tell, cost, advice, source in _SETTINGS
            if (state := tell(startup)) is not None
        ),
        *(
            SpeedSetting(name, _OTHERS[name][0].format(what), None, _OTHERS[name][1], "vLLM's own warning")
            for name, what in startup.other_speed_settings.items()
        ),
    )


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
    told = f"FlashInfer's sampler is {state}" + (f" ({why})" if why else "")
    cost = "with top-k and top-p a token takes 9.0 instead of 6.0 ms at 16 streams, 14.0 instead of 10.0 at 64"
    return SpeedSetting("sampler", told, cost, advice, MEASURED)


def _small_chunks(startup: StartupLog) -> str | None:
    tokens = startup.max_num_batched_tokens
    if tokens is None or tokens >= USUAL_BATCHED_TOKENS or startup.device == "cpu":
        return None
    return f"prompts are computed in chunks of {tokens:,} tokens"


def _outside_graphs(startup: StartupLog) -> str | None:
    """Steps no larger than the sequences allowed that ran without a graph: measured, not inferred."""
    seqs = startup.requested.get("max_num_seqs")
    if not isinstance(seqs, int):
        return None
    largest = seqs * (1 + (startup.speculative_tokens or 0))
    small = [(mode, steps) for (tokens, mode), steps in startup.graph_steps.items() if tokens <= largest]
    outside, every = sum(steps for mode, steps in small if mode == "NONE"), sum(steps for _, steps in small)
    told = f"{outside:,} of {every:,} steps of at most {largest:,} tokens ran outside the graphs (--cudagraph-metrics)"
    return told if outside else None


_OUTSIDE_COST = "outside the graphs a token took 24.0 instead of 13 ms at 128 streams"
_OUTSIDE_SOURCE = "recorded on vLLM 0.20.2, H200: docs/memory.md"

_SETTINGS: tuple[tuple[str, Callable[[StartupLog], str | None], str | None, str, str], ...] = (
    (
        "async-scheduling",
        lambda log: "asynchronous scheduling is off" if log.async_scheduling is False else None,
        "tokens/s -21 % at one stream and -16 % at 64; a token takes 6.5-7.5 / 8.4 / 14.9 instead of 5.0 / 6.0 / "
        "10.0 ms at 1 / 16 / 64 streams",
        "leave out --no-async-scheduling, or the setting that excludes it (the log names it)",
        MEASURED,
    ),
    (
        "eager",
        lambda log: "eager mode: no CUDA graphs and no compilation" if log.eager and log.device != "cpu" else None,
        _OUTSIDE_COST,
        "leave --enforce-eager out",
        _OUTSIDE_SOURCE,
    ),
    (
        "batched-tokens",
        _small_chunks,
        "1,024 instead of 2,048: tokens/s -11 % with short prompts, -21 % with long ones, TTFT twice as long",
        f"--max-num-batched-tokens {USUAL_BATCHED_TOKENS} or more",
        MEASURED,
    ),
    (
        "prefix-caching",
        lambda log: (
            "prefix caching is off: a beginning that requests share is computed for each of them"
            if log.enable_prefix_caching is False
            else None
        ),
        None,
        "--enable-prefix-caching, where prompts share a beginning (a hybrid then holds 3 more blocks a request)",
        "vLLM's documentation, automatic prefix caching",
    ),
    (
        "jit",
        lambda log: f"compiled while requests were running: {', '.join(log.jit_kernels)}" if log.jit_kernels else None,
        "some 7 s of stalls in the first load with sampling fields (_topk_topp_kernel), once a start",
        "warm up with the requests' own sampling fields",
        MEASURED,
    ),
    (
        "graph-miss",
        _outside_graphs,
        _OUTSIDE_COST,
        "a --max-cudagraph-capture-size that covers max-num-seqs, times 1 + drafted tokens",
        _OUTSIDE_SOURCE,
    ),
)
"""Name, what the log says of it (None: it is as it should be), cost, advice, source; the costliest first."""

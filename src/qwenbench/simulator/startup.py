"""The start of the simulated server: the lines that vLLM 0.20.2 prints, and how long each phase takes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from qwenbench.simulator import log
from qwenbench.simulator.memory import GIB, MemoryPlan
from qwenbench.simulator.options import MODEL_LENGTH, ServeOptions
from qwenbench.simulator.refusals import check_fits, check_free_memory, gib

VLLM_VERSION = "0.20.2"
SIMULATED_VERSION = f"{VLLM_VERSION}+simulated"
FIRST_LINE = (
    "SIMULATED: this is qwenbench's simulator, no vLLM and no GPU; every figure below is computed, none measured."
)
PHASES = ("import_s", "load_s", "compile_s", "profile_s", "graphs_s", "api_s")


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Seconds of each phase of a start, and by how much they are shortened (1: real, 0: at once)."""

    phases: Mapping[str, float]
    pace: float

    async def spend(self, phase: str, share: float = 1.0) -> None:
        """Waits as long as this share of the phase takes."""
        seconds = self.phases[phase] * share * self.pace
        if seconds > 0:
            await asyncio.sleep(seconds)


class StartPoint(Enum):
    """Where a start can be made to fail."""

    LOADED = "loaded"
    PROFILED = "profiled"
    CAPTURING = "capturing"


class StartFault(Protocol):
    """Told of each point that the start comes to."""

    async def at(self, point: StartPoint) -> None:
        """May raise StartFailure."""


async def print_start(
    options: ServeOptions, plan: MemoryPlan, times: StartTimes, card_note: str, fault: StartFault
) -> None:
    """Everything up to the HTTP server's start. Raises StartFailure when the configuration cannot start."""
    log.plain(f"{FIRST_LINE} {card_note}")
    for art in _BANNER:
        log.say(log.API, "utils.py:299", art.format(version=VLLM_VERSION, model=options.model).rstrip(" "))
    log.say(log.API, "utils.py:233", f"non-default args: {_non_default(options)}")
    for name, value in options.ignored.items():
        log.say(log.API, "simulator.py:1", f"SIMULATED: --{name} {value or ''} changes nothing here", "WARNING")
    if "calculate-kv-scales" in options.ignored:
        log.say(
            log.API,
            "config.py:215",
            f"Disabling calculate_kv_scales for hybrid model '{options.model}'. Hybrid models with recurrent layers "
            "(GDN, Mamba, SSM) produce unreliable KV cache scales during the calibration pass because recurrent "
            "state is uninitialized. Using default scales.",
            "WARNING",
        )
    await times.spend("import_s")
    log.say(log.API, "model.py:555", "Resolved architecture: Qwen3_5ForConditionalGeneration")
    log.say(log.API, "model.py:1680", f"Using max model len {MODEL_LENGTH}")
    log.say(log.API, "vllm.py:840", "Asynchronous scheduling is enabled.")
    log.say(log.CORE, "core.py:109", _engine_config(options))
    check_free_memory(options, plan)
    await _print_loading(options, plan, times)
    await fault.at(StartPoint.LOADED)
    await _print_profiling(options, plan, times)
    await fault.at(StartPoint.PROFILED)
    check_fits(options, plan)
    _print_cache(options, plan)
    await fault.at(StartPoint.CAPTURING)
    await _print_capture(options, plan, times)
    compile_s = times.phases["compile_s"] if options.capture_sizes else 0.0
    took = compile_s + times.phases["profile_s"] + times.phases["graphs_s"]
    log.say(
        log.CORE,
        "core.py:299",
        f"init engine (profile, create kv cache, warmup model) took {took:.2f} s (compilation: {compile_s:.2f} s)",
    )
    await times.spend("api_s")
    log.say(log.API, "api_server.py:598", "Supported tasks: ['generate']")


def print_listening(options: ServeOptions, port: int) -> None:
    """The HTTP server's lines once its socket is open."""
    log.say(log.API, "api_server.py:602", f"Starting vLLM server on http://{options.host}:{port}")
    log.say(log.API, "launcher.py:37", "Available routes are:")
    for route, methods in ROUTES.items():
        log.say(log.API, "launcher.py:46", f"Route: {route}, Methods: {', '.join(methods)}")
    log.uvicorn(f"Started server process [{os.getpid()}]")
    log.uvicorn("Waiting for application startup.")
    log.uvicorn("Application startup complete.")


def print_shutdown() -> None:
    """What SIGTERM makes vLLM print."""
    log.say(log.CORE, "core.py:1238", "Shutdown initiated (timeout=0)")
    log.say(log.CORE, "core.py:1261", "Shutdown complete")
    log.uvicorn("Shutting down")
    log.uvicorn("Waiting for application shutdown.")
    log.uvicorn("Application shutdown complete.")
    log.uvicorn(f"Finished server process [{os.getpid()}]")


ROUTES: Mapping[str, tuple[str, ...]] = {
    "/tokenize": ("POST",),
    "/detokenize": ("POST",),
    "/load": ("GET",),
    "/version": ("GET",),
    "/health": ("GET",),
    "/metrics": ("GET",),
    "/v1/models": ("GET",),
    "/ping": ("GET", "POST"),
    "/v1/chat/completions": ("POST",),
    "/v1/completions": ("POST",),
    "/reset_prefix_cache": ("POST",),
}

_BANNER = (
    "",
    "       █     █     █▄   ▄█",
    " ▄▄ ▄█ █     █     █ ▀▄▀ █  version {version}",
    "  █▄█▀ █     █     █     █  model   {model}",
    "   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀",
    "",
)


def _non_default(options: ServeOptions) -> dict[str, object]:
    shown: dict[str, object] = {
        "model_tag": options.model,
        "host": options.host,
        "port": options.port,
        "model": options.model,
        "served_model_name": list(options.served_model_names),
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_num_seqs": options.max_num_seqs,
    }
    optional: dict[str, object] = {
        "max_model_len": options.max_model_len,
        "max_cudagraph_capture_size": options.capture,
        "reasoning_parser": options.reasoning_parser,
        "kv_cache_memory_bytes": options.kv_cache_memory_bytes,
        "num_gpu_blocks_override": options.num_gpu_blocks_override,
    }
    shown |= {name: value for name, value in optional.items() if value is not None}
    flags = {
        "enforce_eager": options.enforce_eager,
        "enable_prefix_caching": options.enable_prefix_caching,
        "enable_prompt_tokens_details": options.enable_prompt_tokens_details,
    }
    return shown | {name: True for name, value in flags.items() if value}


def _engine_config(options: ServeOptions) -> str:
    sizes = list(options.capture_sizes)
    return (
        f"Initializing a V1 LLM engine (v{VLLM_VERSION}) with config: model='{options.model}', "
        f"speculative_config=None, dtype=torch.bfloat16, max_seq_len={options.max_model_len or MODEL_LENGTH}, "
        f"tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1, "
        f"quantization=compressed-tensors, enforce_eager={options.enforce_eager}, "
        f"kv_cache_dtype={options.kv_cache_dtype}, device_config=cuda, seed=0, "
        f"served_model_name={options.served_model_names[0]}, "
        f"enable_prefix_caching={options.enable_prefix_caching}, enable_chunked_prefill=True, "
        f"compilation_config={{'cudagraph_capture_sizes': {sizes}, "
        f"'max_cudagraph_capture_size': {max(sizes, default=0)}}}, simulated=True"
    )


async def _print_loading(options: ServeOptions, plan: MemoryPlan, times: StartTimes) -> None:
    log.say(log.CORE, "gpu_model_runner.py:4777", f"Starting to load model {options.model}...")
    await times.spend("load_s")
    log.say(log.CORE, "__init__.py:683", "Using MarlinNvFp4LinearKernel for NVFP4 GEMM")
    log.say(
        log.CORE,
        "cuda.py:368",
        "Using FLASH_ATTN attention backend out of potential backends: "
        "['FLASH_ATTN', 'FLASHINFER', 'TRITON_ATTN', 'FLEX_ATTENTION'].",
    )
    load_s = min(times.phases["load_s"], 2.0)
    log.say(
        log.CORE,
        "gpu_model_runner.py:4879",
        f"Model loading took {gib(plan.weights_gib)} GiB memory and {load_s:.6f} seconds",
    )
    log.say(
        log.CORE,
        "interface.py:606",
        f"Setting attention block size to {plan.block_tokens} tokens to ensure that attention page size is "
        ">= mamba page size.",
    )
    log.say(
        log.CORE,
        "interface.py:630",
        "Padding mamba page size by 0.76% to ensure that mamba page size and attention page size are exactly equal.",
    )
    if options.enable_prefix_caching:
        log.say(
            log.CORE,
            "config.py:1",
            "Mamba cache mode is set to 'align' for Qwen3_5ForConditionalGeneration by default when prefix "
            "caching is enabled",
            "WARNING",
        )


async def _print_profiling(options: ServeOptions, plan: MemoryPlan, times: StartTimes) -> None:
    if options.capture_sizes:
        await times.spend("compile_s")
        log.say(log.CORE, "monitor.py:53", f"torch.compile took {times.phases['compile_s']:.2f} s in total")
    await times.spend("profile_s")
    log.say(
        log.CORE,
        "monitor.py:81",
        f"Initial profiling/warmup run took {times.phases['profile_s']:.2f} s",
    )
    sizes = options.capture_sizes
    if sizes:
        await times.spend("graphs_s", 0.7)
        full = [size for size in sizes if size <= options.max_num_seqs]
        log.say(
            log.CORE,
            "gpu_model_runner.py:5963",
            f"Profiling CUDA graph memory: PIECEWISE={len(sizes)} (largest={sizes[-1]}), "
            f"FULL={len(full)} (largest={max(full, default=0)})",
        )
        log.say(
            log.CORE,
            "gpu_model_runner.py:6042",
            f"Estimated CUDA graph memory: {gib(plan.graphs_estimated_gib)} GiB total",
        )
    if options.kv_cache_memory_bytes is None:
        log.say(log.CORE, "gpu_worker.py:440", f"Available KV cache memory: {gib(plan.kv_cache_gib)} GiB")
        if options.capture_sizes:
            _print_graph_accounting(options, plan)
    if options.num_gpu_blocks_override is not None:
        log.say(
            log.CORE,
            "kv_cache_utils.py:1",
            f"Overriding num_gpu_blocks={max(int(plan.kv_cache_gib * GIB // 17_301_504), 0)} with "
            f"num_gpu_blocks_override={options.num_gpu_blocks_override}",
        )


def _print_graph_accounting(options: ServeOptions, plan: MemoryPlan) -> None:
    """What counting the graphs' estimate (or not) comes to, in shares of the card."""
    asked = options.gpu_memory_utilization
    share = plan.graphs_estimated_gib / plan.total_gib
    if options.count_graphs:
        text = (
            "CUDA graph memory profiling is enabled (default since v0.21.0). The current "
            f"--gpu-memory-utilization={asked:.4f} is equivalent to --gpu-memory-utilization={asked - share:.4f} "
            "without CUDA graph memory profiling. To maintain the same effective KV cache size as before, increase "
            f"--gpu-memory-utilization to {asked + share:.4f}. To disable, set "
            "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0."
        )
        log.say(log.CORE, "gpu_worker.py:455", text)
        return
    text = (
        "CUDA graph memory profiling is disabled (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=0). Without it, CUDA "
        "graph memory is not accounted for during KV cache allocation, which may require lowering "
        "--gpu-memory-utilization to avoid OOM. Consider re-enabling it (the default as of v0.21.0) and increasing "
        f"--gpu-memory-utilization from {asked:.4f} to {asked + share:.4f}."
    )
    log.say(log.CORE, "gpu_worker.py:472", text, "WARNING")


def _print_cache(options: ServeOptions, plan: MemoryPlan) -> None:
    if options.max_model_len == -1:
        if plan.max_model_len == MODEL_LENGTH:
            text = f"full model context length {MODEL_LENGTH} fits in available GPU memory"
        else:
            text = f"reduced from {MODEL_LENGTH} to {plan.max_model_len} to fit in available GPU memory"
        log.say(log.CORE, "kv_cache_utils.py:1861", f"Auto-fit max_model_len: {text}")
    log.say(log.CORE, "kv_cache_utils.py:1708", f"GPU KV cache size: {plan.tokens_logged:,} tokens")
    log.say(
        log.CORE,
        "kv_cache_utils.py:1709",
        f"Maximum concurrency for {plan.max_model_len:,} tokens per request: {plan.max_concurrency:.2f}x",
    )


async def _print_capture(options: ServeOptions, plan: MemoryPlan, times: StartTimes) -> None:
    sizes = options.capture_sizes
    if not sizes:
        return
    await times.spend("graphs_s", 0.3)
    full = sum(1 for size in sizes if size <= options.max_num_seqs)
    for kind, number in (("mixed prefill-decode, PIECEWISE", len(sizes)), ("decode, FULL", full)):
        if number:
            bar = f"100%|██████████| {number}/{number} [00:00<00:00, 14.00it/s]"
            log.plain(f"Capturing CUDA graphs ({kind}): {bar}")
    seconds = max(round(times.phases["graphs_s"] * 0.2), 2)
    log.say(
        log.CORE,
        "gpu_model_runner.py:6133",
        f"Graph capturing finished in {seconds} secs, took {gib(plan.graphs_actual_gib)} GiB",
    )
    actual, estimated = plan.graphs_actual_gib, plan.graphs_estimated_gib
    share = abs(actual - estimated) / actual * 100 if actual else 0.0
    log.say(
        log.CORE,
        "gpu_worker.py:599",
        f"CUDA graph pool memory: {gib(actual)} GiB (actual), {gib(estimated)} GiB (estimated), difference: "
        f"{gib(abs(actual - estimated))} GiB ({share:.1f}%).",
    )

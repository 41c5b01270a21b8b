"""The lines of vLLM's start-up log, by version, as regular expressions.

Every number is followed by its unit, a closing bracket or white space in its expression, so that the
beginning of a line that is still being written never gives a value that is cut short.
"""

from __future__ import annotations

import ast
import contextlib
import re
from typing import Any

from qwenbench.engine.speed_settings import async_scheduling_of, sampler_of

_SOURCE = re.compile(r"\[(?:[\w/.]*/)?(?P<file>\w+\.py):\d+\]")
_VERSION = re.compile(r"\bversion (\d+\.\d+[^\s]*)(?=\s)")
_ENGINE_VERSION = re.compile(r"Initializing a V1 LLM engine \(v(\d+\.\d+[^)\s]*)\)")
_ARGUMENTS = re.compile(r"non-default args: (\{.*\})")
_LEVEL = re.compile(r"\b(WARNING|ERROR)\b(?: \d\d-\d\d \d\d:\d\d:\d\d)?(?: \[[^\]]+\])? (?P<text>.+?)\s*$")
_FULL_CAPTURED = re.compile(r"Capturing CUDA graphs \((?:decode, )?FULL\):\s+100%\|[^|]*\|\s*(\d+)/(\d+) ")

_NUMBER = r"([\d,]*\d(?:\.\d+)?)"
_SIGNED = r"(-?\d+(?:\.\d+)?)"
"""Graph memory is a difference of free memory, and vLLM prints it even where that came out negative."""

WORKER_VALUES: dict[str, tuple[re.Pattern[str], ...]] = {
    "weights_gib": (
        re.compile(rf"Model loading took {_NUMBER} GiB"),
        re.compile(rf"Actual usage is {_NUMBER} GiB for weight"),
        re.compile(rf"model weights take {_NUMBER}GiB"),
    ),
    "activations_gib": (
        re.compile(rf"{_NUMBER} GiB for peak activation"),
        re.compile(rf"PyTorch activation peak memory takes {_NUMBER}GiB"),
    ),
    "non_torch_gib": (
        re.compile(rf"{_SIGNED} GiB for non-torch memory"),
        re.compile(rf"non_torch_memory takes {_SIGNED}GiB"),
    ),
    "consumed_gib": (re.compile(rf"Actual usage is {_NUMBER} GiB for consumed memory"),),
    "graphs_estimated_gib": (
        re.compile(rf"Estimated CUDA graph memory: {_SIGNED} GiB"),
        re.compile(rf"CUDA graph pool memory: -?[\d.]+ GiB \(actual\), {_SIGNED} GiB \(estimated\)"),
    ),
    "graphs_actual_gib": (
        re.compile(rf"Graph capturing finished in \d+ secs?, took {_SIGNED} GiB"),
        re.compile(rf"CUDA graph pool memory: {_SIGNED} GiB \(actual\)"),
    ),
    "kv_cache_gib": (
        re.compile(rf"Available KV cache memory: {_SIGNED} GiB"),
        re.compile(rf"[Cc]urrent kv cache memory in use is {_SIGNED} GiB"),
        re.compile(rf"(?:Explicitly|Auto) set \({_NUMBER}/[\d.]+\) GiB for KV cache"),
        re.compile(rf"reserved {_NUMBER} GiB memory for KV Cache"),
        re.compile(rf"rest of the memory reserved for KV Cache is {_SIGNED}GiB"),
    ),
}
"""Values that every worker prints for itself. Sizes in GiB; what is left for the KV cache may be negative."""

WORKER_SECONDS: dict[str, re.Pattern[str]] = {
    "compile_s": re.compile(rf"torch\.compile (?P<verb>took|takes) {_NUMBER} s(?:econds)? in total"),
    "profile_s": re.compile(rf"Initial profiling/warmup run (?P<verb>took) {_NUMBER} s\b"),
    "load_s": re.compile(rf"Model loading (?P<verb>took) [\d.]+ GiB(?: memory)? and {_NUMBER} seconds"),
    "capture_s": re.compile(rf"Graph capturing (?P<verb>finished) in {_NUMBER} secs?,"),
}
"""Seconds that every worker prints. `took` is a part's own (a drafter adds a second line): they are summed;
`takes` (up to 0.17) is the sum so far, and a capture is told once."""

_LOG_FLOATS: dict[str, tuple[re.Pattern[str], ...]] = {
    "max_concurrency_logged": (re.compile(rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x"),),
    "compilation_s": (re.compile(rf"init engine \([^)]*\) took .*\(compilation: {_NUMBER} s\)"),),
    "init_s": (re.compile(rf"init engine \([^)]*\) took {_NUMBER} s(?:econds)?\b"),),
    "cuda_total_gib": (re.compile(rf"Free memory on device \S*\s*\([\d.]+/{_NUMBER} GiB\) on startup"),),
    "budget_gib": (re.compile(rf"esired GPU memory utilization (?:is )?\([\d.]+, {_NUMBER} GiB\)"),),
}

_LOG_INTS: dict[str, tuple[re.Pattern[str], ...]] = {
    "attention_block_tokens": (re.compile(rf"Setting attention block size to {_NUMBER} tokens"),),
    "kv_cache_tokens_logged": (re.compile(rf"KV cache size: {_NUMBER} tokens"),),
    "max_concurrency_tokens": (re.compile(rf"Maximum concurrency for {_NUMBER} tokens per request"),),
    # `Overriding num_gpu_blocks=0` is the profiler's own small cache (0.17 to 0.19), not the server's.
    "kv_cache_blocks_profiled": (re.compile(rf"Overriding num_gpu_blocks=(?!0 ){_NUMBER} with "),),
    "kv_cache_blocks": (
        re.compile(rf"num_gpu_blocks=(?!0 )\d+ with num_gpu_blocks_override={_NUMBER}(?=\s)"),
        re.compile(rf"\bnum_gpu_blocks is:? {_NUMBER}(?=\s)"),
        re.compile(rf"# (?:GPU|cuda) blocks: {_NUMBER},"),
    ),
    "max_num_batched_tokens": (
        re.compile(rf"Chunked prefill is enabled with max_num_batched_tokens={_NUMBER}(?=[.\s])"),
    ),
    "max_model_len_fitted": (
        re.compile(rf"Auto-fit max_model_len: full model context length {_NUMBER} fits"),
        re.compile(rf"Auto-fit max_model_len: reduced from \d+ to {_NUMBER} to fit"),
    ),
}

_LOG_TEXTS: dict[str, tuple[re.Pattern[str], ...]] = {
    "quantization_backend": (
        re.compile(
            r"(?:Using|Selected) (\S+) for "
            r"(?:\S+ GEMM\b|CompressedTensors\w+|ModelOpt\w+|GPTQ\w+|AWQ\w+|Fp8LinearMethod)"
        ),
    ),
    "mamba_cache_mode": (re.compile(r"Mamba cache mode is set to '(\w+)'"),),
}

_FIRST_INTS: dict[str, re.Pattern[str]] = {"max_model_len_asked": re.compile(rf"Using max model len {_NUMBER}(?=\s)")}
"""Told first for the model itself, then perhaps again for its drafter: the first one counts."""

_BACKEND_NAME = r"(?:AttentionBackendEnum\.)?'?([A-Z][A-Z0-9_]+)'?"
_ATTENTION: tuple[re.Pattern[str], ...] = (
    re.compile(rf"Using {_BACKEND_NAME} attention backend\b"),
    re.compile(rf"Using (?:\w+ )?KV cache (?:layout|format) for {_BACKEND_NAME} backend"),
    re.compile(r"Using ([A-Z][\w ]*?) backend on V1 engine"),
)
_PLATFORM_ATTENTION = re.compile(r"Using (?:AttentionBackendEnum\.)?([A-Z][\w ]*?) backend\b(?! for| out of)")
"""Counts only from the files that choose the attention backend: MoE and GEMM kernels have lines of this form too."""
_PLATFORM_FILES = {"cuda.py", "rocm.py", "cpu.py", "xpu.py", "tpu.py", "hpu.py", "selector.py"}

_READY = re.compile(r"Application startup complete\.")
_DIED = re.compile(
    r"EngineCore (?:failed to start|encountered a fatal error|encountered an issue)|EngineDeadError"
    r"|Engine core initialization failed|Engine core proc \S+ died|engine core exited unexpectedly"
    r"|WorkerProc (?:failed to start|hit an exception)"
)
_STOP = re.compile(
    r"\[shutdown\]|Received (?:SIGTERM|SIGINT)|[Ss]hutting down|Shutdown initiated|got signal SIG(?:TERM|INT)"
)
_TEXT_ONLY = re.compile(r"running in text-only mode|Skipping memory profiling for multimodal encoder")
_CAPPED = re.compile(r"Capping cudagraph capture sizes from max \d+ to (\d+)(?=\s)")
_GRAPH_SIZES: dict[str, tuple[re.Pattern[str], ...]] = {
    "capture_effective": (re.compile(rf"Profiling CUDA graph memory:.*PIECEWISE=\d+ \(largest={_NUMBER}\)"),),
    "capture_effective_full": (re.compile(rf"Profiling CUDA graph memory:.*FULL=\d+ \(largest={_NUMBER}\)"),),
}

_CONFIG_TEXTS = {
    "device": re.compile(r"\bdevice_config=(?:device\()?'?(\w+)"),
    "kv_cache_dtype": re.compile(r"\bkv_cache_dtype=([\w.]+)"),
    "dtype": re.compile(r"(?<!_)\bdtype=(?:torch\.)?(\w+)"),
    "quantization": re.compile(r"\bquantization=([\w.-]+)"),
    "model": re.compile(r"\bmodel='([^']+)'"),
}
_CONFIG_INTS = {
    "tensor_parallel": re.compile(r"\btensor_parallel_size=(\d+)"),
    "pipeline_parallel": re.compile(r"\bpipeline_parallel_size=(\d+)"),
    "max_seq_len": re.compile(r"\bmax_seq_len=(\d+)"),
    # vLLM's last compile range ends at the step budget.
    "max_num_batched_tokens": re.compile(r"'compile_ranges_endpoints': \[[\d, ]*?(\d+)\]"),
}
_SPECULATIVE = re.compile(r"SpeculativeConfig\(method='(?P<method>\w+)'.*?\bnum_spec_tokens=(?P<tokens>\d+)\)")
_EAGER = re.compile(r"\benforce_eager=(True|False)\b")
_CAPTURE_SIZES = re.compile(r"'cudagraph_capture_sizes': \[([\d, ]*)\]")
_MODE = re.compile(r"'cudagraph_mode': <CUDAGraphMode\.(\w+)")
_PREFIX_CACHING = re.compile(r"\benable_prefix_caching=(True|False)\b")

_WARNING_TOPICS = re.compile(
    r"Capping|calculate_kv_scales|calculate-kv-scales|ignor|deprecated|CUDA graph memory profiling is disabled"
    r"|padding layers|Enforce eager|native support for FP4|exceeds|reduc|not supported|unsupported|[Dd]isabl"
    r"|fall(?:ing)? back|is below|less than|out of memory|accuracy"
)
_WARNING_NOISE = re.compile(r"NIXL|ulimit|LD_PRELOAD|[Tt]riton|Inductor|transformers|generation.config")


def banner_version(line: str) -> str | None:
    """The version in vLLM's banner, which every start prints once."""
    if "version" not in line or ("█" not in line and "API server version" not in line):
        return None
    found = _VERSION.search(line)
    return found.group(1) if found else None


def tokens_formula(version: str | None) -> str | None:
    """The formula behind `KV cache size: N tokens` by version: the older one up to 0.20.0 (seen printed) and its
    builds before 0.20.1; None for builds that carry no release's number."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?(rc|\.?dev|a|b)?", version or "")
    if found is None:
        return None
    # 0.20 without a patch number stands for its later releases
    number = (int(found[1]), int(found[2]), int(found[3]) if found[3] else 99 if found[2] == "20" else 0)
    if number < (0, 18, 0) and ("dev" in (version or "")):
        return None  # 0.1.dev1+g12ab: built without tags
    if number <= (0, 20, 0) or (number == (0, 20, 1) and found.group(4)):
        return "blocks_per_group"
    return "max_concurrency"


def worker_values_of(line: str) -> dict[str, Any]:
    """GiB values of a worker in this line, by WorkerMemory field."""
    if "GiB" not in line:
        return {}
    return {name: float(text) for name, text in _first_matches(WORKER_VALUES, line)}


def worker_seconds_of(line: str) -> dict[str, tuple[float, bool]]:
    """Seconds of a worker in this line and whether they are this part's own, to be added to those before."""
    found = {}
    for name, pattern in WORKER_SECONDS.items():
        match = pattern.search(line)
        if match:
            found[name] = (float(match.group(2).replace(",", "")), match.group("verb") == "took")
    return found


def values_of(line: str) -> dict[str, Any]:
    """Values of the whole start in this line, by StartupLog field."""
    values: dict[str, Any] = {name: float(text) for name, text in _first_matches(_LOG_FLOATS, line)}
    values.update((name, int(text)) for name, text in _first_matches(_LOG_INTS, line) if text.isdigit())
    values.update(_first_matches(_LOG_TEXTS, line))
    values.update(_switches(line))
    values.update(_graph_sizes(line))
    if _READY.search(line):
        values["ready"] = True
    return values


def first_values_of(line: str) -> dict[str, Any]:
    """Values of which the first one of a start counts, by StartupLog field."""
    values: dict[str, Any] = {}
    for name, pattern in _FIRST_INTS.items():
        found = pattern.search(line)
        if found:
            values[name] = int(found.group(1).replace(",", ""))
    backend = attention_backend(line)
    if backend is not None:
        values["attention_backend"] = backend
    return values


def attention_backend(line: str) -> str | None:
    """The attention backend that a line names; None for lines about the vision part, MoE or GEMM kernels."""
    if "backend" not in line or "for vit attention" in line or "MoE" in line:
        return None
    for pattern in _ATTENTION:
        found = pattern.search(line)
        if found:
            return found.group(1)
    source = _SOURCE.search(line)
    if source is None or source.group("file") not in _PLATFORM_FILES:
        return None
    found = _PLATFORM_ATTENTION.search(line)
    return found.group(1) if found else None


def _switches(line: str) -> dict[str, Any]:
    """Settings of the engine that a line of its own tells, on, off or why not."""
    if "graph memory profiling" in line:
        if "profiling is enabled" in line:
            return {"graphs_estimate_applied": True}
        if "profiling is disabled" in line or "profiling will be enabled" in line:
            return {"graphs_estimate_applied": False}
    scheduling = async_scheduling_of(line)
    if scheduling is not None:
        return {"async_scheduling": scheduling}
    sampler = sampler_of(line)
    if sampler is not None:
        return {"sampler": sampler}
    if _TEXT_ONLY.search(line):
        return {"vision_profiled": False}
    if "Encoder cache will be initialized with a budget" in line:
        return {"vision_profiled": "profiled with 0" not in line}
    return {}


def _graph_sizes(line: str) -> dict[str, Any]:
    if "Profiling CUDA graph memory:" in line and line.endswith("\n"):
        # A kind that is not named is not captured at all.
        values: dict[str, Any] = {"capture_effective": 0, "capture_effective_full": 0}
        values.update((name, int(text)) for name, text in _first_matches(_GRAPH_SIZES, line))
        return values
    capped = _CAPPED.search(line)
    if capped:
        return {"capture_capped": int(capped.group(1))}
    if "No valid cudagraph capture sizes remain" in line:
        return {"capture_capped": 0}
    return {}


def engine_died(line: str) -> bool:
    """Whether this line tells that the engine died; many of these appear after an ordinary stop as well."""
    return _DIED.search(line) is not None


def stop_began(line: str) -> bool:
    """Whether an ordinary stop began: what dies afterwards was told to."""
    return _STOP.search(line) is not None and "exited unexpectedly" not in line


def load_began(line: str) -> bool:
    """Whether the weights begin to load here: imports and set-up are done."""
    return "Starting to load model" in line


def cache_line(line: str) -> bool | None:
    """True where compiled code came from the cache, False where it was compiled, None for other lines."""
    if "Directly load" in line and ("compile range" in line or "AOT compilation" in line or "shape" in line):
        return True
    if "Compiling a graph for" in line or "saved AOT compiled function" in line or "Cache the graph" in line:
        return False
    return None


def non_default_args(line: str) -> dict[str, Any] | None:
    """The dictionary that vLLM repeats its arguments in; an entry that is no literal is left out."""
    found = _ARGUMENTS.search(line) if "non-default args" in line else None
    if found is None:
        return None
    try:
        value = ast.literal_eval(found.group(1))
        return value if isinstance(value, dict) else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _entries(found.group(1)[1:-1])


def _entries(text: str) -> dict[str, Any]:
    """The entries of a dictionary's text that are literals, where others are not (`<Mode.X: 3>`)."""
    entries: dict[str, Any] = {}
    depth, quote, start = 0, "", 0
    for position, letter in enumerate(text + ","):
        if quote:
            quote = "" if letter == quote and text[position - 1 : position] != "\\" else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{<":
            depth += 1
        elif letter in ")]}>":
            depth -= 1
        elif letter == "," and depth <= 0:
            with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                entries.update(ast.literal_eval("{" + text[start:position] + "}"))
            start = position + 1
    return entries


def engine_config(line: str) -> dict[str, Any] | None:
    """What the engine's one-line configuration dump says; None for other lines.

    A capture list is what will be captured; FULL decode graphs stop at max-num-seqs, so their largest size
    comes from the capture itself. Graphs that are switched off count as size 0, but not on a CPU, which
    has none to miss.
    """
    version = _ENGINE_VERSION.search(line)
    if version is None:
        return None
    values: dict[str, Any] = {"vllm_version": version.group(1)}
    for name, pattern in _CONFIG_TEXTS.items():
        found = pattern.search(line)
        if found:
            values[name] = found.group(1)
    for name, pattern in _CONFIG_INTS.items():
        found = pattern.search(line)
        if found:
            values[name] = int(found.group(1))
    caching = _PREFIX_CACHING.search(line)
    if caching:
        values["enable_prefix_caching"] = caching.group(1) == "True"
    drafter = _SPECULATIVE.search(line)
    if drafter:
        values["speculative_method"] = drafter.group("method")
        values["speculative_tokens"] = int(drafter.group("tokens"))
    eager = _EAGER.search(line)
    if eager:
        values["eager"] = eager.group(1) == "True"
    values.update(_captures(line, on_gpu=values.get("device") == "cuda", eager=values.get("eager") is True))
    return values


def _captures(line: str, *, on_gpu: bool, eager: bool) -> dict[str, Any]:
    mode = _MODE.search(line)
    sizes = _CAPTURE_SIZES.search(line)
    if not on_gpu:
        return {}
    if eager or (mode is not None and mode.group(1) == "NONE"):
        return {"capture_effective": 0, "capture_effective_full": 0}
    if sizes is None or not sizes.group(1).strip():
        return {}
    captured = tuple(int(size) for size in sizes.group(1).split(","))
    if mode is None or "PIECEWISE" in mode.group(1):
        return {"capture_sizes": captured, "capture_effective": max(captured)}
    return {"capture_sizes": captured}


def captured_full_graphs(line: str) -> int | None:
    """How many FULL graphs were captured, from the last state of the progress bar."""
    found = _FULL_CAPTURED.search(line)
    return int(found.group(2)) if found and found.group(1) == found.group(2) else None


def warning_that_matters(line: str) -> str | None:
    """The text of a warning about memory, captures or flags that were changed; None for the rest."""
    found = _LEVEL.search(line)
    if found is None or found.group(1) != "WARNING":
        return None
    text = found.group("text")
    if _WARNING_NOISE.search(text) or not _WARNING_TOPICS.search(text):
        return None
    return text


def _first_matches(table: dict[str, tuple[re.Pattern[str], ...]], line: str) -> list[tuple[str, str]]:
    matches = []
    for name, alternatives in table.items():
        for pattern in alternatives:
            found = pattern.search(line)
            if found:
                matches.append((name, found.group(1).replace(",", "")))
                break
    return matches

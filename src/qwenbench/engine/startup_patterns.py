"""The lines of vLLM's start-up log, by version, as regular expressions.

Every number is followed by its unit, a closing bracket or white space in its expression, so that the
beginning of a line that is still being written never gives a value that is cut short.
"""

from __future__ import annotations

import re
from typing import Any

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_ACCESS = re.compile(r'"(?:GET|POST|HEAD|PUT|OPTIONS|DELETE) \S* HTTP/')
_PROCESS = re.compile(r"\((?P<name>[A-Za-z][\w-]*)(?: rank=\d+)? pid=\d+\)")
_VERSION = re.compile(r"\bversion (\d+\.\d+[^\s]*)(?=\s)")
_ENGINE_VERSION = re.compile(r"Initializing a V1 LLM engine \(v(\d+\.\d+[^)\s]*)\)")
_ARGUMENTS = re.compile(r"non-default args: (\{.*\})\s*$")
_LEVEL = re.compile(r"\b(WARNING|ERROR)\b(?: \d\d-\d\d \d\d:\d\d:\d\d)?(?: \[[^\]]+\])? (?P<text>.+?)\s*$")
_FULL_CAPTURED = re.compile(r"Capturing CUDA graphs \((?:decode, )?FULL\):\s+100%\|[^|]*\|\s*(\d+)/(\d+) ")

_CLOCK = re.compile(r"\b\d\d-\d\d (\d\d):(\d\d):(\d\d)\b")

_NUMBER = r"([\d,]*\d(?:\.\d+)?)"
_SIGNED = r"(-?\d+(?:\.\d+)?)"
"""Graph memory is a difference of free memory, and vLLM prints it even where that came out negative."""

WORKER_VALUES: dict[str, tuple[re.Pattern[str], ...]] = {
    "weights_gib": (
        re.compile(rf"Model loading took {_NUMBER} GiB"),
        re.compile(rf"Actual usage is {_NUMBER} GiB for weight"),
    ),
    "activations_gib": (re.compile(rf"{_NUMBER} GiB for peak activation"),),
    "graphs_estimated_gib": (
        re.compile(rf"Estimated CUDA graph memory: {_SIGNED} GiB"),
        re.compile(rf"CUDA graph pool memory: -?[\d.]+ GiB \(actual\), {_SIGNED} GiB \(estimated\)"),
    ),
    "graphs_actual_gib": (
        re.compile(rf"Graph capturing finished in \d+ secs?, took {_SIGNED} GiB"),
        re.compile(rf"CUDA graph pool memory: {_SIGNED} GiB \(actual\)"),
    ),
    "kv_cache_gib": (
        re.compile(rf"Available KV cache memory: {_NUMBER} GiB"),
        re.compile(rf"(?:Explicitly|Auto) set \({_NUMBER}/[\d.]+\) GiB for KV cache"),
        re.compile(rf"reserved {_NUMBER} GiB memory for KV Cache"),
    ),
}
"""Values that every worker prints for itself. Sizes in GiB."""

_LOG_FLOATS: dict[str, tuple[re.Pattern[str], ...]] = {
    "max_concurrency_logged": (re.compile(rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x"),),
    "compile_s": (re.compile(rf"torch\.compile (?:took|takes) {_NUMBER} s(?:econds)? in total"),),
    "profile_s": (re.compile(rf"Initial profiling/warmup run took {_NUMBER} s\b"),),
    "capture_s": (re.compile(rf"Graph capturing finished in {_NUMBER} secs?,"),),
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
    "kv_cache_blocks": (re.compile(rf"num_gpu_blocks=(?!0 )\d+ with num_gpu_blocks_override={_NUMBER}(?=\s)"),),
    "capture_effective": (re.compile(rf"Profiling CUDA graph memory:.*PIECEWISE=\d+ \(largest={_NUMBER}\)"),),
    "capture_effective_full": (re.compile(rf"Profiling CUDA graph memory:.*FULL=\d+ \(largest={_NUMBER}\)"),),
    "max_num_batched_tokens": (
        re.compile(rf"Chunked prefill is enabled with max_num_batched_tokens={_NUMBER}(?=[.\s])"),
    ),
    "max_model_len_effective": (
        re.compile(rf"Auto-fit max_model_len: full model context length {_NUMBER} fits"),
        re.compile(rf"Auto-fit max_model_len: reduced from \d+ to {_NUMBER} to fit"),
        re.compile(rf"Using max model len {_NUMBER}(?=\s)"),
    ),
}

_LOG_TEXTS: dict[str, tuple[re.Pattern[str], ...]] = {
    "attention_backend": (
        re.compile(r"Using (?:AttentionBackendEnum\.)?([A-Z][A-Z0-9_]+) (?:attention )?backend\b"),
        re.compile(r"KV cache layout for ([A-Z][A-Z0-9_]+) backend"),
        re.compile(r"Using (Flash Attention|FlashInfer|Triton(?: Attention)?) backend\b"),
    ),
    "quantization_backend": (
        re.compile(
            r"(?:Using|Selected) (\S+) for "
            r"(?:\S+ GEMM\b|CompressedTensors\w+|ModelOpt\w+|GPTQ\w+|AWQ\w+|Fp8LinearMethod)"
        ),
    ),
    "mamba_cache_mode": (re.compile(r"Mamba cache mode is set to '(\w+)'"),),
}

_READY = re.compile(r"Application startup complete\.")

_CONFIG_TEXTS = {
    "device": re.compile(r"\bdevice_config=(?:device\()?'?(\w+)"),
    "kv_cache_dtype": re.compile(r"\bkv_cache_dtype=([\w.]+)"),
}
_EAGER = re.compile(r"\benforce_eager=True\b")
_CAPTURE_SIZES = re.compile(r"'cudagraph_capture_sizes': \[([\d, ]*)\]")
_MODE = re.compile(r"'cudagraph_mode': <CUDAGraphMode\.(\w+)")
_COMPILE_RANGES = re.compile(r"'compile_ranges_endpoints': \[[\d, ]*?(\d+)\]")
_PREFIX_CACHING = re.compile(r"\benable_prefix_caching=(True|False)\b")

_WARNING_TOPICS = re.compile(
    r"Capping|calculate_kv_scales|calculate-kv-scales|ignor|deprecated|CUDA graph memory profiling is disabled"
    r"|padding layers|Enforce eager|native support for FP4|exceeds|reduc|not supported|unsupported|[Dd]isabl"
    r"|fall(?:ing)? back|is below|less than|out of memory|accuracy"
)
_WARNING_NOISE = re.compile(r"NIXL|ulimit|LD_PRELOAD|[Tt]riton|Inductor|transformers|generation.config")


def without_colours(line: str) -> str:
    """The line without ANSI escape sequences."""
    return _ANSI.sub("", line) if "\x1b" in line else line


def is_access_log(line: str) -> bool:
    """Whether this is one of the (many) lines that the HTTP server writes per request."""
    return " HTTP/" in line and _ACCESS.search(line) is not None


def clock_s(line: str, previous: float | None) -> float | None:
    """Seconds since midnight of the line's time stamp; the previous one where the line has none."""
    found = _CLOCK.search(line)
    if found is None:
        return previous
    hours, minutes, seconds = (int(part) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def process_name(line: str) -> str:
    """The innermost process name of the prefix (`Worker_TP0`), empty when there is none."""
    names = _PROCESS.findall(line)
    return names[-1] if names else ""


def banner_version(line: str) -> str | None:
    """The version in vLLM's banner, which every start prints once."""
    if "version" not in line or ("█" not in line and "API server version" not in line):
        return None
    found = _VERSION.search(line)
    return found.group(1) if found else None


def release(version: str | None) -> tuple[int, int] | None:
    """(major, minor) of a version text such as `0.18.1.dev3+g12ab`; None when there is none."""
    found = re.match(r"v?(\d+)\.(\d+)", version or "")
    return (int(found.group(1)), int(found.group(2))) if found else None


def worker_values_of(line: str) -> dict[str, Any]:
    """GiB values of a worker in this line, by WorkerMemory field."""
    if "GiB" not in line:
        return {}
    return {name: float(text) for name, text in _first_matches(WORKER_VALUES, line)}


def values_of(line: str) -> dict[str, Any]:
    """Values of the whole start in this line, by StartupLog field."""
    values: dict[str, Any] = {name: float(text) for name, text in _first_matches(_LOG_FLOATS, line)}
    values.update((name, int(text)) for name, text in _first_matches(_LOG_INTS, line) if text.isdigit())
    values.update(_first_matches(_LOG_TEXTS, line))
    if "graph memory profiling is enabled" in line:
        values["graphs_estimate_applied"] = True
    elif "graph memory profiling is disabled" in line or "graph memory profiling will be enabled" in line:
        values["graphs_estimate_applied"] = False
    if "Profiling CUDA graph memory:" in line and line.endswith("\n"):
        # A kind that is not named is not captured at all.
        values.setdefault("capture_effective", 0)
        values.setdefault("capture_effective_full", 0)
    if _READY.search(line):
        values["ready"] = True
    return values


def non_default_args(line: str) -> str | None:
    """The text of the dictionary that vLLM repeats its arguments in."""
    found = _ARGUMENTS.search(line) if "non-default args" in line else None
    return found.group(1) if found else None


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
    caching = _PREFIX_CACHING.search(line)
    if caching:
        values["enable_prefix_caching"] = caching.group(1) == "True"
    ranges = _COMPILE_RANGES.search(line)
    if ranges:
        # vLLM's last compile range ends at the step budget.
        values["max_num_batched_tokens"] = int(ranges.group(1))
    mode = _MODE.search(line)
    sizes = _CAPTURE_SIZES.search(line)
    on_gpu = values.get("device") == "cuda"
    if _EAGER.search(line) or (mode is not None and mode.group(1) == "NONE"):
        if on_gpu:
            values.update(capture_effective=0, capture_effective_full=0)
    elif sizes and sizes.group(1).strip() and on_gpu:
        captured = tuple(int(size) for size in sizes.group(1).split(","))
        values["capture_sizes"] = captured
        if mode is None or "PIECEWISE" in mode.group(1):
            values["capture_effective"] = max(captured)
    return values


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

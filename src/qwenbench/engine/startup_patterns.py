"""The lines of vLLM's start-up log, by version, as regular expressions.

Every number is followed by its unit, a closing bracket or white space in its expression, so that the
beginning of a line that is still being written never gives a value that is cut short.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

Table = Mapping[str, tuple[Callable[[str], Any], tuple[re.Pattern[str], ...]]]
"""Field -> how its text is read, and the expressions that find it: the first that matches counts."""


def _table(read: Callable[[str], Any], **fields: str | tuple[str, ...]) -> Table:
    listed = {name: (texts,) if isinstance(texts, str) else texts for name, texts in fields.items()}
    return {name: (read, tuple(map(re.compile, texts))) for name, texts in listed.items()}


def values_in(table: Table, line: str) -> dict[str, Any]:
    """What a line tells of a table's fields."""
    values = {}
    for name, (read, patterns) in table.items():
        found = next(filter(None, (pattern.search(line) for pattern in patterns)), None)
        if found is not None:
            values[name] = read(found.group(1))
    return values


def number(text: str) -> float:
    return float(text.replace(",", ""))


def _int(text: str) -> int:
    return int(text.replace(",", ""))


def _is_true(text: str) -> bool:
    return text == "True"


_NUMBER = r"([\d,]*\d(?:\.\d+)?)"
_INT = r"([\d,]*\d)"
_SIGNED = r"(-?\d+(?:\.\d+)?)"
"""Graph memory is a difference of free memory, and vLLM prints it even where that came out negative."""

WORKER = _table(
    number,
    weights_gib=(
        rf"Model loading took {_NUMBER} GiB",
        rf"Actual usage is {_NUMBER} GiB for weight",
        rf"model weights take {_NUMBER}GiB",
    ),
    activations_gib=(
        rf"{_NUMBER} GiB for peak activation",
        rf"PyTorch activation peak memory takes {_NUMBER}GiB",
    ),
    non_torch_gib=(rf"{_SIGNED} GiB for non-torch memory", rf"non_torch_memory takes {_SIGNED}GiB"),
    consumed_gib=rf"Actual usage is {_NUMBER} GiB for consumed memory",
    graphs_estimated_gib=(
        rf"Estimated CUDA graph memory: {_SIGNED} GiB",
        rf"CUDA graph pool memory: -?[\d.]+ GiB \(actual\), {_SIGNED} GiB \(estimated\)",
    ),
    graphs_actual_gib=(
        rf"Graph capturing finished in \d+ secs?, took {_SIGNED} GiB",
        rf"CUDA graph pool memory: {_SIGNED} GiB \(actual\)",
    ),
    kv_cache_gib=(
        rf"Available KV cache memory: {_SIGNED} GiB",
        rf"[Cc]urrent kv cache memory in use is {_SIGNED} GiB",
        rf"(?:Explicitly|Auto) set \({_NUMBER}/[\d.]+\) GiB for KV cache",
        rf"reserved {_NUMBER} GiB memory for KV Cache",
        rf"rest of the memory reserved for KV Cache is {_SIGNED}GiB",
    ),
)
"""Values that every worker prints for itself, fields of WorkerMemory in GiB. What is left for the KV cache may be
negative."""

WORKER_SECONDS: Mapping[str, re.Pattern[str]] = {
    "compile_s": re.compile(rf"torch\.compile (?P<verb>took|takes) {_NUMBER} s(?:econds)? in total"),
    "profile_s": re.compile(rf"Initial profiling/warmup run (?P<verb>took) {_NUMBER} s\b"),
    "load_s": re.compile(rf"Model loading (?P<verb>took) [\d.]+ GiB(?: memory)? and {_NUMBER} seconds"),
    "capture_s": re.compile(rf"Graph capturing (?P<verb>finished) in {_NUMBER} secs?,"),
}
"""Seconds that every worker prints. `took` is a part's own (a drafter adds a second line): they are summed;
`takes` (up to 0.17) is the sum so far, and a capture is told once."""

_START: Table = {
    **_table(
        number,
        max_concurrency_logged=rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x",
        compilation_s=rf"init engine \([^)]*\) took .*\(compilation: {_NUMBER} s\)",
        init_s=rf"init engine \([^)]*\) took {_NUMBER} s(?:econds)?\b",
        cuda_total_gib=rf"Free memory on device \S*\s*\([\d.]+/{_NUMBER} GiB\) on startup",
        budget_gib=rf"esired GPU memory utilization (?:is )?\([\d.]+, {_NUMBER} GiB\)",
    ),
    **_table(
        _int,
        attention_block_tokens=rf"Setting attention block size to {_INT} tokens",
        kv_cache_tokens_logged=rf"KV cache size: {_INT} tokens",
        max_concurrency_tokens=rf"Maximum concurrency for {_INT} tokens per request",
        # `Overriding num_gpu_blocks=0` is the profiler's own small cache (0.17 to 0.19), not the server's.
        kv_cache_blocks_profiled=rf"Overriding num_gpu_blocks=(?!0 ){_INT} with ",
        kv_cache_blocks=(
            rf"num_gpu_blocks=(?!0 )\d+ with num_gpu_blocks_override={_INT}(?=\s)",
            rf"\bnum_gpu_blocks is:? {_INT}(?=\s)",
            rf"# (?:GPU|cuda) blocks: {_INT},",
        ),
        max_num_batched_tokens=rf"Chunked prefill is enabled with max_num_batched_tokens={_INT}(?=[.\s])",
        max_model_len_fitted=(
            rf"Auto-fit max_model_len: full model context length {_INT} fits",
            rf"Auto-fit max_model_len: reduced from \d+ to {_INT} to fit",
        ),
        capture_capped=rf"Capping cudagraph capture sizes from max \d+ to {_INT}(?=\s)",
    ),
    **_table(
        str,
        quantization_backend=r"(?:Using|Selected) (\S+) for "
        r"(?:\S+ GEMM\b|CompressedTensors\w+|ModelOpt\w+|GPTQ\w+|AWQ\w+|Fp8LinearMethod)",
        mamba_cache_mode=r"Mamba cache mode is set to '(\w+)'",
    ),
    **_table(lambda text: text == "enabled", async_scheduling=r"Asynchronous scheduling is (enabled|disabled)"),
}
"""Values of the whole start, by StartupLog's fields; the last one told counts."""

_FIRST = _table(_int, max_model_len_asked=rf"Using max model len {_INT}(?=\s)")
"""Told first for the model itself, then perhaps again for its drafter: the first one counts."""

_FACTS = tuple(
    (re.compile(text), field, value)
    for text, field, value in (
        (r"graph memory profiling is enabled", "graphs_estimate_applied", True),
        (r"graph memory profiling (?:is disabled|will be enabled)", "graphs_estimate_applied", False),
        (r"running in text-only mode|Skipping memory profiling for multimodal encoder", "vision_profiled", False),
        (r"Encoder cache will be initialized with a budget(?!.*profiled with 0)", "vision_profiled", True),
        (r"Encoder cache will be initialized with a budget.*profiled with 0", "vision_profiled", False),
        (r"No valid cudagraph capture sizes remain", "capture_capped", 0),
        (r"Application startup complete\.", "ready", True),
    )
)
"""Lines that stand for a value."""

_GRAPHS = _table(
    _int,
    capture_effective=rf"Profiling CUDA graph memory:.*PIECEWISE=\d+ \(largest={_INT}\)",
    capture_effective_full=rf"Profiling CUDA graph memory:.*FULL=\d+ \(largest={_INT}\)",
)

_ENGINE: Table = {
    **_table(
        str,
        vllm_version=r"Initializing a V1 LLM engine \(v(\d+\.\d+[^)\s]*)\)",
        device=r"\bdevice_config=(?:device\()?'?(\w+)",
        kv_cache_dtype=r"\bkv_cache_dtype=([\w.]+)",
        dtype=r"(?<!_)\bdtype=(?:torch\.)?(\w+)",
        quantization=r"\bquantization=([\w.-]+)",
        model=r"\bmodel='([^']+)'",
        speculative_method=r"SpeculativeConfig\(method='(\w+)'.*?\bnum_spec_tokens=\d+\)",
    ),
    **_table(
        int,
        tensor_parallel=r"\btensor_parallel_size=(\d+)",
        pipeline_parallel=r"\bpipeline_parallel_size=(\d+)",
        max_seq_len=r"\bmax_seq_len=(\d+)",
        # vLLM's last compile range ends at the step budget.
        max_num_batched_tokens=r"'compile_ranges_endpoints': \[[\d, ]*?(\d+)\]",
        speculative_tokens=r"SpeculativeConfig\(method='\w+'.*?\bnum_spec_tokens=(\d+)\)",
    ),
    **_table(
        _is_true,
        enable_prefix_caching=r"\benable_prefix_caching=(True|False)\b",
        eager=r"\benforce_eager=(True|False)\b",
    ),
}
"""The engine's one-line dump of its configuration."""
_CAPTURE_SIZES = re.compile(r"'cudagraph_capture_sizes': \[([\d, ]*)\]")
_MODE = re.compile(r"'cudagraph_mode': <CUDAGraphMode\.(\w+)")

_SOURCE = re.compile(r"\[(?:[\w/.]*/)?(?P<file>\w+\.py):\d+\]")
_BACKEND_NAME = r"(?:AttentionBackendEnum\.)?'?([A-Z][A-Z0-9_]+)'?"
_ATTENTION = _table(
    str,
    attention_backend=(
        rf"Using {_BACKEND_NAME} attention backend\b",
        rf"Using (?:\w+ )?KV cache (?:layout|format) for {_BACKEND_NAME} backend",
        r"Using ([A-Z][\w ]*?) backend on V1 engine",
    ),
)
_PLATFORM_ATTENTION = _table(
    str, attention_backend=r"Using (?:AttentionBackendEnum\.)?([A-Z][\w ]*?) backend\b(?! for| out of)"
)
"""Counts only from the files that choose the attention backend: MoE and GEMM kernels have lines of this form too."""
_PLATFORM_FILES = {"cuda.py", "rocm.py", "cpu.py", "xpu.py", "tpu.py", "hpu.py", "selector.py"}

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
JIT = re.compile(r"JIT compilation during inference: ([\w.]+?)\.?(?:\s|$)")
"""A kernel that was compiled while requests were running, as jit_monitor names it."""
_GRAPH_ROW = re.compile(
    r"\| *(\d+) *\| *\d+ *\| *-?\d+ *\| *(?:CUDAGraphMode\.)?(NONE|PIECEWISE|FULL)\w* *\| *(\d+) *\|"
)
"""A row of the tables that --cudagraph-metrics logs: tokens, padded, paddings, mode, steps (read in 0.26)."""
OTHER_SETTINGS = _table(
    str,
    **{
        "moe-config": r"Using default MoE config\. Performance might be (sub-optimal)",
        "all-reduce": r"Custom allreduce is disabled because (.+?)(?:\. |$)",
        "full-graphs": r"CUDAGraphMode\.FULL\w* is not supported .*; setting cudagraph_mode=(\w+)",
    },
)
"""Settings that cost speed and have a warning of their own and nothing more."""

DIED = re.compile(
    r"EngineCore (?:failed to start|encountered a fatal error|encountered an issue)|EngineDeadError"
    r"|Engine core initialization failed|Engine core proc \S+ died|engine core exited unexpectedly"
    r"|WorkerProc (?:failed to start|hit an exception)"
)
"""The engine died; many of these appear after an ordinary stop as well."""
STOP = re.compile(
    r"\[shutdown\]|Received (?:SIGTERM|SIGINT)|[Ss]hutting down|Shutdown initiated|got signal SIG(?:TERM|INT)"
)
"""An ordinary stop began: what dies afterwards was told to."""

_VERSION = re.compile(r"\bversion (\d+\.\d+[^\s]*)(?=\s)")
_ARGUMENTS = re.compile(r"non-default args: (\{.*\})")
_FULL_CAPTURED = re.compile(r"Capturing CUDA graphs \((?:decode, )?FULL\):\s+100%\|[^|]*\|\s*(\d+)/(\d+) ")
_WARNING = re.compile(r"\b(WARNING|ERROR)\b(?: \d\d-\d\d \d\d:\d\d:\d\d)?(?: \[[^\]]+\])? (?P<text>.+?)\s*$")
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


def start_values(line: str) -> dict[str, Any]:
    """Values of the whole start in this line, by StartupLog field; the last one told counts."""
    values = values_in(_START, line)
    values.update((field, value) for pattern, field, value in _FACTS if pattern.search(line))
    if (sampler := sampler_of(line)) is not None:
        values["sampler"] = sampler
    if "Profiling CUDA graph memory:" in line and line.endswith("\n"):
        # A kind that is not named is not captured at all.
        values |= {"capture_effective": 0, "capture_effective_full": 0} | values_in(_GRAPHS, line)
    return values


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


def graph_steps_of(line: str) -> tuple[int, str, int] | None:
    """(tokens, NONE, PIECEWISE or FULL, steps) of a row that --cudagraph-metrics logged; None for other lines."""
    found = _GRAPH_ROW.search(line) if line.count("|") >= 6 else None
    return None if found is None else (int(found.group(1)), found.group(2), int(found.group(3)))


def first_values(line: str) -> dict[str, Any]:
    """Values of which the first one of a start counts, by StartupLog field.

    The attention backend: not from lines about the vision part, MoE or GEMM kernels.
    """
    values = values_in(_FIRST, line)
    if "backend" in line and "for vit attention" not in line and "MoE" not in line:
        backend = values_in(_ATTENTION, line)
        source = _SOURCE.search(line)
        if not backend and source is not None and source.group("file") in _PLATFORM_FILES:
            backend = values_in(_PLATFORM_ATTENTION, line)
        values |= backend
    return values


def compiled_from_cache(line: str) -> bool | None:
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
    if "Initializing a V1 LLM engine (v" not in line:
        return None
    values = values_in(_ENGINE, line)
    if "vllm_version" not in values:
        return None
    if values.get("device") != "cuda":
        return values
    mode, sizes = _MODE.search(line), _CAPTURE_SIZES.search(line)
    if values.get("eager") or (mode is not None and mode.group(1) == "NONE"):
        return {**values, "capture_effective": 0, "capture_effective_full": 0}
    if sizes is not None and any(map(str.isdigit, sizes.group(1))):
        values["capture_sizes"] = captured = tuple(map(int, re.findall(r"\d+", sizes.group(1))))
        if mode is None or "PIECEWISE" in mode.group(1):
            values["capture_effective"] = max(captured)
    return values


def captured_full_graphs(line: str) -> int | None:
    """How many FULL graphs were captured, from the last state of the progress bar."""
    found = _FULL_CAPTURED.search(line)
    return int(found.group(2)) if found and found.group(1) == found.group(2) else None


def warning_that_matters(line: str) -> str | None:
    """The text of a warning about memory, captures or flags that were changed; None for the rest."""
    found = _WARNING.search(line)
    if found is None or found.group(1) != "WARNING":
        return None
    text = found.group("text")
    return text if _WARNING_TOPICS.search(text) and not _WARNING_NOISE.search(text) else None

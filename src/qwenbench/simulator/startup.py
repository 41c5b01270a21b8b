"""What the server prints from launch to shutdown: a template per vLLM version, filled in and timed.

startup_VERSION.txt has sections (`== start`) of lines:
    [words] PROCESS LEVEL file.py:line | text    one line of vLLM's logger; PROCESS is API or CORE
    [words] RAW | text, [words] HTTP | text      a line as it is; a line of the HTTP server
    @wait PHASE SHARE    takes so much of the phase's time
    @point NAME          where a start can fail
    @ignored file:line, @routes file:line        one line per flag that changes nothing, per route
`[graphs !warm]` in front: only when all the words hold. {name} in a text: a value of `log_values`,
whose `options`, `plan` and `phases` are taken apart there ({plan.num_blocks}).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from qwenbench.simulator import log
from qwenbench.simulator.memory import MemoryPlan
from qwenbench.simulator.options import ServeOptions
from qwenbench.simulator.steptime import calibration

FIRST_LINE = (
    "SIMULATED: this is qwenbench's simulator, no vLLM and no GPU; every figure below is computed, none measured."
)
CACHE_DIR = "/root/.cache/vllm"
COMPILE_KEY = "042c95ffaadce5e3cd19c66f68df988ca09c30eb5913038c71e64c236fac3cab"
NATIVE_FP4 = ("rtx-5090", "rtx-5080")
"""Cards whose tensor cores compute in FP4; on others Marlin unpacks the weights."""

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


@dataclass(frozen=True, slots=True)
class _Line:
    words: tuple[str, ...]
    kind: str
    """API, CORE, RAW, HTTP, or the word after @."""
    fields: tuple[str, ...]
    text: str


class ServerLog:
    def __init__(self, options: ServeOptions, plan: MemoryPlan, card_note: str) -> None:
        self._sections = template(options.vllm_version)
        self._options = options
        self._phases = phases = start_phases(options)
        self._facts = facts(options, plan)
        self._values = log_values(options, plan, phases) | {"first_line": f"{FIRST_LINE} {card_note}"}

    async def start(self, at_point: Callable[[str], Awaitable[None]]) -> None:
        """Everything up to the HTTP server's start. `at_point` may raise StartFailure."""
        timed = self._options.startup == "real" or self._options.startup_s is not None
        pace = self._options.time_scale if timed else 0.0
        for line in self._lines("start"):
            if line.kind == "wait":
                phase, share = line.fields
                if seconds := self._phases[phase] * float(share) * pace:
                    await asyncio.sleep(seconds)
            elif line.kind == "point":
                await at_point(line.fields[0])
            else:
                self._say(line, {})

    def say(self, section: str, **values: Any) -> None:
        """Prints a section's lines; nothing where the version has no such section."""
        for line in self._lines(section):
            self._say(line, values)

    def _lines(self, section: str) -> Iterator[_Line]:
        for line in self._sections.get(section, ()):
            if all(self._facts[word.removeprefix("!")] != word.startswith("!") for word in line.words):
                yield line

    def _say(self, line: _Line, values: Mapping[str, Any]) -> None:
        if line.kind == "ignored":
            for name, value in self._options.ignored.items():
                told = f"SIMULATED: --{name} {value or ''} changes nothing here"
                log.say(log.API, line.fields[0], told, "WARNING")
            return
        if line.kind == "routes":
            for route, methods in ROUTES.items():
                log.say(log.API, line.fields[0], f"Route: {route}, Methods: {', '.join(methods)}")
            return
        text = line.text.format_map({**self._values, **values})
        if line.kind == "RAW":
            log.plain(text)
        elif line.kind == "HTTP":
            log.uvicorn(text)
        else:
            level, where = line.fields
            log.say(log.API if line.kind == "API" else log.CORE, where, text, level)


@cache
def template(version: str) -> Mapping[str, tuple[_Line, ...]]:
    """The sections of a version's template. Raises ValueError for a line that cannot be read."""
    source = (resources.files(__package__) / f"startup_{version}.txt").read_text("utf-8")
    sections: dict[str, list[_Line]] = {}
    section: list[_Line] = []
    for row in source.splitlines():
        if row.startswith("== "):
            section = sections.setdefault(row[3:], [])
        elif row and not row.startswith("#"):
            section.append(_parsed(row))
    return {name: tuple(lines) for name, lines in sections.items()}


def _parsed(row: str) -> _Line:
    words: tuple[str, ...] = ()
    if row.startswith("["):
        listed, _, row = row[1:].partition("] ")
        words = tuple(listed.split())
    if row.startswith("@"):
        kind, *fields = row[1:].split()
        return _Line(words, kind, tuple(fields), "")
    head, bar, text = row.partition("|")
    kind, *fields = head.split()
    if not bar or kind not in ("API", "CORE", "RAW", "HTTP"):
        raise ValueError(f"no line of a start-up template: {row!r}")
    return _Line(words, kind, tuple(fields), text.removeprefix(" "))


def start_phases(options: ServeOptions) -> Mapping[str, float]:
    """Seconds of each phase of a start, as the log tells them."""
    phases: Mapping[str, float] = calibration()["startup"]["warm" if options.warm else "cold"]
    scale = 1.0 if options.startup_s is None else options.startup_s / sum(phases.values())
    return {name: seconds * scale for name, seconds in phases.items()}


def facts(options: ServeOptions, plan: MemoryPlan) -> dict[str, bool]:
    """The words that a template's line may be bound to."""
    sizes = options.capture_sizes
    native = options.card in NATIVE_FP4
    return {
        "eager": options.enforce_eager,
        "graphs": bool(sizes),
        "full_graphs": any(size <= options.max_num_seqs for size in sizes),
        "warm": options.warm,
        "cold": not options.warm,
        "async": options.async_scheduling,
        "flashinfer": options.flashinfer_sampler,
        "caching": options.enable_prefix_caching,
        "counted": options.count_graphs,
        "drafter": options.speculative_tokens > 0,
        "marlin": not native,
        "native_fp4": native,
        "kv_scales": "calculate-kv-scales" in options.ignored,
        "profiled": options.kv_cache_memory_bytes is None,
        "overridden": options.num_gpu_blocks_override is not None,
        "auto_length": options.max_model_len == -1,
        "full_length": plan.max_model_len == plan.model_length,
    }


def log_values(options: ServeOptions, plan: MemoryPlan, phases: Mapping[str, float]) -> dict[str, Any]:
    """The values that a template's texts name."""
    sizes = options.capture_sizes
    full = [size for size in sizes if size <= options.max_num_seqs]
    compile_s = phases["compile_s"] if sizes else 0.0
    estimated, actual = plan.graphs_estimated_gib, plan.graphs_actual_gib
    share = estimated / plan.total_gib
    utilization = options.gpu_memory_utilization
    return {
        "options": options,
        "plan": plan,
        "phases": phases,
        "architecture": "Qwen3_5ForConditionalGeneration",
        "non_default_args": _non_default(options),
        "asked_length": options.max_model_len or plan.model_length,
        "speculative_config": _speculation(options),
        "capture_sizes": list(sizes),
        "capture": max(sizes, default=0),
        "graphs": len(sizes),
        "full_graphs": len(full),
        "full_capture": max(full, default=0),
        "weights_gib": gib(plan.weights_gib),
        "load_s": min(phases["load_s"], 2.0),
        "cache_dir": CACHE_DIR,
        "compile_key": COMPILE_KEY,
        "compile_s": compile_s,
        "graph_compile_s": compile_s * 0.7,
        "graphs_estimated_gib": gib(estimated),
        "graphs_actual_gib": gib(actual),
        "graphs_difference_gib": gib(abs(actual - estimated)),
        "graphs_difference_share": abs(actual - estimated) / actual * 100 if actual else 0.0,
        "kv_cache_gib": gib(plan.kv_cache_gib),
        "utilization_without": utilization - share,
        "utilization_with": utilization + share,
        "capture_s": max(round(phases["graphs_s"] * 0.2), 2),
        "init_s": compile_s + phases["profile_s"] + (phases["graphs_s"] if sizes else 0.0),
        "peak_activation_gib": plan.activations_gib - plan.non_torch_gib,
        "pid": os.getpid(),
    }


def gib(value: float) -> str:
    """GiB as vLLM prints them: rounded to two places, without a trailing zero."""
    return f"{round(value, 2):g}"


def _speculation(options: ServeOptions) -> str:
    if not options.speculative_tokens:
        return "None"
    return (
        f"SpeculativeConfig(method='{options.speculative_method}', model='{options.model}', "
        f"num_spec_tokens={options.speculative_tokens})"
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
    optional = ("max_model_len", "max_cudagraph_capture_size", "reasoning_parser", "kv_cache_memory_bytes",
                "num_gpu_blocks_override")  # fmt: skip
    shown |= {name: value for name in optional if (value := getattr(options, name)) is not None}
    if options.speculative_tokens:
        drafter = {"method": options.speculative_method, "num_speculative_tokens": options.speculative_tokens}
        shown["speculative_config"] = drafter
    if not options.async_scheduling:
        shown["async_scheduling"] = False
    switches = ("enforce_eager", "enable_prefix_caching", "enable_prompt_tokens_details")
    return shown | {name: True for name in switches if getattr(options, name)}

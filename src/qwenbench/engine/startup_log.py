"""What a vLLM start-up log says about memory: vLLM 0.18 to 0.33, complete, cut off or still growing.

Numbers are taken only where their unit follows them, so a line that was cut in the middle of a number
gives no value. Several workers are kept apart; the log's own figure is the smallest KV cache (vLLM gives
every worker as many blocks as the tightest one holds) and the largest of everything else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qwenbench.engine import startup_patterns as patterns


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """What one worker process printed, in GiB; None where it printed nothing."""

    name: str
    """Process name of the line's prefix (`Worker_TP0`); empty for lines without one."""
    weights_gib: float | None = None
    activations_gib: float | None = None
    graphs_estimated_gib: float | None = None
    graphs_actual_gib: float | None = None
    kv_cache_gib: float | None = None


@dataclass(frozen=True, slots=True)
class StartupLog:
    """A start-up log's figures, as printed. Sizes in GiB, times in seconds, lengths in tokens."""

    vllm_version: str | None = None
    requested: Mapping[str, Any] = field(default_factory=dict)
    """`non-default args` as vLLM repeats them (underscores; `max_model_len` -1 is `auto`)."""
    workers: tuple[WorkerMemory, ...] = ()
    weights_gib: float | None = None
    activations_gib: float | None = None
    graphs_estimated_gib: float | None = None
    graphs_estimate_applied: bool | None = None
    """Whether the estimate was taken off the KV cache (VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS)."""
    graphs_actual_gib: float | None = None
    kv_cache_gib: float | None = None
    kv_cache_blocks_profiled: int | None = None
    """Blocks that the memory held before --num-gpu-blocks-override replaced them."""
    kv_cache_blocks: int | None = None
    """Blocks, where the log says them (only with --num-gpu-blocks-override; otherwise /metrics does)."""
    attention_block_tokens: int | None = None
    kv_cache_tokens_logged: int | None = None
    max_concurrency_logged: float | None = None
    max_concurrency_tokens: int | None = None
    """The request length that the concurrency is for."""
    capture_sizes: tuple[int, ...] = ()
    capture_effective: int | None = None
    """Largest PIECEWISE graph, in tokens; 0 when graphs are switched off on a GPU."""
    capture_effective_full: int | None = None
    """Largest FULL graph, in tokens; 0 when graphs are switched off on a GPU."""
    max_model_len_effective: int | None = None
    max_num_batched_tokens: int | None = None
    """The step budget in tokens, as asked for or as the engine says it."""
    enable_prefix_caching: bool | None = None
    mamba_cache_mode: str | None = None
    kv_cache_dtype: str | None = None
    device: str | None = None
    """`cuda`, `cpu`, ..."""
    attention_backend: str | None = None
    quantization_backend: str | None = None
    compile_s: float | None = None
    profile_s: float | None = None
    capture_s: float | None = None
    init_s: float | None = None
    cuda_total_gib: float | None = None
    budget_gib: float | None = None
    """The memory that --gpu-memory-utilization stands for, where the log prints it."""
    ready: bool = False
    kv_to_ready_s: float | None = None
    """Seconds from the KV cache's allocation to readiness, from the log's clock (whole seconds)."""
    warnings: tuple[str, ...] = ()
    """Warnings that change what the configuration means (capped captures, ignored flags), deduplicated."""

    @property
    def recognised(self) -> bool:
        """Whether anything in the text was a vLLM start-up line."""
        return self.vllm_version is not None or bool(self.workers) or self.kv_cache_tokens_logged is not None

    @property
    def kv_cache_tokens_formula(self) -> str | None:
        """How the printed token count came about: `blocks_per_group` or `max_concurrency`.

        Up to 0.19 vLLM prints blocks // groups x block tokens, from 0.20 on
        int(max_concurrency x max_model_len). Without a version the two printed numbers
        decide; None when they cannot.
        """
        if self.kv_cache_tokens_logged is None:
            return None
        release = patterns.release(self.vllm_version)
        if release is not None and release <= (0, 19):
            return "blocks_per_group"
        if release is not None and release >= (0, 20):
            return "max_concurrency"
        if self.max_concurrency_logged is None or not self.max_concurrency_tokens:
            return None
        ratio = self.kv_cache_tokens_logged / self.max_concurrency_tokens
        # The concurrency is printed with two decimals.
        return "max_concurrency" if abs(ratio - self.max_concurrency_logged) <= 0.0051 else "blocks_per_group"


class StartupLogReader:
    """Reads a log piece by piece. A second start in the same text (a restart) replaces the first."""

    def __init__(self) -> None:
        self._rest = ""
        self._log = StartupLog()
        self._workers: dict[str, WorkerMemory] = {}
        self._clock_s: float | None = None
        self._kv_at_s: float | None = None

    def feed(self, text: str) -> None:
        """Takes the next piece of the log; it may end in the middle of a line."""
        lines = (self._rest + text).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith(("\n", "\r")) else ""
        for line in lines:
            self._take(line)

    def result(self) -> StartupLog:
        """What has been read so far; may be called at any time.

        A last line without its end is used where its numbers are followed by their unit.
        """
        if not self._rest:
            return self._summary()
        ahead = StartupLogReader()
        ahead._log, ahead._workers = self._log, dict(self._workers)
        ahead._clock_s, ahead._kv_at_s = self._clock_s, self._kv_at_s
        ahead._take(self._rest)
        return ahead._summary()

    def _summary(self) -> StartupLog:
        workers = tuple(self._workers[name] for name in sorted(self._workers))
        return replace(
            self._log,
            workers=workers,
            weights_gib=_largest(worker.weights_gib for worker in workers),
            activations_gib=_largest(worker.activations_gib for worker in workers),
            graphs_estimated_gib=_largest(worker.graphs_estimated_gib for worker in workers),
            graphs_actual_gib=_largest(worker.graphs_actual_gib for worker in workers),
            kv_cache_gib=_smallest(worker.kv_cache_gib for worker in workers),
        )

    def _take(self, line: str) -> None:
        line = patterns.without_colours(line)
        if patterns.is_access_log(line):
            return
        self._clock_s = patterns.clock_s(line, self._clock_s)
        found = patterns.banner_version(line)
        if found is not None:
            if self._log.init_s is not None or self._log.kv_cache_tokens_logged is not None:
                self._log, self._workers, self._kv_at_s = StartupLog(), {}, None
            self._log = replace(self._log, vllm_version=found)
            return
        self._take_worker_values(line)
        values = patterns.values_of(line)
        if values:
            self._log = replace(self._log, **values)
            self._take_times(values)
        self._take_text(line)

    def _take_times(self, values: Mapping[str, Any]) -> None:
        if "kv_cache_tokens_logged" in values:
            self._kv_at_s = self._clock_s
        if values.get("ready") and self._kv_at_s is not None and self._clock_s is not None:
            self._log = replace(self._log, kv_to_ready_s=(self._clock_s - self._kv_at_s) % 86_400)

    def _take_worker_values(self, line: str) -> None:
        values = patterns.worker_values_of(line)
        if not values:
            return
        name = patterns.process_name(line)
        worker = self._workers.get(name, WorkerMemory(name))
        self._workers[name] = replace(worker, **values)

    def _take_text(self, line: str) -> None:
        log = self._log
        arguments = patterns.non_default_args(line)
        if arguments is not None:
            requested = _literal(arguments)
            budget = requested.get("max_num_batched_tokens", log.max_num_batched_tokens)
            self._log = replace(log, requested=requested, max_num_batched_tokens=budget)
            return
        config = patterns.engine_config(line)
        if config is not None:
            if log.max_num_batched_tokens is not None:
                config.pop("max_num_batched_tokens", None)
            self._log = replace(log, **config)
            return
        captured = patterns.captured_full_graphs(line)
        if captured is not None and log.capture_effective_full is None:
            sizes = sorted(log.capture_sizes)
            if 0 < captured <= len(sizes):
                self._log = replace(log, capture_effective_full=sizes[captured - 1])
            return
        warning = patterns.warning_that_matters(line)
        if warning is not None and warning not in log.warnings:
            self._log = replace(log, warnings=(*log.warnings, warning))


def parse_startup_log(text_or_lines: str | Iterable[str]) -> StartupLog:
    """Reads a whole log: a text, or lines with or without their line ends.

    Unknown values are None; a text that is no vLLM log gives a StartupLog whose `recognised` is False.
    """
    reader = StartupLogReader()
    if isinstance(text_or_lines, str):
        reader.feed(text_or_lines)
    else:
        for line in text_or_lines:
            reader.feed(line if line.endswith("\n") else line + "\n")
    return reader.result()


def _literal(text: str) -> Mapping[str, Any]:
    """vLLM prints its arguments as a Python dict; what is no literal is left out rather than guessed."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _smallest(values: Iterable[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

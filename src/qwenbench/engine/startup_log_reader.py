"""Reads a vLLM start-up log: complete, cut off or still growing.

Numbers are taken only where their unit follows them, so a line that was cut in the middle of a number
gives no value. Several workers are kept apart; the log's own figure is the smallest KV cache (vLLM gives
every worker as many blocks as the tightest one holds) and the largest of everything else.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from qwenbench.engine import startup_patterns as patterns
from qwenbench.engine.log_lines import Process, clock_s, is_access_log, plain, process_of
from qwenbench.engine.startup_log import StartupLog, WorkerMemory
from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, KIB, MIB, open_input


class StartupLogReader:
    """Reads a log piece by piece. A second start in the same text (a restart) replaces the first."""

    def __init__(self) -> None:
        self._rest = ""
        self._start = _Start()

    def feed(self, text: str) -> None:
        """Takes the next piece of the log; it may end in the middle of a line."""
        lines = (self._rest + text).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith(("\n", "\r")) else ""
        for line in lines:
            self._start = self._start.take(line)

    def result(self) -> StartupLog:
        """What has been read so far; may be called at any time.

        A last line without its end is used where its numbers are followed by their unit.
        """
        if not self._rest:
            return self._start.summary()
        return copy.deepcopy(self._start).take(self._rest).summary()


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


_NO_NUMBER = re.compile(r"\d[\d,]{19}")
"""More digits than anything in such a log has, or than 64 bits hold."""
_MOST_LOG_BYTES = 2 * GIB
_LONGEST_LINE = 64 * KIB
"""The configuration's line takes some 10 KiB; what is longer is passed over."""
_FOREIGN_LINES, _FOREIGN_BYTES = 20_000, 64 * MIB
"""So much without a line of vLLM's start, and it is another log."""


def read_startup_log(path: Path) -> StartupLog:
    """Reads a run's log, as far as it is written; one that is not there, or cannot be read, says nothing."""
    try:
        return read_named_log(path, "log")
    except UsageError:
        return StartupLog()


def read_named_log(path: Path, what: str) -> StartupLog:
    """Reads a log that a user named, line by line; stops early in one that is not vLLM's.

    Raises UsageError: no regular file, or larger than a log can be.
    """
    reader = StartupLogReader()
    with open_input(path, what, _MOST_LOG_BYTES) as file:
        lines, whole = 0, True
        while piece := file.readline(_LONGEST_LINE):
            lines += 1
            foreign = lines % 1000 == 0 and (lines > _FOREIGN_LINES or file.tell() > _FOREIGN_BYTES)
            if foreign and not reader.result().recognised:
                break
            begins, whole = whole, piece.endswith(b"\n") or len(piece) < _LONGEST_LINE
            if begins and whole:
                reader.feed(piece.decode("utf-8", "replace"))
    return reader.result()


class _Start:
    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._workers: defaultdict[Process, dict[str, float]] = defaultdict(dict)
        self._seconds: defaultdict[Process, dict[str, float]] = defaultdict(dict)
        self._engines: dict[str, Process] = {}
        self._warnings: dict[str, None] = {}
        self._jit: Counter[str] = Counter()
        self._graph_steps: Counter[tuple[int, str]] = Counter()
        self._clock_s: float | None = None
        self._marks_s: dict[str, float] = {}
        self._stopping = False

    def take(self, line: str) -> _Start:
        """Takes a line; gives the start that it belongs to, which is a new one after a restart."""
        line = plain(line)
        if is_access_log(line) or " Avg prompt throughput: " in line or _NO_NUMBER.search(line):
            return self
        version = patterns.banner_version(line)
        if version is not None:
            start = _Start() if self._seen_figures else self
            start._values["vllm_version"] = version
            start._tick(line)
            return start
        self._tick(line)
        config = patterns.engine_config(line)
        if config is not None:
            return self._take_engine(line, config)
        self._take_worker(line)
        self._take_values(line)
        self._take_text(line)
        return self

    @property
    def _seen_figures(self) -> bool:
        return bool(self._workers) or "kv_cache_tokens_logged" in self._values or "init_s" in self._values

    def _tick(self, line: str) -> None:
        self._clock_s = clock_s(line, self._clock_s)
        if "first" not in self._marks_s:
            self._mark("first")

    def _mark(self, name: str) -> None:
        if self._clock_s is not None:
            self._marks_s[name] = self._clock_s

    def _take_engine(self, line: str, config: dict[str, Any]) -> _Start:
        process = process_of(line)
        known = self._engines.get(process.name)
        start = self
        if self._seen_figures and known is not None and (known != process or not process.name):
            # Another process under the same name: the engine was started again, with or without a new banner.
            start = _Start()
            start._values = {name: self._values[name] for name in ("vllm_version", "requested") if name in self._values}
            start._tick(line)
        start._engines[process.name] = process
        if "max_num_batched_tokens" in start._values:
            config.pop("max_num_batched_tokens", None)  # as asked for, where that is known
        start._values.update(config)
        return start

    def _take_worker(self, line: str) -> None:
        if "GiB" in line and (values := patterns.values_in(patterns.WORKER, line)):
            self._workers[process_of(line)].update(values)
        for name, pattern in patterns.WORKER_SECONDS.items():
            if found := pattern.search(line):
                spent, value = self._seconds[process_of(line)], patterns.number(found[2])
                before = spent.get(name, 0.0)
                spent[name] = before + value if found["verb"] == "took" else max(before, value)

    def _take_values(self, line: str) -> None:
        values = patterns.start_values(line)
        for name in ("kv_cache_blocks", "kv_cache_tokens_logged", "max_concurrency_logged"):
            if name in values and name in self._values:
                values[name] = min(values[name], self._values[name])  # several engines: the tightest
        self._values = {**patterns.first_values(line), **self._values, **values}
        if "kv_cache_tokens_logged" in values:
            self._mark("kv_cache")
        if values.get("ready"):
            self._mark("ready")
        if "Starting to load model" in line and "load" not in self._marks_s:
            self._mark("load")

    def _take_text(self, line: str) -> None:
        arguments = patterns.non_default_args(line)
        if arguments is not None:
            self._values["requested"] = arguments
            if "max_num_batched_tokens" in arguments:
                self._values["max_num_batched_tokens"] = arguments["max_num_batched_tokens"]
            drafter = arguments.get("speculative_config")
            if isinstance(drafter, dict):  # the engine's own line, where there is one, comes later and wins
                self._values["speculative_method"] = drafter.get("method")
                self._values["speculative_tokens"] = drafter.get("num_speculative_tokens")
            return
        unexpected = "exited unexpectedly" in line
        self._stopping = self._stopping or (patterns.STOP.search(line) is not None and not unexpected)
        if patterns.DIED.search(line) and (not self._stopping or unexpected):
            self._values["died"] = True
        if (cached := patterns.compiled_from_cache(line)) is not None:
            self._values["compiled_from_cache"] = cached and self._values.get("compiled_from_cache", True)
        if (kernel := patterns.JIT.search(line)) is not None:
            self._jit[kernel[1]] += 1
        if (steps := patterns.graph_steps_of(line)) is not None:
            self._graph_steps[steps[0], steps[1]] += steps[2]
        for name, said in patterns.values_in(patterns.OTHER_SETTINGS, line).items():
            self._values.setdefault("other_speed_settings", {}).setdefault(name, said)
        if captured := patterns.captured_full_graphs(line):
            sizes = sorted(self._values.get("capture_sizes", ()))
            if captured <= len(sizes):
                self._values.setdefault("capture_effective_full", sizes[captured - 1])
        if (warning := patterns.warning_that_matters(line)) is not None:
            self._warnings[warning] = None

    def summary(self) -> StartupLog:
        known = {spec.name for spec in fields(StartupLog)}
        values = {name: value for name, value in self._values.items() if name in known}
        workers = self._worker_values()
        for name in ("weights", "activations", "non_torch", "consumed", "graphs_estimated", "graphs_actual"):
            values[f"{name}_gib"] = _most(getattr(worker, f"{name}_gib") for worker in workers)
        values["kv_cache_gib"] = min((w.kv_cache_gib for w in workers if w.kv_cache_gib is not None), default=None)
        for name in patterns.WORKER_SECONDS:
            longest = _most(spent.get(name) for spent in self._seconds.values())
            values[name] = None if longest is None else round(longest, 6)
        if "compilation_s" in self._values:
            values["compile_s"] = self._values["compilation_s"]
        lengths = ("max_concurrency_tokens", "max_model_len_fitted", "max_model_len_asked", "max_seq_len")
        values["max_model_len_effective"] = next((self._values[n] for n in lengths if n in self._values), None)
        return StartupLog(
            **{**values, **self._captures(), **self._times()},
            workers=workers,
            warnings=tuple(self._warnings),
            jit_kernels=dict(self._jit),
            graph_steps=dict(self._graph_steps),
        )

    def _worker_values(self) -> tuple[WorkerMemory, ...]:
        shared = Counter(process.name for process in self._workers)
        named = [
            WorkerMemory(_label(process) if shared[process.name] > 1 else process.name, **values)
            for process, values in self._workers.items()
        ]
        return tuple(sorted(named, key=lambda worker: worker.name))

    def _captures(self) -> dict[str, Any]:
        cap = self._values.get("capture_capped")
        if cap is None:
            return {}
        full = self._values.get("capture_effective_full")
        return {
            "capture_sizes": tuple(size for size in self._values.get("capture_sizes", ()) if size <= cap),
            "capture_effective": cap,
            "capture_effective_full": None if full is None else min(full, cap),
        }

    def _times(self) -> dict[str, float]:
        marks = self._marks_s
        spans = {"setup_s": ("first", "load"), "total_s": ("first", "ready"), "kv_to_ready_s": ("kv_cache", "ready")}
        return {
            name: (marks[last] - marks[first]) % 86_400
            for name, (first, last) in spans.items()
            if first in marks and last in marks
        }


def _label(process: Process) -> str:
    parts = [process.name, *(f"{key}={value}" for key, value in process._asdict().items() if key != "name" and value)]
    return " ".join(parts)


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)

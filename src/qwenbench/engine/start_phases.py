"""What a server that is starting is doing, from its growing log: for the one who waits for it."""

from __future__ import annotations

import re

from qwenbench.engine.log_lines import plain
from qwenbench.engine.log_sink import LogReader

_WEIGHTS = re.compile(r"Loading (?:safetensors|pt|bin) checkpoint shards:.*?(\d+)/(\d+) ")
_GRAPHS = re.compile(r"Capturing CUDA graphs?[^:]*:.*?(\d+)/(\d+) ")
_BEGINS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("loading the model", re.compile(r"Starting to load model|Loading model from scratch")),
    ("profiling", re.compile(r"Model loading took|Loading model weights took")),
    ("compiling", re.compile(r"Using cache directory: .*torch\.compile|Dynamo bytecode transform")),
    ("profiling", re.compile(r"torch\.compile (?:took|takes) .* in total|Directly load AOT compilation")),
    ("making the KV cache", re.compile(r"Available KV cache memory")),
    ("warming up", re.compile(r"Graph capturing finished")),
    ("opening the server", re.compile(r"init engine \(")),
)
"""The phase that a line begins; the last one that matched holds."""


class StartPhases:
    """Follows a log; `now` may be asked at any time."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._phase: str | None = None

    def now(self) -> str | None:
        """What it does, e.g. `loading weights (4 of 8)`; None before the log tells anything."""
        for line in self._reader.new_lines():
            self._phase = _phase_of(plain(line)) or self._phase
        return self._phase


def _phase_of(line: str) -> str | None:
    if counted := _WEIGHTS.findall(line):
        return f"loading weights ({counted[-1][0]} of {counted[-1][1]})"
    if counted := _GRAPHS.findall(line):
        return f"capturing graphs ({counted[-1][0]} of {counted[-1][1]})"
    return next((phase for phase, begins in reversed(_BEGINS) if begins.search(line)), None)

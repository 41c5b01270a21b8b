"""In which graphs a server's steps ran, as its log counts them (`--cudagraph-metrics`, vLLM 0.14 and later).

Every ten seconds such a server logs a table: tokens of a step without and with padding, paddings, runtime mode (FULL,
PIECEWISE or NONE) and how many steps there were of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qwenbench.engine.log_lines import taken_apart

_ROW = re.compile(
    r"^\|\s*(?P<tokens>\d+)\s*\|\s*(?P<padded>\d+)\s*\|\s*\d+\s*\|\s*(?:CUDAGraphMode\.)?(?P<mode>[A-Z_]+)\s*\|"
    r"\s*(?P<count>\d+)\s*\|$"
)


@dataclass(frozen=True, slots=True)
class GraphSteps:
    """Steps of one kind."""

    tokens: int
    """Of a step, without padding: rows of a decode step are its requests, times 1 + drafted tokens."""
    mode: str
    """`FULL`, `PIECEWISE` or `NONE`."""
    count: int


def graph_steps(lines: Iterable[str]) -> list[GraphSteps]:
    """What the tables among these lines of a log count, each kind of step once; empty without any table."""
    counted: dict[tuple[int, str], int] = {}
    for line in lines:
        found = _ROW.match(taken_apart(line).text.strip()) if "|" in line else None
        if found is not None:
            kind = int(found["tokens"]), found["mode"]
            counted[kind] = counted.get(kind, 0) + int(found["count"])
    return [GraphSteps(tokens, mode, count) for (tokens, mode), count in counted.items()]


def full_graph_share(steps: Iterable[GraphSteps], most_rows: int | None) -> float | None:
    """Share of the steps of at most so many tokens (the rows of the largest decode batch) that ran in a full graph.

    Larger steps carry prompts, which full graphs are not made for. None without such steps, or an unknown batch.
    """
    decoding = [step for step in steps if most_rows is not None and step.tokens <= most_rows]
    total = sum(step.count for step in decoding)
    return sum(step.count for step in decoding if step.mode == "FULL") / total if total else None

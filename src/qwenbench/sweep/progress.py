"""What a sweep tells while it runs. The terminal decides how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from qwenbench.engine.config import Configuration
from qwenbench.engine.failures import Failure
from qwenbench.runfolder.cells import Cell
from qwenbench.sweep.timing import Schedule


@dataclass(frozen=True, slots=True)
class Live:
    """The current point, about once a second. None: not known."""

    phase: str
    """`warm-up` or `load`."""
    done: int
    total: int | None
    failed: int
    in_flight: int
    output_tokens_per_s: float | None
    ttft_ms: float | None
    running: float | None
    waiting: float | None
    kv_cache_usage: float | None
    vram_mib: float | None


class Progress(Protocol):
    """Listens to a sweep."""

    def plan(self, schedule: Schedule) -> None:
        """What there is to do. The sweep keeps the schedule up to date."""

    def launching(self, configuration: Configuration, launch: int) -> None:
        """A server is being started."""

    def starting(self, configuration: Configuration, seconds: float, phase: str | None) -> None:
        """About once a second while it starts: how long it takes so far, and what its log says that it does."""

    def ready(self, configuration: Configuration, seconds: float) -> None:
        """It answers."""

    def cell_started(self, cell: Cell, number: int) -> None:
        """A load point begins (its warm-up first)."""

    def live(self, cell: Cell, live: Live) -> None:
        """How the point goes."""

    def cell_done(self, cell: Cell, point: Mapping[str, Any]) -> None:
        """A load point is on disk."""

    def failed(self, config_id: str, failure: Failure) -> None:
        """A configuration failed; the sweep goes on."""

    def note(self, text: str) -> None:
        """Something worth a line."""

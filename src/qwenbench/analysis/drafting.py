"""What a drafter gave (MTP, EAGLE, ngram): from the engine's own counters over a point."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qwenbench.analysis.columns import VARIED
from qwenbench.analysis.run import Run, columns_of, grouped, mean_of, records, valid_rows
from qwenbench.analysis.server_samples import growth


def drafting_columns(metrics: pa.Table | None) -> dict[str, Any]:
    """Columns of a point: tokens drafted and accepted, the share accepted, and tokens a request gained in a step.

    `acceptance_length` is 1 + accepted / drafts, as vLLM logs it: the drafter's tokens that held, and the one that the
    model itself gives in the same step. Empty without a drafter.
    """
    if metrics is None or metrics.num_rows == 0:
        return {}
    drafts, drafted, accepted = (
        growth(metrics, name) for name in ("drafts_total", "drafted_tokens_total", "accepted_tokens_total")
    )
    if drafted is None or accepted is None:
        return {}
    return {
        "drafted_tokens": round(drafted),
        "accepted_tokens": round(accepted),
        "acceptance_rate": accepted / drafted if drafted else None,
        "acceptance_length": 1.0 + accepted / drafts if drafts else None,
    }


DRAFTER = "vary_speculative_config"
"""Column of a sweep that varied the drafter."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """What a drafter has to gain in a step to pay, at one load, mean over scenarios. None: not known."""

    config_id: str
    without_id: str
    """The same configuration without a drafter."""
    level: float
    step_ms: float
    """Median step with the drafter: the gap between two chunks."""
    step_without_ms: float
    gained: float | None
    """Tokens that a request gained in a step."""

    @property
    def needed(self) -> float:
        """Tokens a step from which on the drafter pays."""
        return self.step_ms / self.step_without_ms

    @property
    def pays(self) -> bool | None:
        return None if self.gained is None else self.gained > self.needed


def break_evens(run: Run) -> list[BreakEven]:
    """Every configuration with a drafter against the one that differs in nothing else, load by load.

    Needs a sweep that varied speculative-config with `unset` (or nothing) among its values; empty otherwise.
    """
    if run.points.empty or DRAFTER not in run.points:
        return []
    rows = [row for row in records(valid_rows(run.points)) if row["concurrency"] is not None]
    drafters = {row["config_id"] for row in rows if row["drafted_tokens"] is not None}
    others = (str(name) for name in run.points if str(name).startswith(VARIED) and name != DRAFTER)
    found = []
    for alike in grouped(rows, columns_of("capture", "max_num_seqs", "gpu_memory_utilization", *others)).values():
        bare = next((row["config_id"] for row in alike if row["config_id"] not in drafters), None)
        levels = grouped(alike, columns_of("config_id", "concurrency"))
        for (config, level), own in levels.items():
            step, without = mean_of(own, "itl_ms_p50"), mean_of(levels.get((bare, level), ()), "itl_ms_p50")
            if config in drafters and step is not None and without:
                gained = mean_of(own, "acceptance_length")
                found.append(BreakEven(str(config), str(bare), float(level), step, without, gained))
    return sorted(found, key=lambda each: (each.config_id, each.level))


def pays_up_to(found: Sequence[BreakEven]) -> float | None:
    """The load up to which one configuration's drafter pays at every measured one; 0: at none, None: not known."""
    paying = list(itertools.takewhile(lambda each: each.pays is not False, sorted(found, key=lambda each: each.level)))
    return None if any(each.pays is None for each in paying) else max((each.level for each in paying), default=0.0)

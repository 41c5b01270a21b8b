"""What a drafter gave (MTP, EAGLE, ngram): from the engine's own counters over a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qwenbench.analysis.run import Run, records, valid_rows
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
    groups: dict[tuple[Any, ...], dict[str, dict[float, list[Mapping[str, Any]]]]] = {}
    drafters: dict[str, bool] = {}
    for row in records(valid_rows(run.points)):
        if row["concurrency"] is None:
            continue
        config = str(row["config_id"])
        drafters[config] = drafters.get(config, False) or row.get("drafted_tokens") is not None
        others = [name for name in sorted(row) if name.startswith("vary_") and name != DRAFTER]
        key = tuple(row.get(name) for name in ("capture", "max_num_seqs", "gpu_memory_utilization", *others))
        groups.setdefault(key, {}).setdefault(config, {}).setdefault(float(row["concurrency"]), []).append(row)
    found = []
    for configs in groups.values():
        without = next((config for config in configs if not drafters[config]), None)
        for config, levels in configs.items():
            if not drafters[config] or without is None:
                continue
            for level, rows in sorted(levels.items()):
                step = _mean(rows, "itl_ms_p50")
                bare = _mean(configs[without].get(level, []), "itl_ms_p50")
                if step is not None and bare:
                    found.append(BreakEven(config, without, level, step, bare, _mean(rows, "acceptance_length")))
    return found


def pays_up_to(found: Sequence[BreakEven]) -> float | None:
    """The load up to which one configuration's drafter pays at every measured one; 0: at none, None: not known."""
    best = 0.0
    for each in sorted(found, key=lambda each: each.level):
        if each.pays is None:
            return None
        if not each.pays:
            break
        best = each.level
    return best


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [float(row[column]) for row in rows if row.get(column) is not None]
    return sum(values) / len(values) if values else None

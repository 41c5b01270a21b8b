"""Cold starts that held another KV cache than the restart does: compiling can be charged as peak activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qwenbench.analysis.run import Run

SAME_GIB = 0.05
"""Figures that were printed with two decimals and differ by less are the same."""


@dataclass(frozen=True, slots=True)
class StartDifference:
    """A cold and a warm start of one configuration that did not hold the same."""

    config_id: str
    cold_launch: int
    warm_launch: int
    cold_kv_gib: float
    warm_kv_gib: float
    cold_activations_gib: float | None
    warm_activations_gib: float | None

    def __str__(self) -> str:
        activations = ""
        if self.cold_activations_gib is not None and self.warm_activations_gib is not None:
            activations = f" (peak activations {self.cold_activations_gib:.2f} and {self.warm_activations_gib:.2f} GiB)"
        return (
            f"{self.config_id}: launch {self.cold_launch} compiled and held {self.cold_kv_gib:.2f} GiB of KV cache, "
            f"launch {self.warm_launch} did not and held {self.warm_kv_gib:.2f}{activations}: compiling may be charged "
            "as activations (vllm#54122); a restart, as users run it, holds what the warm start did"
        )


def start_differences(run: Run) -> list[StartDifference]:
    """Configurations whose cold start held another KV cache than a warm one."""
    by_config: dict[str, dict[int, Mapping[str, Any]]] = {}
    for (config_id, launch), ledger in run.launch_ledgers.items():
        by_config.setdefault(config_id, {})[launch] = ledger
    found = []
    for config_id, launches in by_config.items():
        kinds: dict[str, tuple[int, Mapping[str, Any]]] = {}
        for launch, ledger in sorted(launches.items()):
            if ledger.get("compile_cache") in ("cold", "warm") and ledger.get("kv_cache_gib") is not None:
                kinds.setdefault(str(ledger["compile_cache"]), (launch, ledger))
        if len(kinds) < 2:
            continue
        (cold, first), (warm, again) = kinds["cold"], kinds["warm"]
        if abs(first["kv_cache_gib"] - again["kv_cache_gib"]) > SAME_GIB:
            found.append(
                StartDifference(
                    config_id, cold, warm, first["kv_cache_gib"], again["kv_cache_gib"],
                    first.get("activations_gib"), again.get("activations_gib"),
                )
            )  # fmt: skip
    return found


CAPACITIES = ("kv_cache_gib", "kv_cache_blocks", "kv_cache_tokens", "requests_that_fit")


def without_cold_capacities(points: pd.DataFrame, differences: Sequence[StartDifference]) -> pd.DataFrame:
    """The rows with the capacities of such cold launches left out: what is told of a configuration is its restart's."""
    points = points.copy()
    for difference in differences:
        cold = (points["config_id"] == difference.config_id) & (points["launch"] == difference.cold_launch)
        points.loc[cold, list(CAPACITIES)] = pd.NA
    return points

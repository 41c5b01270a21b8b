"""What the samples of /metrics and NVML say about a load point: KV use, queues, VRAM, power, energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qwenbench.analysis.window import Window

MIN_ENERGY_S = 10.0
"""NVML's energy counter is too coarse for less."""
SIMULATED_CARD = "sim"
"""Name of the one card of a simulated server."""


@dataclass(frozen=True, slots=True)
class CardSamples:
    """Samples of one card (all its cards are the configuration's). Unknown numbers are NaN."""

    t_ns: NDArray[np.int64]
    used_mib: NDArray[np.float64]
    own_mib: NDArray[np.float64]
    """Of it the server's processes, where NVML tells."""
    power_w: NDArray[np.float64]
    energy_j: NDArray[np.float64]


def column_values(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A numeric column with NaN for null; all NaN where the table has no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def sample_times(table: pa.Table) -> NDArray[np.int64]:
    """CLOCK_REALTIME of each sample, ns."""
    return np.asarray(table["t_ns"].to_numpy(), dtype=np.int64)


def peak(table: pa.Table, name: str) -> float | None:
    """Largest value of a gauge; None when it was never seen."""
    values = column_values(table, name)
    values = values[~np.isnan(values)]
    return float(values.max()) if len(values) else None


def growth(table: pa.Table, name: str) -> float | None:
    """Last minus first value of a counter; None when it was seen fewer than two times, or went backwards."""
    values = column_values(table, name)
    values = values[~np.isnan(values)]
    if len(values) < 2 or (np.diff(values) < 0).any():
        return None
    return float(values[-1] - values[0])


def cards_of(nvml: pa.Table | None, metrics: pa.Table | None, simulated: bool) -> Mapping[str, CardSamples]:
    """Samples by card: from NVML, or for a simulated server from its own /metrics."""
    if simulated:
        return {} if metrics is None or metrics.num_rows == 0 else {SIMULATED_CARD: _card(metrics, "vram_used_mib")}
    if nvml is None or nvml.num_rows == 0:
        return {}
    uuids = pc.unique(nvml["gpu"]).to_pylist()
    return {str(uuid): _card(nvml.filter(pc.equal(nvml["gpu"], uuid)), "used_mib") for uuid in uuids}


def _card(table: pa.Table, used: str) -> CardSamples:
    return CardSamples(
        t_ns=sample_times(table),
        used_mib=column_values(table, used),
        own_mib=column_values(table, "own_mib"),
        power_w=column_values(table, "power_w"),
        energy_j=column_values(table, "energy_j"),
    )


def vram_peaks_mib(cards: Mapping[str, CardSamples]) -> dict[str, float]:
    """Largest used memory of each card that reported any, over the whole point."""
    known = {name: card.used_mib[~np.isnan(card.used_mib)] for name, card in cards.items()}
    return {name: float(values.max()) for name, values in known.items() if len(values)}


def own_peaks_mib(cards: Mapping[str, CardSamples], before_mib: Mapping[str, float]) -> dict[str, float]:
    """Largest memory of the server itself on each card: as NVML tells it per process, else what is used above what
    was used before the launch; a card of which neither is known is missing."""
    own = {}
    for name, peak_mib in vram_peaks_mib(cards).items():
        told = cards[name].own_mib[~np.isnan(cards[name].own_mib)]
        if len(told):
            own[name] = float(told.max())
        elif name in before_mib or name == SIMULATED_CARD:
            own[name] = peak_mib - before_mib.get(name, 0.0)
    return own


def mean_power_w(cards: Mapping[str, CardSamples], window: Window) -> float | None:
    """Mean power over the window, summed over the cards; None when a card's is not known."""
    if not cards:
        return None
    total = 0.0
    for card in cards.values():
        inside = (card.t_ns >= window.start_ns) & (card.t_ns <= window.end_ns) & ~np.isnan(card.power_w)
        if not inside.any():
            return None
        total += float(card.power_w[inside].mean())
    return total


def energy_per_token_j(
    cards: Mapping[str, CardSamples], window: Window, tokens_between: Callable[[int, int], float | None]
) -> float | None:
    """Joules of all cards / output tokens, over the part of the window that every card's samples cover.

    None under 10 s, without tokens or where their number is unknown, or when a counter is missing or went backwards.
    """
    counters = [(card.t_ns[known], card.energy_j[known]) for card in cards.values() for known in [_known(card)]]
    if not counters or any(len(times) < 2 or (np.diff(joules) < 0).any() for times, joules in counters):
        return None
    start = max(window.start_ns, *(int(times[0]) for times, _ in counters))
    end = min(window.end_ns, *(int(times[-1]) for times, _ in counters))
    if end - start < MIN_ENERGY_S * 1e9:
        return None
    tokens = tokens_between(start, end)
    if not tokens:
        return None
    joules_used = 0.0
    for times, joules in counters:
        at = np.interp([0.0, float(end - start)], (times - start).astype(np.float64), joules)
        joules_used += float(at[1] - at[0])
    return joules_used / tokens


def _known(card: CardSamples) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(card.energy_j))

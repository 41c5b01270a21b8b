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
    util_pct: NDArray[np.float64]


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
        util_pct=column_values(table, "util_pct"),
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


def mean_utilization_pct(cards: Mapping[str, CardSamples], window: Window) -> float | None:
    """NVML's utilisation over the window, mean over time and cards; None when a card tells none."""
    means = []
    for card in cards.values():
        inside = (card.t_ns >= window.start_ns) & (card.t_ns <= window.end_ns) & ~np.isnan(card.util_pct)
        if not inside.any():
            return None
        means.append(float(card.util_pct[inside].mean()))
    return float(np.mean(means)) if means else None


@dataclass(frozen=True, slots=True)
class ServerClock:
    """What the server counted itself between two samples. None: not told."""

    steps: int | None = None
    tokens_per_step: float | None = None
    prefill_step_share: float | None = None
    queue_ms_mean: float | None = None
    prefill_ms_mean: float | None = None


def server_clock(metrics: pa.Table) -> ServerClock:
    """The server's own counts over these samples (those within the window).

    A step of more tokens than the most requests that ran at once carried a prefill; the histogram tells how many steps
    had more than the next bucket's edge, so the share is a lower bound. (With a drafter a step has up to 1 + n tokens a
    request, and then more steps count than carried one: the share is left out where no edge separates them.)
    """
    steps, tokens = growth(metrics, "iteration_tokens_count"), growth(metrics, "iteration_tokens_sum")
    return ServerClock(
        steps=None if steps is None else round(steps),
        tokens_per_step=tokens / steps if steps and tokens is not None else None,
        prefill_step_share=_prefill_share(metrics),
        queue_ms_mean=_mean_ms(metrics, "queue_time"),
        prefill_ms_mean=_mean_ms(metrics, "prefill_time"),
    )


def _mean_ms(metrics: pa.Table, name: str) -> float | None:
    seconds, count = growth(metrics, f"{name}_sum"), growth(metrics, f"{name}_count")
    return 1000 * seconds / count if seconds is not None and count else None


def _prefill_share(metrics: pa.Table) -> float | None:
    largest = peak(metrics, "running")
    if "iteration_tokens_buckets" not in metrics.column_names or largest is None:
        return None
    known = [dict(row) for row in metrics["iteration_tokens_buckets"].to_pylist() if row]
    if len(known) < 2:
        return None
    edges = sorted(edge for edge in known[-1] if edge >= largest)
    total = known[-1].get(float("inf"), 0.0) - known[0].get(float("inf"), 0.0)
    if not edges or total <= 0:
        return None
    small = known[-1][edges[0]] - known[0].get(edges[0], 0.0)
    return float(max(0.0, 1 - small / total))


def _known(card: CardSamples) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(card.energy_j))

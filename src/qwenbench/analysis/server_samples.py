"""What the samples of /metrics and NVML say about a load point: KV use, queues, VRAM, power, energy, clocks and what
held them back, and what a long prompt does to others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from qwenbench.analysis.window import Window

MIN_ENERGY_S = 10.0
"""NVML's energy counter is too coarse for less."""
SIMULATED_CARD = "sim"
"""Name of the one card of a simulated server."""


def column_values(table: pa.Table, name: str) -> NDArray[np.float64]:
    """A numeric column with NaN for null; all NaN where the table has no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)


def sample_times(table: pa.Table) -> NDArray[np.int64]:
    """CLOCK_REALTIME of each sample, ns."""
    return np.asarray(table["t_ns"].to_numpy(), dtype=np.int64)


def known_values(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without what is not known."""
    return values[~np.isnan(values)]


def during(table: pa.Table, window: Window) -> pa.Table:
    """The samples within the window."""
    times = sample_times(table)
    return table.filter(pa.array((times >= window.start_ns) & (times <= window.end_ns)))


def peak(table: pa.Table, name: str) -> float | None:
    """Largest value of a gauge; None when it was never seen."""
    values = known_values(column_values(table, name))
    return float(values.max()) if len(values) else None


def growth(table: pa.Table, name: str) -> float | None:
    """Last minus first value of a counter; None when it was seen fewer than two times, or went backwards."""
    values = known_values(column_values(table, name))
    return None if len(values) < 2 or (np.diff(values) < 0).any() else float(values[-1] - values[0])


_NO_CARDS = pa.table({"t_ns": pa.array([], pa.int64()), "gpu": pa.array([], pa.string())})


def cards_of(nvml: pa.Table | None, metrics: pa.Table | None, simulated: bool) -> pa.Table:
    """Samples of the configuration's cards, with NVML_SCHEMA's columns as far as they are known: NVML's, or for a
    simulated server those of its own /metrics."""
    found = metrics if simulated else nvml
    if found is None or found.num_rows == 0:
        return _NO_CARDS
    if not simulated:
        return found
    used = pa.array(column_values(found, "vram_used_mib"))
    return found.append_column("gpu", pa.repeat(SIMULATED_CARD, found.num_rows)).append_column("used_mib", used)


def by_card(cards: pa.Table, name: str, pick: Callable[[NDArray[np.float64]], np.floating[Any]]) -> dict[str, float]:
    """What `pick` makes of each card's values of a column; a card of which none is known is missing."""
    gpus, values = cards["gpu"].to_numpy(), column_values(cards, name)
    known = ~np.isnan(values)
    return {gpu: float(pick(values[known & (gpus == gpu)])) for gpu in dict.fromkeys(gpus[known].tolist())}


def own_peaks_mib(cards: pa.Table, before_mib: Mapping[str, float]) -> dict[str, float]:
    """Largest memory of the server itself on each card: as NVML tells it per process, else what is used above what
    was used before the launch; a card of which neither is known is missing."""
    above = {
        name: peak_mib - before_mib.get(name, 0.0)
        for name, peak_mib in by_card(cards, "used_mib", np.max).items()
        if name in before_mib or name == SIMULATED_CARD
    }
    return above | by_card(cards, "own_mib", np.max)


def card_means(cards: pa.Table, window: Window, name: str) -> list[float] | None:
    """Each card's mean over the window; None without cards, or when a card's is not known."""
    means = by_card(during(cards, window), name, np.mean)
    return list(means.values()) if means and len(means) == len(pc.unique(cards["gpu"])) else None


def energy_per_token_j(
    cards: pa.Table, window: Window, tokens_between: Callable[[int, int], float | None]
) -> float | None:
    """Joules of all cards / output tokens, over the part of the window that every card's samples cover.

    None under 10 s, without tokens or where their number is unknown, or when a counter is missing or went backwards.
    """
    gpus, every, energy = cards["gpu"].to_numpy(), sample_times(cards), column_values(cards, "energy_j")
    places = [(gpus == gpu) & ~np.isnan(energy) for gpu in pc.unique(cards["gpu"]).to_pylist()]
    counters = [(every[place], energy[place]) for place in places]
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


def server_clock(metrics: pa.Table) -> dict[str, Any]:
    """Columns of a point: what the server counted itself over these samples (those within the window).

    A step of more tokens than the most requests that ran at once carried a prefill; the histogram tells how many steps
    had more than the next bucket's edge, so the share is a lower bound. (With a drafter a step has up to 1 + n tokens a
    request, and then more steps count than carried one: the share is left out where no edge separates them.)
    """
    steps, tokens = growth(metrics, "iteration_tokens_count"), growth(metrics, "iteration_tokens_sum")
    return {
        "server_steps": None if steps is None else round(steps),
        "server_tokens_per_step": tokens / steps if steps and tokens is not None else None,
        "server_prefill_step_share": _prefill_share(metrics),
        "server_queue_ms_mean": _mean_ms(metrics, "queue_time"),
        "server_prefill_ms_mean": _mean_ms(metrics, "prefill_time"),
    }


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


REASONS = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean less speed than the card has; idleness and clocks that were set by a
user are none."""
HEAT = 0x8 | 0x20 | 0x40 | 0x80
"""Of them those that say that something is wrong with cooling or power supply."""
_LEAST_SHARE = 0.01


def clock_columns(nvml: pa.Table | None, window: Window | None) -> dict[str, Any]:
    """Columns of a point: mean SM clock (MHz), the enforced power limit (W, all cards), the share of samples in which
    something held the clocks back, and what it was. Over the window, or the whole point without one."""
    if nvml is None or nvml.num_rows == 0:
        return {}
    if window is not None:
        inside = during(nvml, window)
        nvml = inside if inside.num_rows else nvml
    clock = known_values(column_values(nvml, "sm_clock_mhz"))
    watts = column_values(nvml, "power_limit_w").tolist()
    # the last sample's of each card: a limit that was changed meanwhile holds from now on
    limit = sum(dict(zip(nvml["gpu"].to_pylist(), watts, strict=True)).values())
    return {
        "sm_clock_mhz_mean": float(clock.mean()) if len(clock) else None,
        "power_limit_w": None if np.isnan(limit) else float(limit),
        **_held_back(nvml),
    }


def throttle_note(point: Mapping[str, Any]) -> str | None:
    """What people are told of a point that was held back by heat or a power brake; None when it was not.

    A power limit that is reached is a card at work, and stands in its column only.
    """
    reasons = point.get("throttle_reasons")
    if not any(bit & HEAT and name in (reasons or "") for bit, name in REASONS.items()):
        return None
    return f"the card was slowed down during the point ({reasons}): check cooling and power before comparing it"


def _held_back(nvml: pa.Table) -> dict[str, Any]:
    known = known_values(column_values(nvml, "throttle")).astype(np.int64)
    if not len(known):
        return {"throttled_share": None, "throttle_reasons": None}
    shares = {name: float(((known & bit) != 0).mean()) for bit, name in REASONS.items()}
    any_of = int(np.bitwise_or.reduce(np.fromiter(REASONS, dtype=np.int64)))
    seen = [f"{name} {share:.0%}" for name, share in shares.items() if share >= _LEAST_SHARE]
    return {"throttled_share": float(((known & any_of) != 0).mean()), "throttle_reasons": ", ".join(seen) or None}


_COLUMNS = ("error", "sent_ns", "scheduled_ns", "ttft_ms", "itl_ms", "gaps_merged")


def interference(requests: pa.Table, beside: pa.Table) -> str | None:
    """One clause with the ITL of `requests` during and outside the prefills of `beside`; None where none was read.

    Both have REQUEST_SCHEMA. A prefill lasts from the sending of a request to its first token; a gap counts as during
    one when it ended within it or spanned its end. Streams with merged reads have no times for their gaps and are left
    out.
    """
    spans = np.array([(start, end) for start, end, _ in _streams(beside) if end > start], np.float64).reshape(-1, 2)
    streams = list(_streams(requests))
    if not len(spans) or not streams:
        return None
    starts, ends = np.sort(spans, axis=0).T
    every = np.concatenate([itl for _, _, itl in streams])
    close = np.concatenate([first + np.cumsum(itl) * 1e6 for _, first, itl in streams])
    # spans that began before the gap's end, less those that ended before its beginning
    during_one = np.searchsorted(starts, close) > np.searchsorted(ends, close - every * 1e6)
    tokens = beside["input_tokens"].drop_null().to_pylist()
    length = f" of {round(np.mean(tokens))} tokens" if tokens else ""
    ttft = float(np.mean(np.diff(spans) / 1e6))
    return (
        f"{len(spans)} prompts{length} beside (TTFT {ttft:.0f} ms): the others' ITL p50/p99 was "
        f"{_told(every[during_one])} while one was read, {_told(every[~during_one])} otherwise"
    )


def _streams(table: pa.Table) -> Iterator[tuple[float, float, NDArray[np.float64]]]:
    """Start, first token (ns of CLOCK_REALTIME) and gaps (ms) of each successful stream whose gaps have times."""
    for row in table.select(_COLUMNS).to_pylist():
        if row["error"] is None and row["ttft_ms"] is not None and not row["gaps_merged"]:
            begin = row["sent_ns"] if row["scheduled_ns"] is None else row["scheduled_ns"]
            yield float(row["sent_ns"]), begin + row["ttft_ms"] * 1e6, np.asarray(row["itl_ms"] or (), np.float64)


def _told(gaps: NDArray[np.float64]) -> str:
    return f"{np.percentile(gaps, 50):.1f}/{np.percentile(gaps, 99):.1f} ms" if len(gaps) else "unknown"

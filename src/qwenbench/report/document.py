"""The report's data: one typed value that the page's script draws from, and nothing else.

Python fills it in (collect.py), orjson turns it into JSON as it stands, assets/*.js draws it. Unknown is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Estimate = tuple[float, float | None, float | None]
"""Value, low and high (95 %). Low and high are None where one repeat gives no interval."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure that curves can show."""

    key: str
    """As in limits and `recommend`: ttft_p50."""
    label: str
    unit: str
    better: str
    """`higher`, `lower` or empty."""
    definition: str


@dataclass(frozen=True, slots=True)
class ConfigView:
    """One server configuration, in the order of its first launch."""

    id: str
    capture: int | None
    max_num_seqs: int | None
    gpu_memory_utilization: float | None
    vary: Mapping[str, str]
    cards: int
    """Cards that one server of it takes (tensor x pipeline x data parallel)."""
    startup_s: float | None
    vram_before_gib: float | None
    vram_ready_gib: float | None
    vram_peak_gib: float | None
    """Largest over all of its points."""
    ledger: Mapping[str, Any]
    """memory.json; empty when there is none."""
    prediction: Mapping[str, Any]
    """prediction.json; empty when there is none."""
    failed: bool
    """True when a failure was recorded for it."""


@dataclass(frozen=True, slots=True)
class PointView:
    """One load point of one configuration, over its repeats and launches."""

    config: str
    workload: str
    level: float | None
    """Client streams, or sessions per second of an open loop."""
    load: str
    """The same for people: `32`, `2/s`, `trace`."""
    n: int
    """Repeats that the estimates stand on."""
    valid: bool
    invalid_reason: str | None
    bound: str | None
    bound_all: str | None
    requests_that_fit: float | None
    kv_cache_gib: float | None
    running_peak: float | None
    waiting_peak: float | None
    preemptions: float | None
    requests_ok: int
    requests_failed: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class TimelineView:
    """What was watched while one load point ran, thinned out. All series are as long as their own time axis."""

    config: str
    workload: str
    level: float | None
    repeat: int
    t: tuple[float, ...]
    """Seconds from the first sample, of the server's metrics."""
    running: tuple[float | None, ...]
    waiting: tuple[float | None, ...]
    kv_cache_usage: tuple[float | None, ...]
    preemptions: tuple[float | None, ...]
    """Since the first sample."""
    output_tokens_per_s: tuple[float | None, ...]
    vram_t: tuple[float, ...]
    """Seconds from the same instant, of the VRAM samples."""
    vram_gib: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """A figure before and after a step."""

    workload: str | None
    """None for figures of a launch, which do not depend on the load."""
    level: float | None
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    basis: str
    """`repeats`, `rounding` (of the printed figure) or `indicative`."""


@dataclass(frozen=True, slots=True)
class PriceView:
    """What one step of the captured size costs and buys, all else being equal."""

    before: str
    after: str
    label: str
    costs: Mapping[str, Change]
    gains: tuple[Change, ...]
    """Output tokens/s at each load."""


@dataclass(frozen=True, slots=True)
class Document:
    """All that the page's script knows."""

    run_id: str
    simulated: bool
    card_name: str | None
    card_gib: float | None
    """CUDA's total, which --gpu-memory-utilization multiplies."""
    card_nvml_gib: float | None
    """NVML's total, which the VRAM figures are to be held against."""
    level_label: str
    """Title of the load axis with its unit."""
    level_log: bool
    """True: levels are spread over a logarithmic axis."""
    workloads: tuple[str, ...]
    configs: tuple[ConfigView, ...]
    metrics: tuple[Metric, ...]
    points: tuple[PointView, ...]
    timelines: tuple[TimelineView, ...]
    timelines_left_out: int
    """Points that have samples but carry no time line, to keep the file small."""
    prices: tuple[PriceView, ...] = ()

"""A machine that a card may stand in, measured from a run's request records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from qwenbench.capacity.cards import find_card
from qwenbench.errors import UsageError
from qwenbench.simulator.recorded import Load, compare, distance, judged, read_run_folder, strangeness
from qwenbench.simulator.steptime import HostTimes, StepModel, gpu_times, typical_host


def to_json(host: HostTimes) -> Mapping[str, object]:
    return {"times": asdict(host)}


MEASURED_TOGETHER = (("launch_ms", "piecewise_ms", "eager_ms"), ("row_ms",), ("frontend_ms",), ("frontend_stream_ms",))
"""What a run is asked for after the machine's speed as a whole; launches of all kinds stay in proportion, since few
runs show each kind."""
_STEPS = (1.5, 1.2, 1.08)
_TRIES = 4
_WORTHWHILE = 0.005
"""A step counts that brings the loads nearer by this share."""


def measure_host(run: Path) -> tuple[HostTimes, list[str]]:
    """The machine of a measured run, and a line per load of how near the simulator then comes.

    The run needs its request records (requests/*.parquet). A short probe is enough: `qwenbench bench` at 1 and 16
    streams. Raises UsageError for a simulated run and for one without usable loads.
    """
    loads = [load for load in read_run_folder(run) if judged(load) is not None]
    if not loads:
        raise UsageError(
            f"{run}: no measured load with request records to take the host's times from; make one with "
            "`qwenbench bench --concurrency 1,16` (a simulated run says nothing about a machine)"
        )
    host = replace(typical_host(), name=run.name)
    for factor in _STEPS:
        host = _nearest(loads, host, HostTimes.stretched, factor)
        for names in MEASURED_TOGETHER:
            host = _nearest(loads, host, partial(_changed, names), factor)
    lines = []
    for load in loads:
        found = compare(load, _model(load, host))
        figures = {"ITL p50": "itl_p50_ms", "tokens/s": "tokens_per_s", "TTFT p50": "ttft_p50_ms"}
        shown = [f"{label} {residual:+.0%}" for label, key in figures.items()
                 if (residual := found.residual(key)) is not None]  # fmt: skip
        lines.append(f"{load.name}: simulated / measured {', '.join(shown)}")
    return host, lines


def _model(load: Load, host: HostTimes) -> StepModel:
    return StepModel(gpu_times(find_card(load.server.card), version=load.server.version), host)


def _changed(names: Sequence[str], host: HostTimes, factor: float) -> HostTimes:
    return replace(host, **{name: getattr(host, name) * factor for name in names})


def _nearest(
    loads: Sequence[Load], host: HostTimes, changed: Callable[[HostTimes, float], HostTimes], factor: float
) -> HostTimes:
    """The host after steps by `factor`, up or down, for as long as the loads come nearer."""

    usual = asdict(typical_host())

    def off(candidate: HostTimes) -> float:
        apart = sum(distance(compare(load, _model(load, candidate))) for load in loads)
        return apart + strangeness(asdict(candidate), usual)

    best, least = host, off(host)
    for change in (factor, 1 / factor):
        for _ in range(_TRIES):
            candidate = changed(best, change)
            total = off(candidate)
            if total > least * (1 - _WORTHWHILE):
                break
            best, least = candidate, total
        if best is not host:
            break
    return best

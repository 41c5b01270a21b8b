"""How far the simulator is off where nothing was measured: each machine by the others, each card by the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from qwenbench.capacity.cards import find_card
from qwenbench.simulator.recorded import LIMITS, Comparison, Load, compare, judged
from qwenbench.simulator.steptime import TYPICAL, GpuTimes, HostTimes, StepModel, mean_host, scaled

OTHER_HOST = "the typical host of the other machines"
OTHER_CARD = "the other card's kernels, scaled, in the typical host of the other machines"


def with_typical_host(calibration: dict[str, Any]) -> dict[str, Any]:
    """The same with the geometric mean of its hosts as one more, `typical`."""
    result = copy.deepcopy(calibration)
    result["hosts"].pop(TYPICAL, None)
    times = asdict(mean_host(hosts_of(result)))
    del times["name"]
    result["hosts"][TYPICAL] = {"times": times}
    return result


def hosts_of(calibration: Mapping[str, Any], but: str = "") -> list[HostTimes]:
    """The machines of a calibration, one left out."""
    return [
        HostTimes.from_json({"name": name, **host["times"]})
        for name, host in calibration["hosts"].items()
        if name not in (but, TYPICAL)
    ]


def elsewhere(calibration: Mapping[str, Any], loads: Sequence[Load]) -> dict[str, list[Comparison]]:
    """Loads judged by what other machines and other cards showed."""
    found: dict[str, list[Comparison]] = {OTHER_HOST: [], OTHER_CARD: []}
    for load in loads:
        if judged(load) is None:
            continue
        server = load.server
        host = mean_host(hosts_of(calibration, but=server.machine))
        release = ".".join(server.version.split(".")[:2])
        versions = calibration["versions"].get(release, {})
        own = GpuTimes.from_json({**calibration["cards"][server.card], **versions})
        found[OTHER_HOST].append(compare(load, StepModel(own, host)))
        for name, values in calibration["cards"].items():
            if name != server.card:
                other = GpuTimes.from_json({**values, **versions})
                there = scaled(other, find_card(name), find_card(server.card))
                found[OTHER_CARD].append(compare(load, StepModel(there, host)))
    return found


def uncertainty(judged_by: Sequence[tuple[str, Sequence[Comparison]]]) -> dict[str, Any]:
    """recorded / simulated of each figure, from low to high, by how much was known."""
    names = {
        OTHER_HOST: "other_host",
        OTHER_CARD: "other_card",
        "a host fitted without the load's own run": "same_host",
    }
    result: dict[str, Any] = {}
    for name, comparisons in judged_by:
        key = names.get(name) or ("same_host" if "same_host" not in result and "all of these" in name else None)
        if key is not None:
            result[key] = {figure: _factors(comparisons, figure) for figure in LIMITS}
    return _nested(result)


def _nested(result: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Where less is known an interval is no narrower than where more is."""
    wider: dict[str, Any] = {}
    before: Mapping[str, list[float]] = {}
    for key in ("same_host", "other_host", "other_card"):
        for figure, (low, high) in result.get(key, {}).items():
            known_low, known_high = before.get(figure, (low, high))
            wider.setdefault(key, {})[figure] = [min(low, known_low), max(high, known_high)]
        before = wider.get(key, before)
    return wider


def _factors(comparisons: Sequence[Comparison], figure: str) -> list[float]:
    values = [1 / (1 + residual) for item in comparisons if (residual := item.residual(figure)) is not None]
    return [round(min(*values, 1.0), 3), round(max(*values, 1.0), 3)]

"""Machines that a card may stand in: those that were measured, one from a file, and one measured from a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from qwenbench.errors import UsageError
from qwenbench.simulator.steptime import HostTimes, calibration

TYPICAL = "typical"
"""The middle of the machines that were measured: what is taken where nothing is known."""


def measured_hosts() -> dict[str, HostTimes]:
    """The machines of the calibration, by name."""
    return {
        name: HostTimes.from_json({"name": name, **values["times"]}) for name, values in calibration()["hosts"].items()
    }


def typical_host() -> HostTimes:
    """The geometric mean of the machines that were measured."""
    return _mean(TYPICAL, list(measured_hosts().values()))


def host_range() -> tuple[HostTimes, HostTimes]:
    """(fastest, slowest) of the machines that were measured, by the time that a kernel-by-kernel step takes them."""
    hosts = sorted(measured_hosts().values(), key=lambda host: host.launch_ms)
    return hosts[0], hosts[-1]


def find_host(name: str | None) -> HostTimes:
    """A machine by name, `typical` (None), or a file of `qwenbench simulate --measure-host`. Raises UsageError."""
    hosts = measured_hosts()
    if name is None or name == TYPICAL:
        return typical_host()
    if name in hosts:
        return hosts[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"--sim-host {name!r}: no machine of that name and no such file; known are {', '.join([TYPICAL, *hosts])}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return HostTimes.from_json(values["times"] if isinstance(values, dict) and "times" in values else values)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--sim-host {path}: no machine's times: {error}") from None


def to_json(host: HostTimes) -> Mapping[str, object]:
    """What a file holds."""
    return {"times": asdict(host)}


def _mean(name: str, hosts: Sequence[HostTimes]) -> HostTimes:
    values: dict[str, object] = {"name": name}
    for field in fields(HostTimes):
        if field.name != "name":
            logs = [math.log(max(getattr(host, field.name), 1e-9)) for host in hosts]
            values[field.name] = math.exp(sum(logs) / len(logs))
    return HostTimes(**values)  # type: ignore[arg-type]  # one number per field

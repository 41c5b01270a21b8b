"""Which machine a figure was measured on. Figures of unlike machines are never averaged.

A machine is what speed depends on: its cards, its processor (a step with a prefill is bound by the host) and how many
of its cores could be used. Hosts of which all of that is alike are one machine. Points hold its words in the column
`machine`; a run that holds several tells its configurations apart by them, so that whatever groups by configuration
keeps machines apart as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenbench.engine.config import ATTACHED
from qwenbench.runfolder.damage import mapping
from qwenbench.runfolder.names import AT

if TYPE_CHECKING:
    import pandas as pd

_TRADE_MARKS = re.compile(r"\((?:R|TM|C)\)|\bCPU\b|\bProcessor\b|@.*|\b\d+-Core\b|\bwith .* Graphics\b", re.I)
UNKNOWN = "unknown machine"
OfLaunches = Mapping[tuple[str, int], Mapping[str, Any]]
"""(configuration, launch) -> what a file says of it, by rising launch."""


def machine_of(hardware: Mapping[str, Any], launcher: str) -> str | None:
    """A machine's words from `Hardware.to_json()`, e.g. `RTX 5090, AMD Ryzen 9 7950X x 32`.

    A simulated one is its card alone: the host does not show in its figures. None: a server whose machine is not seen.
    """
    if launcher == "sim":
        card = hardware.get("card")
        return None if card is None else f"{card} (SIMULATED)"
    gpus = [str(gpu["name"]) for gpu in map(mapping, hardware.get("gpus") or ()) if gpu.get("name")]
    if launcher == ATTACHED and not gpus:
        return None  # what is known is the client's machine
    parts = [cards_words(gpus)] if gpus else []
    if hardware.get("cpu"):
        cpu = " ".join(_TRADE_MARKS.sub(" ", str(hardware["cpu"])).split())
        parts.append(f"{cpu} x {hardware['cpus']}" if hardware.get("cpus") else cpu)
    if hardware.get("platform") not in (None, "linux"):
        parts.append(str(hardware["platform"]))
    return ", ".join(parts).replace(AT, " at ") or None


def cards_words(names: Iterable[str]) -> str:
    """Cards by their product names: `RTX 5090`, `2 x H200`."""
    counted = Counter(re.sub(r"^(NVIDIA\s+)?(GeForce\s+)?", "", name) for name in names)
    return " + ".join(name if count == 1 else f"{count} x {name}" for name, count in counted.items())


def told_apart(points: pd.DataFrame, meta: Mapping[str, Any], always: bool = False) -> pd.DataFrame:
    """The points with each configuration named CONFIG@MACHINE where the run holds several machines, or `always`; else
    as they are.

    Points of before the column was kept are of the machine that run.json describes.
    """
    described = machine_of(mapping(meta.get("hardware")), str(mapping(meta.get("options")).get("launcher")))
    machines = points["machine"].where(points["machine"].notna(), described)
    if machines.nunique(dropna=False) < 2 and not always:
        return points
    words = machines.where(machines.notna(), UNKNOWN).astype(str)
    return points.assign(machine=machines, config_id=points["config_id"].astype(str) + AT + words)


def by_machine(values: OfLaunches, launches: OfLaunches, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """What a file says of each configuration: as its first launch has it, or the first on that machine where
    `told_apart` named it so.

    `values` are that file of each launch, `launches` its launch.json, `names` the configurations of the points.
    """
    first = {config: value for (config, launch), value in values.items() if launch == 1}
    apart = [name for name in names if AT in name]
    several = Counter(name.partition(AT)[0] for name in apart)
    found = {config: value for config, value in first.items() if config not in several}
    for name in apart:
        config, _, machine = name.partition(AT)
        own = [key for key in values if key[0] == config and launches.get(key, {}).get("machine") == machine]
        if own:
            found[name] = values[own[0]]
        elif several[config] == 1 and config in first:
            found[name] = first[config]  # of before launch.json named its machine
    return found

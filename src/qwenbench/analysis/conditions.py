"""What differs between two runs beside their figures, and what makes them no comparison at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from qwenbench.analysis.run import Run

_TAKEN = ("versions", "hardware", "seed")
"""Parts of run.json that are conditions as they stand."""
_LOAD_OPTIONS = (
    "launcher", "card", "model", "image", "input_tokens", "output_tokens", "ignore_eos", "prefix_reuse", "requests",
    "duration_s", "endpoint", "extra_body", "timeout_s", "slo", "client_processes", "client_cpus", "repeats",
    "relaunch_repeats", "order", "burstiness", "ramp_s",
)  # fmt: skip
_SERVER = ("model", "served_model_name", "flags", "extra_args", "env", "docker")


@dataclass(frozen=True, slots=True)
class Difference:
    """A condition that is not the same in both runs; None: not there or not known."""

    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.what}: {_shown(self.before)} -> {_shown(self.after)}"


def differences(before: Run, after: Run) -> list[Difference]:
    """Every condition that differs: versions, hardware, seed, scenarios, load options and server settings.

    Of a scenario, profile or configuration that only one run has, no more than that is said.
    """
    ours, theirs = dict(_conditions(before)), dict(_conditions(after))
    found = _different(ours, theirs)
    for parts in (_scenario_conditions, _profile_conditions, _server_conditions):
        mine, yours = parts(before), parts(after)
        for name in dict.fromkeys([*mine, *yours]):
            if name in mine and name in yours:
                found += _different(mine[name], yours[name])
            else:
                found.append(Difference(name, *("yes" if name in side else None for side in (mine, yours))))
    return found


def _different(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    names = dict.fromkeys([*ours, *theirs])
    return [Difference(name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name)]


def refusals(before: Run, after: Run) -> list[str]:
    """Why the two runs must not be compared, one line each; empty when they may be."""
    reasons = []
    if before.simulated != after.simulated:
        one, other = (before, after) if before.simulated else (after, before)
        reasons.append(f"{one.run_id} is SIMULATED and {other.run_id} was measured")
    lengths = [_lengths(run.points) for run in (before, after)]
    if all(lengths) and lengths[0] != lengths[1]:
        words = [" and ".join(sorted(_LENGTH_WORDS[value] for value in found)) for found in lengths]
        reasons.append(f"output lengths are {words[0]} in {before.run_id} and {words[1]} in {after.run_id}")
    for name, ours in _scenarios(before).items():
        theirs = _scenarios(after).get(name)
        if theirs is not None and ours != theirs:
            reasons.append(f"scenario {name} is not the same text or prompts (different hashes)")
    for name, mine in _effective(before).items():
        yours = _effective(after).get(name, {})
        reasons += [
            f"{_shape_words(mine[part])} in {before.run_id} and {_shape_words(yours[part])} in {after.run_id} are "
            f"scenario {name}'s {part.replace('_', ' ')}"
            for part in _WORK
            if part in mine and part in yours and mine[part] != yours[part]
        ]
    return reasons


_WORK = ("input_tokens", "output_tokens", "think_time_s", "replay")
"""Parts of a scenario as it was run, options of the command line included, that decide how much work it is."""


def _effective(run: Run) -> dict[str, Mapping[str, Any]]:
    scenarios = run.meta.get("scenarios")
    entries = scenarios.items() if isinstance(scenarios, Mapping) else ()
    found = {str(name): entry.get("effective") for name, entry in entries if isinstance(entry, Mapping)}
    return {name: effective for name, effective in found.items() if isinstance(effective, Mapping)}


def _shape_words(value: Any) -> str:
    """A length for people: `64-192`, `median 220 (32-768)`; other values as they are."""
    if not isinstance(value, Mapping):
        return "the prompts' own" if value is None else str(value)
    span = f"{value.get('min')}-{value.get('max')}"
    return span if value.get("median") is None else f"median {value['median']} ({span})"


_LENGTH_WORDS = {True: "forced", False: "natural"}


def _lengths(points: pd.DataFrame) -> set[bool]:
    return {bool(value) for value in points["length_controlled"].dropna()}


def _scenarios(run: Run) -> dict[str, tuple[Any, Any]]:
    scenarios = run.meta.get("scenarios")
    if not isinstance(scenarios, Mapping):
        return {}
    return {
        str(name): (entry.get("sha256"), entry.get("prompts_sha256"))
        for name, entry in scenarios.items()
        if isinstance(entry, Mapping)
    }


def _conditions(run: Run) -> Iterator[tuple[str, Any]]:
    yield "simulated", run.simulated
    for name in _TAKEN:
        yield from _flat(run.meta.get(name), name)
    options = run.meta.get("options")
    if isinstance(options, Mapping):
        for name in _LOAD_OPTIONS:
            yield from _flat(options.get(name), f"options.{name}")


def _scenario_conditions(run: Run) -> dict[str, dict[str, Any]]:
    return {
        f"scenario {name}": {f"scenario {name}": "/".join(str(value)[:12] for value in hashes)}
        for name, hashes in _scenarios(run).items()
    }


def _profile_conditions(run: Run) -> dict[str, dict[str, Any]]:
    profiles = run.meta.get("profiles")
    if not isinstance(profiles, Mapping):
        return {}
    return {f"profile {name}": dict(_flat(fields, f"profile {name}")) for name, fields in profiles.items()}


def _server_conditions(run: Run) -> dict[str, dict[str, Any]]:
    found = {}
    for config_id, launch in run.launches.items():
        settings: dict[str, Any] = {}
        server = launch.get("server")
        if isinstance(server, Mapping):
            for name in _SERVER:
                settings |= dict(_flat(server.get(name), f"{config_id}.{name}"))
        if launch.get("image_digest"):
            settings[f"{config_id}.image_digest"] = launch["image_digest"]
        found[f"configuration {config_id}"] = settings
    return found


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{index}")
    elif value is not None:
        yield name, value


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)

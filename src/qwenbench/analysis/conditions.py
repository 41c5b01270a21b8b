"""What a run was measured under: what differs between two runs beside their figures, what makes them no comparison at
all, and the machines of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.analysis.run import Run
from qwenbench.runfolder.damage import mapping

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
    found: list[Difference] = []
    for ours, theirs in zip(_conditions(before), _conditions(after), strict=True):
        for group in dict.fromkeys([*ours, *theirs]):
            if group in ours and group in theirs:
                mine, yours = ours[group], theirs[group]
                names = [name for name in dict.fromkeys([*mine, *yours]) if mine.get(name) != yours.get(name)]
                found += [Difference(name, mine.get(name), yours.get(name)) for name in names]
            else:
                found.append(Difference(group, *("yes" if group in side else None for side in (ours, theirs))))
    return found


def _conditions(run: Run) -> Iterator[dict[str, dict[str, Any]]]:
    """Of the run itself, its scenarios, its profiles and its configurations: group -> condition -> value."""
    options = {f"options.{name}": run.part("options").get(name) for name in _LOAD_OPTIONS}
    own = {name: run.meta.get(name) for name in _TAKEN} | options
    yield {"run": {"simulated": run.simulated, **_flat(own)}}
    yield {
        f"scenario {name}": {f"scenario {name}": "/".join(str(value)[:12] for value in _hashes(entry))}
        for name, entry in _scenarios(run).items()
    }
    yield {f"profile {name}": _flat({f"profile {name}": fields}) for name, fields in run.part("profiles").items()}
    yield {
        f"configuration {name}": _flat(
            {f"{name}.{part}": mapping(launch.get("server")).get(part) for part in _SERVER}
            | {f"{name}.image_digest": launch.get("image_digest") or None}
        )
        for name, launch in run.launches.items()
    }


def _scenarios(run: Run) -> dict[str, Mapping[str, Any]]:
    return {str(name): known for name, entry in run.part("scenarios").items() if (known := mapping(entry))}


def _hashes(scenario: Mapping[str, Any]) -> tuple[Any, Any]:
    return scenario.get("sha256"), scenario.get("prompts_sha256")


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Path -> value, of what is known; a list of plain values is one."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
            value = dict(enumerate(value))  # noqa: PLW2901
        if isinstance(value, Mapping):
            found |= _flat({f"{name}.{key}": inner for key, inner in value.items()})
        elif value is not None:
            found[name] = value
    return found


_WORK = ("input_tokens", "output_tokens", "think_time_s", "replay")
"""Parts of a scenario as it was run, options of the command line included, that decide how much work it is."""
_LENGTH_WORDS = {True: "forced", False: "natural"}


def refusals(before: Run, after: Run) -> list[str]:
    """Why the two runs must not be compared, one line each; empty when they may be."""
    reasons = []
    if before.simulated != after.simulated:
        one, other = (before, after) if before.simulated else (after, before)
        reasons.append(f"{one.run_id} is SIMULATED and {other.run_id} was measured")
    lengths = [{bool(value) for value in run.points["length_controlled"].dropna()} for run in (before, after)]
    if all(lengths) and lengths[0] != lengths[1]:
        words = [" and ".join(sorted(_LENGTH_WORDS[value] for value in found)) for found in lengths]
        reasons.append(f"output lengths are {words[0]} in {before.run_id} and {words[1]} in {after.run_id}")
    ours, theirs = _scenarios(before), _scenarios(after)
    shared = [name for name in ours if name in theirs]
    reasons += [
        f"scenario {name} is not the same text or prompts (different hashes)"
        for name in shared
        if _hashes(ours[name]) != _hashes(theirs[name])
    ]
    for name in shared:
        mine, yours = (mapping(side[name].get("effective")) for side in (ours, theirs))
        reasons += [
            f"{_shape_words(mine[part])} in {before.run_id} and {_shape_words(yours[part])} in {after.run_id} are "
            f"scenario {name}'s {part.replace('_', ' ')}"
            for part in _WORK
            if part in mine and part in yours and mine[part] != yours[part]
        ]
    return reasons


def _shape_words(value: Any) -> str:
    """A length for people: `64-192`, `median 220 (32-768)`; other values as they are."""
    if not isinstance(value, Mapping):
        return "the prompts' own" if value is None else str(value)
    span = f"{value.get('min')}-{value.get('max')}"
    return span if value.get("median") is None else f"median {value['median']} ({span})"


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Place:
    """One machine of a run."""

    machine: str | None
    nodes: tuple[str, ...]
    launches: int
    """Launches that finished a point there."""
    drivers: tuple[str, ...]
    vllm: tuple[str, ...]


def places_of(run: Run) -> tuple[Place, ...]:
    """The machines that a run's points were measured on, in their order."""
    seen: dict[str | None, dict[tuple[str, int], str | None]] = {}
    for point in run.measured:
        launches = seen.setdefault(point.text("machine"), {})
        launches[point.cell.config_id, point.cell.launch] = point.text("node")
    told = {
        (launch.get("config_id"), launch.get("launch")): mapping(launch.get("versions"))
        for launch in map(mapping, run.meta.get("launches") or ())
    }

    def distinct(values: Iterable[Any]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(value) for value in values if value is not None))

    def version(name: str, launches: Iterable[tuple[str, int]]) -> tuple[str, ...]:
        return distinct(told.get(launch, {}).get(name) for launch in launches)

    return tuple(
        Place(machine, distinct(nodes.values()), len(nodes), version("driver", nodes), version("vllm", nodes))
        for machine, nodes in seen.items()
    )

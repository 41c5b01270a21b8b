"""Run folders of one plan that were measured apart, by hand on several hosts or by a cluster's nodes, joined into one.

Runs are of one plan when every name that two plans have means the same in both (`Plan.fingerprint`): each may have load
points, scenarios and configurations that the other lacks, as a run has that --resume lets grow. One run keeps to one
kind of card, one version of vLLM and one image; hosts may differ otherwise, and then their figures stay apart
(analysis/machines.py).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from qwenbench.errors import RunError, UsageError
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.damage import object_or_none, read_run_json
from qwenbench.runfolder.files import copy_file, disk_trouble, sync_folder, write_json
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.lock import RunLock, is_being_written
from qwenbench.runfolder.names import RunPaths, check_name, launch_folders
from qwenbench.sweep.extension import ADDED_TO, NEVER_FEWER, changed_parts, grown, stored_options
from qwenbench.sweep.option_values import writable_folder
from qwenbench.sweep.options import SweepOptions, checked_options
from qwenbench.sweep.plan import make_plan
from qwenbench.sweep.record import SCHEMA_VERSION, Recorder, keep_earlier_log, launches_of

_WHOLE_PARTS = ("load options", "trace")
"""Parts of a plan's fingerprint that two plans must have alike; of the others each may have names of its own."""


@dataclass(frozen=True)
class Merged:
    """What a merge made."""

    cells: int
    missing: int
    """Cells of the joined plan that no run has."""
    attached: bool
    """Whether its servers were there already (bench)."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Shard:
    """A run folder that is to be joined with others."""

    paths: RunPaths
    meta: Mapping[str, Any]
    options: SweepOptions
    entries: tuple[Entry, ...]
    launches: tuple[Mapping[str, Any], ...]
    """Where each launch was made (`launches_of`)."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Its name of a configuration -> the joined run's."""

    @property
    def name(self) -> str:
        """For people."""
        return str(self.paths.root)

    @property
    def plan(self) -> Mapping[str, Mapping[str, str]]:
        """Its plan's fingerprint."""
        plan: Mapping[str, Mapping[str, str]] = self.meta["plan"]
        return plan

    def cards(self) -> frozenset[str]:
        """Product names of the cards that it measured on; a simulated one's name."""
        gpus = [gpu for launch in self.launches for gpu in launch["gpus"]] or self.meta["hardware"].get("gpus") or []
        return frozenset(str(gpu["name"]) for gpu in gpus) or frozenset({str(self.meta["hardware"].get("card"))})

    def vllm(self) -> frozenset[str]:
        """The versions of vLLM that its servers told."""
        told = [launch["versions"].get("vllm") for launch in self.launches]
        return frozenset(str(version) for version in (*told, self.meta["versions"].get("vllm")) if version)


def read_shard(path: Path) -> Shard:
    """Reads a run that is to be joined. Raises UsageError for one that cannot be."""
    paths = RunPaths(path)
    meta = read_run_json(paths.run_json)
    if meta.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(f"{path}: written with schema version {meta.get('schema_version')}, this is {SCHEMA_VERSION}.")
    for part in ("plan", "hardware", "versions"):
        if not isinstance(meta.get(part), Mapping):
            raise UsageError(f"{paths.run_json}: {part} cannot be read, so the run cannot be joined with others.")
    if "tune" in meta:
        raise UsageError(f"{path}: a search chose what it measured (tune), so it is no part of a plan.")
    if is_being_written(paths.lock):
        raise UsageError(f"{path}: a process is writing to this run. Wait for it, or stop it first.")
    entries = tuple(Journal(paths.journal).entries())
    if not entries and paths.points.exists() and not paths.journal.exists():
        raise UsageError(f"{path}: its journal is missing, which says what is finished. Copy the whole folder.")
    return Shard(paths, meta, stored_options(path), entries, tuple(launches_of(paths)))


def merge(runs: Sequence[Path], out: Path) -> Merged:
    """Joins runs of one plan into the new folder `out`; the runs stay as they are.

    The folder appears whole or not at all. Raises UsageError, with the reason, for runs that are not of one plan;
    RunError when the folder cannot be written.
    """
    check_name(out.name, "--out")
    writable_folder(out.parent, "--out")
    if out.exists():
        raise UsageError(f"--out {out}: it exists. Choose another folder.")
    homes = [run.resolve() for run in runs]
    for run, home in zip(runs, homes, strict=True):
        if homes.count(home) > 1:
            raise UsageError(f"RUN {run}: it is given twice.")
        if out.resolve().is_relative_to(home):
            raise UsageError(f"--out {out}: it lies in {run}, which is to stay as it is. Choose another folder.")
    shards = sorted((read_shard(run) for run in runs), key=lambda shard: _time(shard.meta.get("started")))
    for first, other in itertools.combinations(shards, 2):
        _refuse_unlike(first, other)
    shards = _with_joined_names(shards)
    _refuse_measured_twice(shards)
    options = _joined_options(shards)
    staging = out.with_name(f".{out.name[:60]}.merging")
    try:
        with RunLock(RunPaths(staging).lock, takeover=True):
            _clear(staging)  # what a merge that was killed has left
            merged = _build(RunPaths(staging), out.name, shards, options)
            staging.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise disk_trouble(error, out) or RunError(f"--out {out}: {error.strerror or error}.") from error
    return merged


def _take_launch(source: Path, target: Path) -> None:
    """The files of a launch: of two that have one number the later one's stand, the other's log is kept beside them."""
    ours, theirs = _started_ns(target), _started_ns(source)
    if ours is not None and theirs is not None and ours > theirs:
        if (log := source / "server.log").is_file():
            copy_file(log, target / f"server.{theirs}.log")
        return
    if target.exists() and ours != theirs:
        keep_earlier_log(target)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.is_symlink() and not file.name.endswith(".tmp"):
            copy_file(file, target / file.name)


def _started_ns(folder: Path) -> int | None:
    value = (object_or_none(folder / "launch.json", "when it was launched is not known") or {}).get("started_ns")
    return value if isinstance(value, int) else None


def _refuse_unlike(first: Shard, other: Shard) -> None:
    """Raises UsageError for two runs that are not of one plan, or not of what one run holds."""
    both = f"{first.name} and {other.name} do not go into one run"
    simulated = [shard.meta.get("simulated") for shard in (first, other)]
    if simulated[0] != simulated[1]:
        raise UsageError(f"{both}: one is simulated, the other measured.")
    changed = changed_parts(_shared(first.plan, other.plan), other.plan)
    if changed:
        raise UsageError(f"{both}: their plans differ ({'; '.join(changed)}).")
    if first.cards() != other.cards():
        words = " and ".join(", ".join(sorted(shard.cards())) for shard in (first, other))
        raise UsageError(
            f"{both}: they were measured on unlike cards ({words}). Merge per card, then compare the runs."
        )
    versions = first.vllm() | other.vllm()
    if len(versions) > 1:
        raise UsageError(f"{both}: their servers are vLLM {' and '.join(sorted(versions))}. Compare the runs instead.")
    images: dict[str, set[str]] = {}
    for launch in (*first.launches, *other.launches):
        if launch["image"] and launch["image_digest"]:
            images.setdefault(launch["image"], set()).add(launch["image_digest"])
    for image, digests in images.items():
        if len(digests) > 1:
            raise UsageError(f"{both}: {image} is not one image ({' and '.join(sorted(digests))}). Name it by digest.")


def _shared(plan: Mapping[str, Mapping[str, str]], other: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """What of a plan the other must agree with: all of what holds for every point, else the names that both have."""
    kept = {}
    for part, names in plan.items():
        if part in _WHOLE_PARTS:
            kept[part] = {**dict.fromkeys(other.get(part, {}), ""), **names}
        else:
            kept[part] = {name: value for name, value in names.items() if name in other.get(part, {})}
    return kept


def _with_joined_names(shards: Sequence[Shard]) -> list[Shard]:
    """The runs with the first one's name of each configuration: a larger plan may name the same one otherwise."""
    named: dict[str, str] = {}
    for shard in shards:
        for name, value in shard.plan["configurations"].items():
            named.setdefault(value, name)
    return [
        replace(shard, names={name: named[value] for name, value in shard.plan["configurations"].items()})
        for shard in shards
    ]


def _refuse_measured_twice(shards: Sequence[Shard]) -> None:
    """Raises UsageError for a cell that two runs have measured; one that was copied from the other is the same."""
    owners: dict[str, tuple[Shard, Entry]] = {}
    for shard in shards:
        for entry in shard.entries:
            cell = Cell.of_row({**entry.point, "config_id": shard.names.get(entry.config, entry.config)}).cell_id
            owner, known = owners.setdefault(cell, (shard, entry))
            if known.finished_ns != entry.finished_ns:
                raise UsageError(
                    f"{owner.name} and {shard.name} do not go into one run: both have measured {cell}. To have both, "
                    "compare the runs; repeats of one run are measured with --relaunch-repeats."
                )


def _joined_options(shards: Sequence[Shard]) -> SweepOptions:
    """Options of which the plan holds what every run's holds. Raises UsageError where no options do."""
    first = shards[0].options
    fields = first.model_dump(exclude_defaults=True, exclude={"only"})  # names may become others
    for shard in shards[1:]:
        given = {name: getattr(shard.options, name) for name in (*ADDED_TO, *NEVER_FEWER, "vary")}
        fields = grown(SweepOptions.model_validate(fields), given)
    joined = checked_options(fields)
    if all(shard.options == first for shard in shards) or joined.attached:
        return joined
    known = {value: name for shard in reversed(shards) for name, value in shard.plan["configurations"].items()}
    plan = make_plan(joined, known).fingerprint()
    planned = set(plan["configurations"].values())
    for shard in shards:
        parts = {part: names for part, names in shard.plan.items() if part != "configurations"}
        lost = changed_parts(parts, plan)
        lost += [f"no {name}" for name, value in shard.plan["configurations"].items() if value not in planned]
        if lost:
            raise UsageError(f"{shard.name}: its options and the other runs' make no one plan ({'; '.join(lost[:4])}).")
    return joined


def _build(paths: RunPaths, run_id: str, shards: Sequence[Shard], options: SweepOptions) -> Merged:
    """Writes the joined run into a folder of which nobody knows yet."""
    recorder = Recorder(paths, tuple(options.vary))
    for shard in shards:
        for config, number, folder in launch_folders(shard.paths):
            _take_launch(folder, paths.server(shard.names.get(config, config), number))
    found = [(entry, shard) for shard in shards for entry in shard.entries]
    for entry, shard in sorted(found, key=lambda each: each[0].finished_ns):
        recorder.adopt(shard.paths, entry, shard.names)
    recorder.write_points()
    recorder.write_summary()
    meta, notes = _joined_meta(run_id, shards, options)
    meta["launches"] = launches_of(paths)
    write_json(paths.run_json, meta)
    plan = meta["plan"]
    cells = len(plan["configurations"]) * options.relaunch_repeats * len(plan["load points"])
    done = len(recorder.points)
    return Merged(done, max(0, cells - done), options.attached, tuple(notes))


def _joined_meta(run_id: str, shards: Sequence[Shard], options: SweepOptions) -> tuple[dict[str, Any], list[str]]:
    """run.json of the joined run, and what a reader should know of it. What its runs differ in is not known of it."""
    metas = [dict(shard.meta) for shard in shards]
    meta = dict(metas[0])
    for part in ("scenarios", "profiles"):
        meta[part] = _united([each.get(part) or {} for each in metas])
    renamed = [
        {shard.names.get(name, name): value for name, value in (shard.meta.get("configurations") or {}).items()}
        for shard in shards
    ]
    meta["configurations"] = _united(renamed)
    meta["plan"] = {part: _united([shard.plan.get(part, {}) for shard in shards]) for part in shards[0].plan}
    meta["plan"]["configurations"] = _united(
        [{shard.names[name]: value for name, value in shard.plan["configurations"].items()} for shard in shards]
    )
    meta["order"] = list(dict.fromkeys(point for each in metas for point in each.get("order") or ()))
    meta["options"] = options.model_dump(mode="json")
    for part in ("versions", "hardware"):
        meta[part] = {key: _common([each[part].get(key) for each in metas]) for key in meta[part]}
    gpus = {str(gpu.get("uuid")): gpu for each in metas for gpu in each["hardware"].get("gpus") or ()}
    meta["hardware"]["gpus"] = list(gpus.values())
    ends = [each.get("finished") for each in metas]
    meta["finished"] = None if None in ends else max(ends, key=_time)
    meta["timings"] = [timing for each in metas for timing in each.get("timings") or ()]
    meta["extended"] = [step for each in metas for step in each.get("extended") or ()]
    told = _differences(shards)
    meta["notes"] = list(dict.fromkeys([note for each in metas for note in each.get("notes") or ()] + told))
    meta["merged"] = [
        {
            "run_id": each.get("run_id"),
            "nodes": list(dict.fromkeys(launch["node"] for launch in shard.launches)),
            "command_line": each.get("command_line"),
            "started": each.get("started"),
            "finished": each.get("finished"),
            "cells": len(shard.entries),
        }
        for each, shard in zip(metas, shards, strict=True)
    ]
    return meta | {"run_id": run_id}, told


def _differences(shards: Sequence[Shard]) -> list[str]:
    """What the hosts and their tools differ in, in words."""
    found = []
    launches = [launch for shard in shards for launch in shard.launches]
    for tool in ("driver", "qwenbench"):
        values = {launch["versions"].get(tool) for launch in launches} - {None}
        if len(values) > 1:
            found.append(f"measured with unlike versions of {tool}: {', '.join(sorted(map(str, values)))}")
    machines = {launch["machine"] for launch in launches} - {None}
    if len(machines) > 1:
        found.append(f"measured on unlike machines, whose figures are kept apart: {'; '.join(sorted(machines))}")
    return found


def _united(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All names; of one that several have the first one's value."""
    return {name: value for part in reversed(parts) for name, value in part.items()}


def _common(values: Sequence[Any]) -> Any:
    """The one value that all have; None where they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _time(stamp: Any) -> float:
    """A time of run.json in seconds; that of what is none lies before all others."""
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return 0.0


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == RunPaths(folder).lock.name:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

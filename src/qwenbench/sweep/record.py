"""What a sweep puts on disk: run.json with its conditions, and the finished cells.

A cell's files come first, then the journal's line, then points.csv anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pyarrow as pa

from qwenbench.analysis.bounds import settle_load
from qwenbench.analysis.run import point_frame, points_csv
from qwenbench.engine.failures import Failure
from qwenbench.engine.launchers import make_launcher
from qwenbench.engine.server import Launcher
from qwenbench.engine.speed_settings import GraphSteps
from qwenbench.errors import UsageError
from qwenbench.masking import Masker, masked
from qwenbench.runfolder.cells import Cell
from qwenbench.runfolder.damage import mapping, object_or_none, read_run_json
from qwenbench.runfolder.files import copy_file, write_bytes, write_json, write_table
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.names import TEXTS, RunPaths, launch_folders
from qwenbench.simulator.uncertainty import uncertainty_of
from qwenbench.sweep.extension import changed_parts
from qwenbench.sweep.hardware import Hardware, find_hardware, versions_here
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.workload.profiles import find_profile


@dataclass(frozen=True)
class Samples:
    metrics: pa.Table
    nvml: pa.Table
    graph_steps: Sequence[GraphSteps] = ()
    """Steps by graph, where the server's log counts them."""
    problem: str | None = None


@dataclass(frozen=True)
class CellResult:
    point: Mapping[str, Any]
    """Its row of points.csv."""
    requests: pa.Table
    samples: Samples
    texts: Mapping[str, str]
    engine_dead: bool
    """The server stopped being healthy under this load: the point is not kept."""
    lost: Failure | None = None
    """Why the point is not kept although the server lives: a client process died, or the load was cut short."""
    silent_s: float | None = None
    """It gave no whole answer for so long, and afterwards none for a single token: the point is not kept either."""


class Recorder:
    """The only one that writes points of a run."""

    def __init__(self, paths: RunPaths, vary: Sequence[str]) -> None:
        self._paths = paths
        self._vary = tuple(vary)
        self._journal = Journal(paths.journal)
        self._entries = {entry.cell: entry for entry in self._journal.entries()}

    def is_done(self, cell: Cell) -> bool:
        return cell.cell_id in self._entries

    @property
    def points(self) -> list[Mapping[str, Any]]:
        """All finished points, oldest first."""
        return [entry.point for entry in self._entries.values()]

    def record(self, cell: Cell, result: CellResult) -> None:
        """Makes a cell finished. When this returns it survives a power cut; before, it never was."""
        mask = Masker.from_environment()  # a server may repeat a header of ours in what it says
        write_table(self._paths.cell_requests(cell.cell_id), _without_secrets(result.requests, mask))
        write_table(self._paths.metrics_samples(cell.config_id, cell.cell_id), result.samples.metrics)
        write_table(self._paths.nvml_samples(cell.config_id, cell.cell_id), result.samples.nvml)
        if result.texts:
            texts = {request: mask.known(text) for request, text in result.texts.items()}
            write_bytes(self._paths.cell_texts(cell.cell_id), orjson.dumps(texts), mode=0o600)
        entry = Entry(cell.cell_id, cell.config_id, cell.launch, masked(result.point, mask), time.time_ns())
        self._journal.append(entry)
        self._entries[cell.cell_id] = entry
        self.write_points()

    def adopt(self, shard: RunPaths, found: Entry, names: Mapping[str, str] = MappingProxyType({})) -> None:
        """Makes a cell that was finished in another run's folder finished here too; points.csv is left to the caller.

        `names`: configuration there -> here, where they differ. A cell that is finished here is passed over.
        """
        config_id = names.get(found.config, found.config)
        point = {**found.point, "config_id": config_id}
        cell = Cell.of_row(point)
        if self.is_done(cell):
            return
        theirs = shard.cell_files(found.config, found.cell)
        for source, target in zip(theirs, self._paths.cell_files(config_id, cell.cell_id), strict=True):
            if source.is_file():  # folders are shipped without their records too
                copy_file(source, target)
        entry = replace(found, cell=cell.cell_id, config=config_id, point=point)
        self._journal.append(entry)
        self._entries[entry.cell] = entry

    def take(self, entry: Entry, files: Mapping[str, bytes]) -> None:
        """Makes a cell finished that a node measured; `files` (path below the run -> contents) are on disk first."""
        for name, data in files.items():
            write_bytes(self._paths.root / name, data, mode=0o600 if name.endswith(TEXTS) else 0o666)
        self._journal.append(entry)
        self._entries[entry.cell] = entry
        self.write_points()

    def entries_of(self, config_id: str, launch: int) -> list[Entry]:
        """The finished cells of one launch."""
        return [one for one in self._entries.values() if (one.config, one.launch) == (config_id, launch)]

    def write_points(self) -> None:
        """Derives points.csv from the journal."""
        write_bytes(self._paths.points, points_csv(settle_load(self.points), self._vary))

    def write_summary(self) -> None:
        """Derives points_summary.csv from the points."""
        from qwenbench.analysis.statistics import requests_under, summary_rows

        if self._entries:
            summary = summary_rows(point_frame(self.points), requests_under(self._paths.root))
            write_bytes(self._paths.summary, summary.to_csv(index=False).encode())


def _without_secrets(requests: pa.Table, mask: Masker) -> pa.Table:
    """The server's own words (error_detail) masked; nothing else of a record is text from outside."""
    if "error_detail" not in requests.column_names or requests["error_detail"].null_count == len(requests):
        return requests
    details = [None if text is None else mask(text) for text in requests["error_detail"].to_pylist()]
    index = requests.column_names.index("error_detail")
    return requests.set_column(index, requests.schema.field(index), pa.array(details, pa.string()))


SCHEMA_VERSION = 1
SIMULATED_NOTICE = "SIMULATED: made by qwenbench's simulator, not measured on a GPU."


@dataclass(frozen=True)
class Site:
    """Where a run's servers are: how they are started, and on what hardware."""

    launcher: Launcher
    hardware: Hardware
    vllm_version: str | None = None
    """As a server without a log tells it (bench)."""

    @property
    def simulated(self) -> bool:
        """Whether every figure of the run is the simulator's."""
        return self.launcher.simulated


def find_site(options: SweepOptions) -> Site:
    """This machine, for servers that are started here. Raises UsageError, as `find_hardware` and `make_launcher` do."""
    assert options.launcher != "url", "bench attaches to its server"
    hardware = find_hardware(options)
    card = hardware.card.name if hardware.card and options.launcher == "sim" else None
    launcher = make_launcher(options.launcher, vllm_command=options.vllm_command, card=card, caches=options.caches)
    return Site(launcher, hardware)


def origin(plan: Plan, site: Site) -> dict[str, Any]:
    """Whether the run is simulated, in words too, and how far real figures lay from such simulated ones (None where
    the simulated card is not known)."""
    if not site.simulated:
        return {"simulated": False, "notice": None, "simulated_interval": None}
    card = site.hardware.card
    servers = [configuration.server for configuration in plan.configurations]
    told = uncertainty_of(card.name, model=servers[0].model).text() if card and servers else None
    return {"simulated": True, "notice": SIMULATED_NOTICE, "simulated_interval": told}


def describe(plan: Plan, run_id: str, site: Site, command_line: Sequence[str]) -> dict[str, Any]:
    """What is known when the run begins, without secrets."""
    masker = masker_of(plan.options)
    profiles = {point.profile for point in plan.points}
    hardware = site.hardware
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        **origin(plan, site),
        "command_line": [masker(word) for word in command_line],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "finished": None,
        "versions": {**versions_here(hardware), "vllm": site.vllm_version},
        "hardware": hardware.to_json(),
        "seed": plan.options.seed,
        "order": [point.point_id for point in plan.points],
        "scenarios": {
            name: {
                "sha256": loaded.file.sha256,
                "prompts_sha256": loaded.prompts_sha256,
                "text": loaded.file.text,
                "effective": loaded.file.scenario.model_dump(mode="json"),
            }
            for name, loaded in plan.scenarios.items()
        },
        "profiles": {name: find_profile(name).request_fields() for name in sorted(profiles)},
        "configurations": {
            c.config_id: {
                "flags": masked(c.server.flags, masker),
                "vary": masked(c.vary, masker),
                "utilization": c.utilization,
            }
            for c in plan.configurations
        },
        "options": masked(plan.options.model_dump(mode="json"), masker),
        "plan": plan.fingerprint(),
        "timings": None,
        "notes": [],
    }


def masker_of(options: SweepOptions) -> Masker:
    """Masks what the environment keeps secret, the variables that the options name among it."""
    return Masker.from_environment([*options.header_env.values(), options.bearer_env or ""])


_RESUMED_BY: dict[str, type] = {"run_id": str, "simulated": bool, "options": dict, "plan": dict, "versions": dict}
"""What run.json must hold for a run to go on."""


def begin(paths: RunPaths, description: Mapping[str, Any]) -> dict[str, Any]:
    """Writes run.json for a new run, or checks a resumed one against it and adds what its plan has more.

    Raises UsageError when the plan of a resumed run gives what was measured another meaning, with the parts that do.
    """
    if not paths.run_json.exists():
        write_json(paths.run_json, description)
        return dict(description)
    known = read_run_json(paths.run_json)
    if known.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{paths.root}: written with schema version {known.get('schema_version')}, this is {SCHEMA_VERSION}. "
            "Finish it with the qwenbench that began it."
        )
    missing = [name for name, kind in _RESUMED_BY.items() if not isinstance(known.get(name), kind)]
    if missing:
        raise UsageError(
            f"{paths.run_json}: {', '.join(missing)} cannot be read, so the run cannot go on. Restore the file, or "
            "start a new run."
        )
    if known["simulated"] != description["simulated"] and not _says_later(known, description):
        raise UsageError(f"--resume {paths.root}: simulated and measured points do not go into one run.")
    changed = changed_parts(known["plan"], description["plan"])
    if changed:
        raise UsageError(
            f"--resume {paths.root}: the plan has changed ({'; '.join(changed)}). A run can be given more repeats, "
            "loads, scenarios, profiles and configurations, but what was measured keeps its meaning: leave the other "
            "options out (they are kept in run.json), or start a new run."
        )
    if known["plan"] != description["plan"] or known["options"] != description["options"]:
        _extend(known, description)
        write_json(paths.run_json, known)
    return known


def _says_later(known: Mapping[str, Any], description: Mapping[str, Any]) -> bool:
    """Whether what this launcher starts says itself that it simulates, as it did when the run began."""
    launcher = description["options"]["launcher"]
    return known["simulated"] and launcher in ("process", "docker") and known["options"].get("launcher") == launcher


def _extend(known: dict[str, Any], description: Mapping[str, Any]) -> None:
    """Puts what the new plan adds into run.json, with the command that added it."""
    for name in ("options", "plan"):
        known[name] = description[name]
    for name in ("scenarios", "profiles", "configurations"):
        known[name] = {**description[name], **known[name]}
    known["order"] = list(dict.fromkeys((*known["order"], *description["order"])))
    added = {"command_line": description["command_line"], "started": description["started"]}
    known["extended"] = [*known.get("extended", ()), added]


def launches_of(paths: RunPaths) -> list[dict[str, Any]]:
    """Where and with what each launch was made, for run.json: read from the launches' own files, oldest first."""
    found: list[dict[str, Any]] = []
    for config, number, folder in launch_folders(paths):
        record = object_or_none(folder / "launch.json", "where it was launched is not known")
        if record is None:
            continue
        seen = record.get("machine") is not None  # of a server elsewhere only the client's host is known
        memory = object_or_none(folder / "memory.json", "its vLLM version is not known") or {}
        docker = mapping(mapping(record.get("server")).get("docker"))
        found.append(
            {
                "config_id": config,
                "launch": number,
                "started_ns": record.get("started_ns"),
                "node": record.get("host") if seen else None,
                "machine": record.get("machine"),
                "gpus": mapping(record.get("hardware")).get("gpus", []),
                "versions": {**mapping(record.get("versions")), "vllm": memory.get("vllm_version")},
                "image": docker.get("image") if record.get("launcher") == "docker" else None,
                "image_digest": record.get("image_digest"),
            }
        )
    return sorted(found, key=lambda launch: launch["started_ns"] or 0)


def keep_earlier_log(folder: Path) -> None:
    """A configuration is launched again: its earlier log stays beside the new one, its failure goes."""
    log = folder / "server.log"
    if log.exists():
        log.rename(folder / f"server.{time.strftime('%Y%m%d-%H%M%S')}.log")
    (folder / "failure.json").unlink(missing_ok=True)


def finish(paths: RunPaths, meta: dict[str, Any], **values: Any) -> None:
    """Adds what is known at the end."""
    meta.update(values)
    write_json(paths.run_json, meta)

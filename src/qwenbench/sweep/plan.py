"""The plan: server configurations x load points, as cells, read and checked before anything is started."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.sweep.configurations import base_server, configuration_hash, configurations, parser_note
from qwenbench.sweep.options import SweepOptions
from qwenbench.workload.arrivals import TraceRow, read_trace
from qwenbench.workload.planning import with_overrides
from qwenbench.workload.profiles import find_profile
from qwenbench.workload.prompts import Prompt, load_prompt_set
from qwenbench.workload.scenario import ScenarioFile, load_scenario, parse_lengths, synthetic_scenario

MEANING = {
    "seed", "requests", "duration_s", "input_tokens", "output_tokens", "ignore_eos", "prefix_reuse", "endpoint",
    "extra_body", "slo", "burstiness", "ramp_s", "timeout_s", "launcher", "card", "vllm_command",
}  # fmt: skip
"""Options that decide what a point means: with another value a run cannot go on."""
MEANING_WHERE_GIVEN = {"interfere", "client", "client_nodes"}
"""The same for later options: an older run, which lacks them, means their defaults."""


@dataclass(frozen=True)
class LoadedScenario:
    """A scenario with its prompts read, and the command line's overrides applied."""

    file: ScenarioFile
    prompts: tuple[Prompt, ...]
    prompts_sha256: str | None


@dataclass(frozen=True)
class Plan:
    """Everything that will be done, in order."""

    options: SweepOptions
    configurations: tuple[Configuration, ...]
    points: tuple[LoadPoint, ...]
    """In the order in which they are run, the same in each launch."""
    scenarios: Mapping[str, LoadedScenario]
    trace: tuple[TraceRow, ...] = ()
    notes: tuple[str, ...] = ()
    """What the user should know of how it was made."""

    def configuration(self, config_id: str) -> Configuration:
        return next(c for c in self.configurations if c.config_id == config_id)

    def launches(self) -> Iterator[tuple[Configuration, int]]:
        """Launches in order: every configuration once, then every one again, so that drift hits all alike."""
        for launch in range(1, self.options.relaunch_repeats + 1):
            for configuration in self.configurations:
                if not self.options.only or configuration.config_id in self.options.only:
                    yield configuration, launch

    def cells(self) -> list[Cell]:
        """All cells in the order in which they are run."""
        return [
            Cell(configuration.config_id, launch, point)
            for configuration, launch in self.launches()
            for point in self.points
        ]

    def fingerprint(self) -> dict[str, dict[str, str]]:
        """Part of the plan -> name -> hash of what it means. A resumed run must agree in every name that it has."""
        fixed = self.options.model_dump(mode="json", include=MEANING) | {"until_steady": self.options.until_steady}
        fixed |= self.options.model_dump(include=MEANING_WHERE_GIVEN, exclude_defaults=True)
        trace = [[row.start_s, row.input_tokens, row.output_tokens, *_told_by(row)] for row in self.trace]
        parts: dict[str, dict[str, Any]] = {
            "load options": fixed,
            "scenarios": {name: scenario.file.sha256 for name, scenario in self.scenarios.items()},
            "prompt sets": {name: scenario.prompts_sha256 for name, scenario in self.scenarios.items()},
            "trace": {"rows": trace},
        }
        hashed = {part: {name: _hash(value) for name, value in names.items()} for part, names in parts.items()}
        hashed["load points"] = {point.point_id: "" for point in self.points}
        hashed["configurations"] = {c.config_id: configuration_hash(c.server) for c in self.configurations}
        return hashed


def _told_by(row: TraceRow) -> list[Any]:
    """What a trace's row says beyond its time and lengths, for the fingerprint."""
    told = [row.session, row.think_s, list(row.messages), dict(row.fields), list(row.hash_ids)]
    return told if any(told) else []


def _hash(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()[:16]


def load_points(options: SweepOptions, scenarios: Mapping[str, LoadedScenario]) -> tuple[LoadPoint, ...]:
    """The load points in the order in which they are run: shuffled by the seed, or as listed."""
    levels: list[tuple[int | None, float | None]]
    if options.trace:
        levels = [(None, None)]
    elif options.rate:
        levels = [(None, rate) for rate in options.rate]
    else:
        levels = [(concurrency, None) for concurrency in options.concurrency]
    points = [
        LoadPoint(name, profile, concurrency, rate, repeat)
        for repeat in range(1, options.repeats + 1)
        for name, scenario in scenarios.items()
        for profile in options.profile or (scenario.file.scenario.profile,)
        for concurrency, rate in levels
    ]
    if options.order == "shuffled":
        order = np.random.default_rng([options.seed, len(points)]).permutation(len(points))
        points = [points[index] for index in order]
    return tuple(points)


def _scenario(name: str, options: SweepOptions) -> LoadedScenario:
    given_input = parse_lengths(options.input_tokens, "--input-tokens") if options.input_tokens else None
    given_output = parse_lengths(options.output_tokens, "--output-tokens") if options.output_tokens else None
    if name == "synthetic":
        if not options.trace and (given_input is None or given_output is None):
            raise UsageError("--scenario synthetic needs --input-tokens and --output-tokens, e.g. 512 and 64-256.")
        default = parse_lengths("256", "default")
        file = synthetic_scenario(given_input or default, given_output or default)
    else:
        file = load_scenario(name)
    scenario = with_overrides(
        file.scenario, input_tokens=given_input, output_tokens=given_output, requests=options.requests
    )
    overridden = ScenarioFile(scenario, file.path, file.text)
    if overridden.prompts_path is None:
        if scenario.input_tokens is None:
            raise UsageError(f"scenario {file.path}: give prompts (a JSONL file) or input_tokens for synthetic ones.")
        return LoadedScenario(overridden, (), None)
    prompts = load_prompt_set(overridden.prompts_path)
    return LoadedScenario(overridden, prompts.prompts, prompts.sha256)


def load_scenarios(options: SweepOptions) -> dict[str, LoadedScenario]:
    """The scenarios by name, in the order given. Raises UsageError for what cannot be used."""
    for profile in options.profile:
        find_profile(profile)
    loaded: dict[str, LoadedScenario] = {}
    for name in options.scenario:
        scenario = _scenario(name, options)
        key = scenario.file.scenario.name
        if key in loaded:
            raise UsageError(f"--scenario: {key!r} stands twice (names inside the files count).")
        loaded[key] = scenario
    return loaded


def make_plan(options: SweepOptions, known: Mapping[str, str] = MappingProxyType({})) -> Plan:
    """The whole plan of a sweep; `known`: see `configurations`. Raises UsageError; touches nothing."""
    built = configurations(options, base_server(options), known)
    names = [configuration.config_id for configuration in built]
    for name in options.only:
        if name not in names:
            raise UsageError(f"--only {name!r}: no configuration of this plan. It has {', '.join(names)}.")
    return _plan(options, built, parser_note(options))


def make_bench_plan(options: SweepOptions, server: ServerConfig) -> Plan:
    return _plan(options, (Configuration("server", server, {}, None),))


def _refuse_mixed_loads(options: SweepOptions) -> None:
    """Raises UsageError for load options of which one would silently not count."""
    if options.rate and options.trace:
        raise UsageError("--rate and --trace are two open loops: give one of them.")
    if (options.rate or options.trace) and "concurrency" in options.model_fields_set:
        given = "--rate" if options.rate else "--trace"
        raise UsageError(f"{given} is an open loop, --concurrency a closed one: give one of them.")
    if options.trace is None and (options.trace_unit is not None or options.speed != 1.0):
        given = "--trace-unit" if options.trace_unit is not None else "--speed"
        raise UsageError(f"{given} is about a trace: give --trace as well.")
    if not options.rate and (options.burstiness is not None or options.ramp_s > 0):
        given = "--burstiness" if options.burstiness is not None else "--ramp"
        raise UsageError(f"{given} shapes an open loop: give --rate as well.")


def _plan(options: SweepOptions, built: tuple[Configuration, ...], note: str | None = None) -> Plan:
    scenarios = load_scenarios(options)
    _refuse_mixed_loads(options)
    rows: tuple[TraceRow, ...] = ()
    notes = () if note is None else (note,)
    if options.trace:
        trace = read_trace(Path(options.trace), options.trace_unit, options.speed, options.duration_s)
        rows, notes = trace.rows, (trace.note, *notes)
    return Plan(options, built, load_points(options, scenarios), scenarios, rows, notes)

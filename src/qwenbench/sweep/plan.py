"""The plan: server configurations x load points, as cells, read and checked before anything is started."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.deployments import find_deployment
from qwenbench.errors import UsageError
from qwenbench.masking import refuse_secret_arguments
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.runfolder.names import unique_slug
from qwenbench.sweep.options import SweepOptions
from qwenbench.workload.arrivals import TraceRow, load_trace
from qwenbench.workload.lengths import parse_lengths
from qwenbench.workload.planning import with_overrides
from qwenbench.workload.profiles import find_profile
from qwenbench.workload.prompts import Prompt, load_prompt_set
from qwenbench.workload.scenario import ScenarioFile, load_scenario, synthetic_scenario

MEANING = {
    "seed", "requests", "duration_s", "input_tokens", "output_tokens", "ignore_eos", "prefix_reuse", "endpoint",
    "extra_body", "slo", "burstiness", "ramp_s", "timeout_s", "launcher", "card", "vllm_command",
}  # fmt: skip
"""Options that decide what a point means: with another value a run cannot go on."""


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

    def configuration(self, config_id: str) -> Configuration:
        """The configuration of that id."""
        return next(c for c in self.configurations if c.config_id == config_id)

    def launches(self) -> Iterator[tuple[Configuration, int]]:
        """Launches in order: every configuration once, then every one again, so that drift hits all alike."""
        for launch in range(1, self.options.relaunch_repeats + 1):
            for configuration in self.configurations:
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
        trace = [[row.start_s, row.input_tokens, row.output_tokens] for row in self.trace]
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


def configuration_hash(server: ServerConfig) -> str:
    """What decides whether two configurations are one, whatever their names."""
    return _hash([server.model, server.vllm_args(), server.docker.image, dict(server.env)])


def _hash(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value)).hexdigest()[:16]


def _number(value: float) -> str:
    return f"{value:g}"


def configurations(
    options: SweepOptions, base: ServerConfig, known: Mapping[str, str] = MappingProxyType({})
) -> tuple[Configuration, ...]:
    """The server configurations: capture x max-num-seqs x utilisation x every --vary flag.

    `known` holds the names that a resumed run gave them, by `configuration_hash`. `base` is the deployment with the
    command line's model, image and port. Raises UsageError when two of them come out the same.
    """
    captures: Sequence[int | None] = options.capture or (base.capture,)
    utilizations: Sequence[float | None] = options.gpu_memory_utilization or (base.gpu_memory_utilization,)
    built: list[Configuration] = []
    for capture in captures:
        for seqs in _max_num_seqs(options, capture, base):
            for utilization in utilizations:
                for values in itertools.product(*options.vary.values()):
                    varied = dict(zip(options.vary, values, strict=True))
                    built.append(_configuration(base, capture, seqs, utilization, varied, len(utilizations) > 1))
    built = [replace(c, config_id=known.get(configuration_hash(c.server), c.config_id)) for c in built]
    names = [configuration.config_id for configuration in built]
    if len(set(names)) != len(names):
        raise UsageError(f"two configurations have the same name: {', '.join(names)}. Give each value once.")
    return tuple(built)


def _max_num_seqs(options: SweepOptions, capture: int | None, base: ServerConfig) -> Sequence[int | None]:
    if options.max_num_seqs != "match":
        return options.max_num_seqs
    # without --capture nothing is swept here, so the deployment's own value holds
    return (capture if options.capture else base.max_num_seqs,)


def _configuration(
    base: ServerConfig,
    capture: int | None,
    seqs: int | None,
    utilization: float | None,
    varied: Mapping[str, str],
    name_utilization: bool,
) -> Configuration:
    server = base
    if capture is not None:
        server = server.with_flag("max-cudagraph-capture-size", str(capture))
    if seqs is not None:
        server = server.with_flag("max-num-seqs", str(seqs))
    if utilization is not None:
        server = server.with_flag("gpu-memory-utilization", _number(utilization))
    for name, value in varied.items():
        server = server.with_flag(name, value)
    parts = [f"cap{capture if capture is not None else 'default'}", f"seq{seqs if seqs is not None else 'default'}"]
    if name_utilization and utilization is not None:
        parts.append(f"util{_number(utilization)}")
    parts += [f"{name}-{value}" for name, value in varied.items()]
    name = unique_slug("-".join(parts))
    return Configuration(name, server, varied, utilization)


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
        for profile in _profiles(options, scenario)
        for concurrency, rate in levels
    ]
    if options.order == "shuffled":
        order = np.random.default_rng([options.seed, len(points)]).permutation(len(points))
        points = [points[index] for index in order]
    return tuple(points)


def _profiles(options: SweepOptions, scenario: LoadedScenario) -> tuple[str, ...]:
    return options.profile or (scenario.file.scenario.profile,)


OWN_OPTIONS = {
    "--max-cudagraph-capture-size": "--capture",
    "--max-num-seqs": "--max-num-seqs",
    "--gpu-memory-utilization": "--gpu-memory-utilization",
    "--served-model-name": "--served-model-name",
    "--port": "--port",
}
"""Flag of vLLM -> the sweep's own option for it. As a --vllm-arg it would win without anyone knowing."""


def base_server(options: SweepOptions) -> ServerConfig:
    """The deployment with the command line's model, image, port and extra arguments.

    Raises UsageError: unknown deployment, a secret given as an argument.
    """
    refuse_secret_arguments(options.vllm_arg, "--vllm-arg")
    for argument in options.vllm_arg:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in OWN_OPTIONS:
            raise UsageError(f"--vllm-arg {argument}: use {OWN_OPTIONS[flag]}, so that points say what was run.")
    refuse_secret_arguments(
        [f"--{flag}={value}" for flag, values in options.vary.items() for value in values], "--vary"
    )
    base = find_deployment(options.deployment)
    docker = base.docker
    if options.image is not None:
        docker = replace(docker, image=options.image)
    if options.cache_dir is not None:
        docker = replace(docker, cache_mount=f"{options.cache_dir}:/root/.cache")
    return replace(
        base,
        model=options.model or base.model,
        served_model_name=options.served_model_name or _served_name(options, base),
        port=options.port or base.port,
        extra_args=(*base.extra_args, *options.vllm_arg),
        docker=docker,
    )


def _served_name(options: SweepOptions, base: ServerConfig) -> str:
    if options.model is None or options.model == base.model:
        return base.served_model_name
    return options.model.rstrip("/").rsplit("/", 1)[-1]


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
    overridden = ScenarioFile(scenario, file.path, file.text, file.sha256)
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
    return _plan(options, configurations(options, base_server(options), known))


def make_bench_plan(options: SweepOptions, server: ServerConfig) -> Plan:
    """The plan of `bench`: one configuration, a server that runs already."""
    return _plan(options, (Configuration("server", server, {}, None),))


def _refuse_mixed_loads(options: SweepOptions) -> None:
    """Raises UsageError for load options of which one would silently not count."""
    if options.rate and options.trace:
        raise UsageError("--rate and --trace are two open loops: give one of them.")
    if (options.rate or options.trace) and "concurrency" in options.model_fields_set:
        given = "--rate" if options.rate else "--trace"
        raise UsageError(f"{given} is an open loop, --concurrency a closed one: give one of them.")
    if not options.rate and (options.burstiness is not None or options.ramp_s > 0):
        given = "--burstiness" if options.burstiness is not None else "--ramp"
        raise UsageError(f"{given} shapes an open loop: give --rate as well.")


def _plan(options: SweepOptions, built: tuple[Configuration, ...]) -> Plan:
    scenarios = load_scenarios(options)
    trace = tuple(load_trace(Path(options.trace))) if options.trace else ()
    _refuse_mixed_loads(options)
    points: tuple[LoadPoint, ...] = load_points(options, scenarios)
    return Plan(options, built, points, scenarios, trace)

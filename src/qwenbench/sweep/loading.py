"""From options to a plan: reads scenarios, prompt sets, traces and the deployment; checks what can be checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.deployments import find_deployment
from qwenbench.errors import UsageError
from qwenbench.masking import refuse_secret_arguments
from qwenbench.runfolder.cells import LoadPoint
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import LoadedScenario, Plan, configurations, load_points
from qwenbench.workload.arrivals import load_trace
from qwenbench.workload.lengths import parse_lengths
from qwenbench.workload.planning import with_overrides
from qwenbench.workload.profiles import find_profile
from qwenbench.workload.prompts import load_prompt_set
from qwenbench.workload.scenario import ScenarioFile, load_scenario, synthetic_scenario

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
    if options.profile not in (None, "all"):
        find_profile(str(options.profile))
    loaded: dict[str, LoadedScenario] = {}
    for name in options.scenario:
        scenario = _scenario(name, options)
        key = scenario.file.scenario.name
        if key in loaded:
            raise UsageError(f"--scenario: {key!r} stands twice (names inside the files count).")
        loaded[key] = scenario
    return loaded


def make_plan(options: SweepOptions) -> Plan:
    """The whole plan of a sweep. Raises UsageError; touches nothing."""
    return _plan(options, configurations(options, base_server(options)))


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

"""The server configurations of a sweep: the deployment, with the command line's values and every combination."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import orjson

from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.deployments import find_deployment
from qwenbench.errors import UsageError
from qwenbench.masking import refuse_secret_arguments
from qwenbench.runfolder.names import unique_slug
from qwenbench.sweep.model_files import model_type
from qwenbench.sweep.option_values import ENV, SET, SWEPT_FLAGS, UNSET
from qwenbench.sweep.options import SweepOptions

OWN_OPTIONS = {**SWEPT_FLAGS, "served-model-name": "--served-model-name", "port": "--port"}
"""Flag of vLLM -> the sweep's own option for it. As a --vllm-arg it would win without anyone knowing."""


def base_server(options: SweepOptions) -> ServerConfig:
    """The deployment with the command line's model, image, port and extra arguments.

    Raises UsageError: unknown deployment, a secret given as an argument.
    """
    refuse_secret_arguments(options.vllm_arg, "--vllm-arg")
    for argument in options.vllm_arg:
        flag = argument.partition("=")[0].replace("_", "-").removeprefix("--")
        if flag in OWN_OPTIONS and argument.startswith("--"):
            raise UsageError(f"--vllm-arg {argument}: use {OWN_OPTIONS[flag]}, so that points say what was run.")
    refuse_secret_arguments(
        [f"--{flag}={value}" for flag, values in options.vary.items() for value in values], "--vary"
    )
    refuse_secret_arguments([f"--{name.removeprefix(ENV)}" for name in options.vary if name.startswith(ENV)], "--vary")
    base = find_deployment(options.deployment)
    docker = base.docker
    if options.image is not None:
        docker = replace(docker, image=options.image)
    if options.cache_dir is not None:
        docker = replace(docker, cache_mount=f"{options.cache_dir}:/root/.cache")
    model = options.model or base.model
    if model.startswith(("/", ".", "~")) and (folder := Path(model).expanduser().absolute()).is_dir():
        model = os.path.normpath(folder)
        docker = replace(docker, model_mount=f"{model}:{model}:ro")  # a container sees it under the same name
    return replace(
        base,
        flags={name: value for name, value in base.flags.items() if name not in unfit_parsers(options, base)},
        model=model,
        served_model_name=options.served_model_name or _served_name(model, base),
        port=options.port or base.port,
        extra_args=(*base.extra_args, *options.vllm_arg),
        docker=docker,
    )


def _served_name(model: str, base: ServerConfig) -> str:
    return base.served_model_name if model == base.model else model.rstrip("/").rsplit("/", 1)[-1]


_PARSERS = ("reasoning-parser", "tool-call-parser")


def unfit_parsers(options: SweepOptions, base: ServerConfig) -> list[str]:
    """The deployment's parser flags that were made for another family of models than --model is of.

    A parser of the wrong family cuts answers apart. Known by its name (`qwen3` parses a model whose name or config's
    model_type says qwen).
    """
    if options.model is None or options.model == base.model:
        return []
    kind = f"{options.model} {model_type(options.model, base.docker.cache_mount) or ''}".lower()
    unfit = [name for name in _PARSERS if (value := base.flags.get(name)) and _family(value) not in kind]
    return [*unfit, "enable-auto-tool-choice"] if "tool-call-parser" in unfit else unfit


def _family(parser: str) -> str:
    """`qwen` of qwen3_coder."""
    match = re.match(r"[a-z]+", parser.lower())
    return match[0] if match else parser


def parser_note(options: SweepOptions) -> str | None:
    """What was left out of the deployment for the model's sake, for people; None when nothing was."""
    base = find_deployment(options.deployment)
    unfit = unfit_parsers(options, base)
    if not unfit:
        return None
    left_out = " ".join(f"--{name}" + (f" {base.flags[name]}" if base.flags[name] else "") for name in unfit)
    return (
        f"{options.model} does not look like a model of the family that the deployment {options.deployment} serves, so "
        f"{left_out} was left out. Give its own with --vllm-arg, e.g. --vllm-arg=--reasoning-parser=NAME."
    )


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
    base: ServerConfig, capture: int | None, seqs: int | None, utilization: float | None, varied: Mapping[str, str],
    name_utilization: bool,
) -> Configuration:  # fmt: skip
    server = base
    for flag, value in zip(SWEPT_FLAGS, (capture, seqs, utilization), strict=True):
        if value is not None:
            server = server.with_flag(flag, f"{value:g}" if isinstance(value, float) else str(value))
    for name, setting in varied.items():
        server = with_setting(server, name, setting)
    parts = [f"cap{capture if capture is not None else 'default'}", f"seq{seqs if seqs is not None else 'default'}"]
    parts += [f"util{utilization:g}"] if name_utilization and utilization is not None else []
    parts += [f"{name}-{setting}" for name, setting in varied.items()]
    return Configuration(unique_slug("-".join(parts)), server, varied, utilization)


def with_setting(server: ServerConfig, name: str, value: str) -> ServerConfig:
    """The server with one --vary value: a flag, a flag without value (`set`), none (`unset`), or `env.NAME`."""
    if name.startswith(ENV):
        variable = name.removeprefix(ENV)
        env = {key: kept for key, kept in server.env.items() if key != variable}
        return replace(server, env=env if value == UNSET else {**env, variable: value})
    if value == UNSET:
        return replace(server, flags={flag: kept for flag, kept in server.flags.items() if flag != name})
    return server.with_flag(name, None if value == SET else value)


def configuration_hash(server: ServerConfig) -> str:
    """What decides whether two configurations are one, whatever their names."""
    return hashlib.sha256(
        orjson.dumps([server.model, server.vllm_args(), server.docker.image, dict(server.env)])
    ).hexdigest()[:16]

"""`qwenbench plan`: what a configuration will hold, before any launch."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer

from qwenbench.capacity.cards import Card, find_card
from qwenbench.capacity.configuration import ConfigPlan, plan_config
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.settings import settings_of_config
from qwenbench.cli.runs import JsonOption, option, print_json
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.flags import SWITCHES, parse_flags
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import read_named_log
from qwenbench.errors import UsageError
from qwenbench.sweep.model_files import drafter_shape, find_shape, read_shape
from qwenbench.sweep.option_values import not_negative, parse_list

DEFAULT_MODEL = "ig1/Qwen3.5-9B-NVFP4"
MEMORY_FLAGS = {
    "max-cudagraph-capture-size", "cudagraph-capture-sizes", "compilation-config", "max-num-seqs",
    "max-num-batched-tokens", "max-model-len", "gpu-memory-utilization", "kv-cache-dtype", "dtype",
    "mamba-ssm-cache-dtype", "mamba-cache-mode", "block-size", "enforce-eager", "language-model-only",
    "limit-mm-per-prompt", "speculative-config", "tensor-parallel-size", "pipeline-parallel-size",
    "kv-cache-memory-bytes", "num-gpu-blocks-override", "enable-prefix-caching", "no-enable-prefix-caching",
}  # fmt: skip
"""vLLM's flags that the plan counts with, in any of vLLM's spellings."""
WHOLE_NUMBERS = frozenset({
    "max-num-seqs", "max-num-batched-tokens", "block-size", "tensor-parallel-size", "pipeline-parallel-size",
    "max-cudagraph-capture-size", "num-gpu-blocks-override",
})  # fmt: skip


def command(
    context: typer.Context,
    model: Annotated[
        str, option("The model: a name that is built in or in the model cache, or its folder.")
    ] = DEFAULT_MODEL,
    model_config: Annotated[
        Path | None, option("The model's config.json or folder, for any other model.", metavar="PATH")
    ] = None,
    card: Annotated[str | None, option("rtx-5090, rtx-4090, l4, h100, h200, ...")] = None,
    vram_mib: Annotated[float | None, option("CUDA's total in MiB, for a card that is not known here.")] = None,
    platform: Annotated[str, option("linux or wsl: CUDA's totals differ.")] = "linux",
    capture: Annotated[
        str | None, option("--max-cudagraph-capture-size, one or several (vLLM's default when unset).", metavar="N,..")
    ] = None,
    max_num_seqs: Annotated[
        int | None, option("--max-num-seqs (the capture size when unset, as the model card advises).", min=1)
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, option("Share of the card's memory (vLLM's default when unset).")
    ] = None,
    vllm: Annotated[str, option("The vLLM version.")] = "0.18.0",
    probe: Annotated[
        Path | None, option("A start-up log of this model that calibrates the plan.", metavar="LOG")
    ] = None,
    probe_card: Annotated[str | None, option("The card that the probe ran on, if another.")] = None,
    probe_platform: Annotated[str | None, option("The probe's platform, if another.")] = None,
    request: Annotated[
        int | None, option("Tokens of one request (prompt and output), for requests_that_fit.", "--context", min=1)
    ] = None,
    prompt: Annotated[
        int | None, option("Tokens of a prompt: what a capture above it gives, and costs in KV.", min=1)
    ] = None,
    max_model_len: Annotated[str | None, option("--max-model-len (auto when unset).", metavar="N")] = None,
    kv_cache_dtype: Annotated[str, option("--kv-cache-dtype.")] = "auto",
    prefix_caching: Annotated[
        bool | None,
        option(
            "A hybrid then holds more state blocks a request at most (unset: on from vLLM 0.28).",
            "--prefix-caching/--no-prefix-caching",
        ),
    ] = None,
    graph_estimate: Annotated[
        bool, option("Whether vLLM takes its graph estimate off the KV cache (the default from 0.21 on).")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Weights, graphs, KV cache, tokens and requests that a configuration will hold on a card, with an interval.

    vLLM's other flags that change memory are taken as vLLM takes them (-tp 2, --limit-mm-per-prompt.video 0):
    --enforce-eager, --language-model-only, --limit-mm-per-prompt, --speculative-config, --max-num-batched-tokens,
    --kv-cache-memory-bytes, --num-gpu-blocks-override, --block-size, --dtype, --mamba-ssm-cache-dtype,
    --mamba-cache-mode, --tensor-parallel-size and --pipeline-parallel-size (figures are then one card's).
    """
    flags: dict[str, str | None] = {"max-model-len": max_model_len or "auto", "kv-cache-dtype": kv_cache_dtype}
    if max_num_seqs is not None:
        flags["max-num-seqs"] = str(max_num_seqs)
    if gpu_memory_utilization is not None:
        flags["gpu-memory-utilization"] = f"{gpu_memory_utilization:g}"
    flags |= _further_flags(context.args)
    if prefix_caching is not None:
        flags["enable-prefix-caching" if prefix_caching else "no-enable-prefix-caching"] = None
    env = {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "1" if graph_estimate else "0"}
    found = find_card(card) if card is not None else None
    if found is None and vram_mib is None:
        raise UsageError("give the card with --card NAME, or its CUDA total with --vram-mib")
    log, shape = _probe(probe), _shape(model, model_config)
    probe_total = _probe_total(probe_card, probe_platform, found, platform) if log else None
    plans = []
    sizes = [None] if capture is None else parse_list(capture, "--capture", int, not_negative)
    for size in sizes:
        config = _config(model, flags, env, size)
        plan = plan_config(
            config,
            shape,
            version=vllm,
            card=found,
            platform=platform,
            cuda_total_gib=None if vram_mib is None else vram_mib / 1024,
            probe=log,
            probe_cuda_total_gib=probe_total,
            request_tokens=request,
            drafter_shape=drafter_shape(settings_of_config(config).drafter),
        )
        plans.append((size, plan))
    _show(plans, prompt, as_json)


def _further_flags(arguments: list[str]) -> dict[str, str | None]:
    """What typer left over: vLLM's flags by other spellings. Raises UsageError for what the plan does not know."""
    flags = parse_flags(arguments)
    unknown = sorted(name for name in flags if name not in MEMORY_FLAGS)
    values = " ".join(value or "" for value in flags.values())
    stray = [word for word in arguments if not word.startswith("-") and word not in values]
    if unknown:
        near = difflib.get_close_matches(unknown[0], MEMORY_FLAGS, n=1)
        hint = f"did you mean --{near[0]}?" if near else "leave it out: it changes no figure of the plan"
        raise UsageError(f"no such option: --{unknown[0]}; {hint}")
    if stray:
        raise UsageError(f"unexpected argument {stray[0]!r}")
    for name, value in flags.items():
        if name in WHOLE_NUMBERS and not (value or "").isdigit():
            raise UsageError(f"--{name} {value or ''}: give a whole number")
        if value is None and name not in SWITCHES:
            raise UsageError(f"--{name} needs a value")
    return flags


def _config(model: str, flags: dict[str, str | None], env: dict[str, str], capture: int | None) -> ServerConfig:
    own = dict(flags)
    if capture is not None:
        own.setdefault("max-cudagraph-capture-size", str(capture))
        if capture:
            own.setdefault("max-num-seqs", str(capture))
        else:
            own["enforce-eager"] = None
    return ServerConfig(model=model, flags=own, env=env)


def _shape(model: str, path: Path | None) -> ModelShape:
    if path is not None:
        # another model's weights would be charged under the default's name
        return read_shape(path, model if model != DEFAULT_MODEL else str(path))
    found = find_shape(model)
    if found is None:
        raise UsageError(f"--model {model}: not built in and not in the model cache; give --model-config config.json")
    return found


def _probe(path: Path | None) -> StartupLog | None:
    if path is None:
        return None
    log = read_named_log(path, "--probe")
    if not log.recognised:
        raise UsageError(f"--probe {path}: no start-up line of vLLM in it")
    return log


def _probe_total(name: str | None, platform: str | None, card: Card | None, target_platform: str) -> float | None:
    if name is None and platform is None:
        return None
    found = find_card(name) if name is not None else card
    if found is None:
        raise UsageError("--probe-platform needs --probe-card or --card")
    return found.cuda_gib(platform or target_platform)


def _show(plans: list[tuple[int | None, ConfigPlan]], prompt: int | None, as_json: bool) -> None:
    if as_json:
        for capture, plan in plans:
            if plan.cannot_start is not None:
                which = "this configuration" if len(plans) == 1 else f"capture {capture}"
                print(f"qwenbench plan: {which} cannot start: {plan.cannot_start}", file=sys.stderr)
        rows = [(capture, plan.prediction.to_json()) for capture, plan in plans if plan.prediction is not None]
        answer = rows[0][1] if len(rows) == 1 else {"plans": [{"capture": size, **row} for size, row in rows]}
        print_json(answer)
        return
    from qwenbench.report.memory import plan_document, plans_document
    from qwenbench.report.text_writers import print_document

    print_document(plan_document(plans[0][1], prompt) if len(plans) == 1 else plans_document(plans, prompt))

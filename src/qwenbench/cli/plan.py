"""`qwenbench plan`: what a configuration will hold, before any launch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.capacity.cards import Card
    from qwenbench.capacity.configuration import ConfigPlan
    from qwenbench.capacity.model_shape import ModelShape
    from qwenbench.engine.startup_log import StartupLog


def command(
    model: Annotated[str, typer.Option(help="The model; the seed's is built in.")] = "ig1/Qwen3.5-9B-NVFP4",
    model_config: Annotated[
        Path | None, typer.Option(help="The model's config.json, for any other model.", metavar="FILE")
    ] = None,
    card: Annotated[str | None, typer.Option(help="rtx-5090, rtx-4090, l4, h100, h200, ...")] = None,
    vram_mib: Annotated[
        float | None, typer.Option(help="CUDA's total in MiB, for a card that is not known here.")
    ] = None,
    platform: Annotated[str, typer.Option(help="linux or wsl: CUDA's totals differ.")] = "linux",
    capture: Annotated[
        int | None, typer.Option(help="--max-cudagraph-capture-size (vLLM's default when unset).", min=0)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="--max-num-seqs (the capture size when unset, as the seed advises).", min=1)
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of the card's memory (vLLM's default when unset).")
    ] = None,
    vllm: Annotated[str, typer.Option(help="The vLLM version.")] = "0.18.0",
    probe: Annotated[
        Path | None, typer.Option(help="A start-up log of this model that calibrates the plan.", metavar="LOG")
    ] = None,
    probe_card: Annotated[str | None, typer.Option(help="The card that the probe ran on, if another.")] = None,
    probe_platform: Annotated[str | None, typer.Option(help="The probe's platform, if another.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens of one request (prompt and output), for requests_that_fit.", min=1)
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="--max-model-len (auto when unset).", min=1)] = None,
    kv_cache_dtype: Annotated[str, typer.Option(help="--kv-cache-dtype.")] = "auto",
    prefix_caching: Annotated[
        bool | None,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            help="It doubles a hybrid's state blocks (unset: on from vLLM 0.28).",
        ),
    ] = None,
    graph_estimate: Annotated[
        bool, typer.Option(help="Whether vLLM takes its graph estimate off the KV cache (the default from 0.20 on).")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Weights, graphs, KV cache, tokens and requests that a configuration will hold on a card, with an interval."""
    from qwenbench.capacity.cards import find_card
    from qwenbench.capacity.configuration import plan_config
    from qwenbench.engine.config import ServerConfig

    found = find_card(card) if card is not None else None
    total = vram_mib / 1024 if vram_mib is not None else (found.cuda_gib(platform) if found else None)
    if total is None:
        raise UsageError("give the card with --card NAME, or its CUDA total with --vram-mib")
    flags: dict[str, str | None] = {
        "max-cudagraph-capture-size": _text(capture),
        "max-num-seqs": _text(max_num_seqs if max_num_seqs is not None else capture or None),
        "gpu-memory-utilization": _text(gpu_memory_utilization),
        "max-model-len": _text(max_model_len) or "auto",
        "kv-cache-dtype": kv_cache_dtype,
    }
    flags = {name: value for name, value in flags.items() if value is not None}
    if prefix_caching is not None:
        flags["enable-prefix-caching" if prefix_caching else "no-enable-prefix-caching"] = None
    if capture == 0:
        flags["enforce-eager"] = None
    env = {"VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS": "1" if graph_estimate else "0"}
    log = _probe(probe)
    plan = plan_config(
        ServerConfig(model=model, flags=flags, env=env),
        _shape(model, model_config),
        version=vllm,
        card=found,
        platform=platform,
        cuda_total_gib=total,
        probe=log,
        probe_cuda_total_gib=_probe_total(probe_card, probe_platform, found, platform) if log else None,
        request_tokens=context,
    )
    _show(plan, as_json)


def _text(value: float | None) -> str | None:
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shape(model: str, path: Path | None) -> ModelShape:
    from qwenbench.capacity.known_models import known_shape
    from qwenbench.capacity.model_shape import ModelShape
    from qwenbench.cli.ledger import read_json

    if path is not None:
        return ModelShape.from_hf_config(read_json(path, "--model-config"), model)
    built_in = known_shape(model)
    if built_in is None:
        raise UsageError(f"--model {model}: only the seed's model is built in; give --model-config config.json")
    return built_in


def _probe(path: Path | None) -> StartupLog | None:
    if path is None:
        return None
    from qwenbench.engine.startup_log import parse_startup_log

    try:
        log = parse_startup_log(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UsageError(f"--probe {path}: {error.strerror or error}") from None
    if not log.recognised:
        raise UsageError(f"--probe {path}: no start-up line of vLLM in it")
    return log


def _probe_total(name: str | None, platform: str | None, card: Card | None, target_platform: str) -> float | None:
    from qwenbench.capacity.cards import find_card

    if name is None and platform is None:
        return None
    found = find_card(name) if name is not None else card
    if found is None:
        raise UsageError("--probe-platform needs --probe-card or --card")
    return found.cuda_gib(platform or target_platform)


def _show(plan: ConfigPlan, as_json: bool) -> None:
    prediction = plan.prediction
    assert prediction is not None
    if plan.cannot_start is not None:
        print(f"qwenbench plan: this configuration cannot start: {plan.cannot_start}", file=sys.stderr)
    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps(prediction.to_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
        return
    from rich.console import Console
    from rich.table import Table

    def gib(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f} GiB"

    def count(value: int | None) -> str:
        return "-" if value is None else f"{value:,}"

    table = Table(title="Plan (predicted, nothing was launched)", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("weights", gib(prediction.weights_gib), "")
    table.add_row("graphs", gib(prediction.graphs_gib), "vLLM's estimate")
    low, high = gib(prediction.kv_cache_gib_low), gib(prediction.kv_cache_gib_high)
    table.add_row("KV cache", gib(prediction.kv_cache_gib), f"{low} to {high}")
    table.add_row("KV blocks", count(prediction.kv_cache_blocks), f"of {plan.layout.block_tokens} tokens")
    table.add_row("KV tokens", count(prediction.kv_cache_tokens), "longest single request")
    table.add_row("KV tokens, printed", count(prediction.kv_cache_tokens_printed), "what that version's log would say")
    table.add_row("requests that fit", count(prediction.requests_that_fit), "needs --context")
    table.add_row("risk", prediction.risk, "")
    console = Console()
    console.print(table)
    console.print(f"basis: {prediction.basis}", markup=False, highlight=False)

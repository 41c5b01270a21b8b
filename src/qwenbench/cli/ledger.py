"""`qwenbench ledger`: read a vLLM start-up log that is already there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbench.errors import UsageError

if TYPE_CHECKING:
    from qwenbench.capacity.kv import KvLayout
    from qwenbench.engine.startup_log import StartupLog
    from qwenbench.observe.ledger import MemoryLedger
    from qwenbench.observe.vram import VramPhases


def command(
    log: Annotated[Path, typer.Argument(help="A vLLM server's output; it may still be growing.", metavar="LOG")],
    metrics: Annotated[
        Path | None, typer.Option(help="A saved answer of GET /metrics: the number of blocks.", metavar="FILE")
    ] = None,
    nvml: Annotated[
        Path | None,
        typer.Option(
            help="VRAM over the server's life: a samples .nvml.parquet, or JSON rows [seconds, used bytes].",
            metavar="FILE",
        ),
    ] = None,
    model_config: Annotated[
        Path | None,
        typer.Option(help="The model's config.json; the seed's model is built in.", metavar="FILE"),
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="The card it ran on, for the budget (utilisation x CUDA's total).")
    ] = None,
    platform: Annotated[str, typer.Option(help="linux or wsl: CUDA's totals differ.")] = "linux",
    vram_mib: Annotated[
        float | None, typer.Option(help="CUDA's total of that card in MiB, where it is not known here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """What a configuration really holds: weights, graphs, KV cache, tokens, and what is left over."""
    from qwenbench.engine.startup_log import parse_startup_log
    from qwenbench.observe.ledger import build_ledger

    startup = parse_startup_log(_read_text(log, "LOG"))
    labels = _cache_config(metrics)
    ledger = build_ledger(
        startup,
        vram=_phases(nvml, startup),
        cache_config=labels,
        layout=_layout(model_config, startup, labels),
        cuda_total_gib=_cuda_total_gib(card, platform, vram_mib),
    )
    if as_json:
        import orjson

        sys.stdout.write(orjson.dumps(ledger.to_json(), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _print_table(ledger)
    if not startup.recognised:
        print(
            f"qwenbench ledger: {log} holds no start-up line of vLLM: all values are empty. Give the server's own "
            "output (docker logs NAME, or servers/CONFIG/server.log of a run).",
            file=sys.stderr,
        )
        raise typer.Exit(2)
    if not startup.ready:
        print(f"qwenbench ledger: {log} ends before the server was ready: some values are missing.", file=sys.stderr)


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror or error}") from None


def read_json(path: Path, option: str) -> Any:
    """A JSON file of an option. Raises UsageError naming option, file and place."""
    import orjson

    try:
        return orjson.loads(_read_text(path, option))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{option} {path}: no JSON ({error})") from None


def _cache_config(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    from qwenbench.observe.metrics import parse_metrics

    try:
        labels = dict(parse_metrics(_read_text(path, "--metrics")).cache_config)
    except ValueError as error:
        raise UsageError(f"--metrics {path}: no Prometheus text ({error})") from None
    if not labels:
        raise UsageError(f"--metrics {path}: no vllm:cache_config_info in it; save GET /metrics of a vLLM server")
    return labels


def _phases(path: Path | None, startup: StartupLog) -> VramPhases:
    from qwenbench.observe.vram import VramPhases, vram_phases

    if path is None:
        return VramPhases()
    return vram_phases(_samples(path), kv_cache_gib=startup.kv_cache_gib, kv_to_ready_s=startup.kv_to_ready_s)


def _samples(path: Path) -> list[tuple[float, float]]:
    """(seconds, used MiB) of the card that was used most."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path, columns=["t_ns", "gpu", "used_mib"]).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"--nvml {path}: no NVML samples ({error})") from None
        rows = [row for row in rows if row["used_mib"] is not None]
        if not rows:
            return []
        busiest = max(rows, key=lambda row: row["used_mib"])["gpu"]
        return [(row["t_ns"] / 1e9, row["used_mib"]) for row in rows if row["gpu"] == busiest]
    rows = read_json(path, "--nvml")
    try:
        return [(float(row[0]), float(row[1]) / 2**20) for row in rows]
    except (TypeError, ValueError, IndexError, KeyError):
        raise UsageError(f"--nvml {path}: rows must be [seconds, used bytes, ...]") from None


def _layout(path: Path | None, startup: StartupLog, labels: dict[str, str]) -> KvLayout | None:
    from qwenbench.capacity.configuration import layout_of_server
    from qwenbench.capacity.known_models import known_shape
    from qwenbench.capacity.model_shape import ModelShape

    if path is not None:
        shape = ModelShape.from_hf_config(read_json(path, "--model-config"), str(path))
        return layout_of_server(shape, startup, labels)
    built_in = known_shape(str(startup.requested.get("model", "")))
    return layout_of_server(built_in, startup, labels) if built_in is not None else None


def _cuda_total_gib(card: str | None, platform: str, vram_mib: float | None) -> float | None:
    from qwenbench.capacity.cards import find_card

    if vram_mib is not None:
        return vram_mib / 1024
    return find_card(card).cuda_gib(platform) if card is not None else None


def _print_table(ledger: MemoryLedger) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Memory ledger, vLLM {ledger.startup.vllm_version or '?'}", title_justify="left", show_header=False
    )
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for label, value, note in _rows(ledger):
        table.add_row(label, value, note)
    console = Console()
    console.print(table)
    for warning in ledger.startup.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False)


def _rows(ledger: MemoryLedger) -> list[tuple[str, str, str]]:
    startup, vram = ledger.startup, ledger.vram
    asked = startup.requested
    workers = ", ".join(
        f"{worker.name} {worker.kv_cache_gib:g}" for worker in startup.workers if worker.kv_cache_gib is not None
    )
    over = ledger.vram_over_budget_mib
    return [
        ("budget", _gib(ledger.budget_gib), _budget_note(ledger, asked.get("gpu_memory_utilization"))),
        ("weights", _gib(startup.weights_gib), ""),
        ("activations", _gib(startup.activations_gib), "in the rest where vLLM does not print them"),
        ("graphs, estimated", _gib(startup.graphs_estimated_gib), _applied(startup.graphs_estimate_applied)),
        ("graphs, actual", _gib(startup.graphs_actual_gib), ""),
        ("KV cache", _gib(startup.kv_cache_gib), f"per worker: {workers}" if len(startup.workers) > 1 else ""),
        ("rest", _gib(ledger.rest_gib), "budget - the parts: CUDA context, libraries, activations"),
        ("KV blocks", _number(ledger.kv_cache_blocks), f"of {_number(ledger.attention_block_tokens)} tokens"),
        ("KV tokens", _number(ledger.kv_cache_tokens), "longest single request (this project's definition)"),
        ("KV tokens, printed", _number(startup.kv_cache_tokens_logged), startup.kv_cache_tokens_formula or ""),
        ("concurrency, printed", _number(startup.max_concurrency_logged), "at max_model_len"),
        (
            "capture size",
            f"{_number(startup.capture_effective)} / {_number(startup.capture_effective_full)}",
            f"PIECEWISE / FULL, requested {_number(asked.get('max_cudagraph_capture_size'))}",
        ),
        (
            "max_model_len",
            _number(startup.max_model_len_effective),
            f"requested {'auto' if asked.get('max_model_len') == -1 else _number(asked.get('max_model_len'))}",
        ),
        (
            "batched tokens",
            _number(startup.max_num_batched_tokens),
            f"requested {_number(asked.get('max_num_batched_tokens'))}",
        ),
        ("max_num_seqs", "-", f"requested {_number(asked.get('max_num_seqs'))}; vLLM does not print it"),
        ("KV dtype", startup.kv_cache_dtype or "-", f"requested {_number(asked.get('kv_cache_dtype'))}"),
        (
            "prefix caching",
            _number(startup.enable_prefix_caching),
            f"requested {_number(asked.get('enable_prefix_caching'))}",
        ),
        ("attention", startup.attention_backend or "-", ""),
        ("quantisation", startup.quantization_backend or "-", ""),
        (
            "compile / profile / capture / init",
            " / ".join(map(_number, (startup.compile_s, startup.profile_s, startup.capture_s, startup.init_s))),
            "s",
        ),
        (
            "VRAM before / ready / peak / after",
            " / ".join(
                "-" if value is None else f"{value:,.0f}"
                for value in (
                    vram.before_mib, vram.ready_mib, vram.peak_mib, vram.after_mib
                )
            ),
            "MiB, NVML",
        ),
        ("NVML at ready - the parts", _mib(ledger.nvml_minus_parts_mib), "CUDA context, libraries, allocator cache"),
        ("VRAM peak over budget", _mib(over), "a risk, no proof: PyTorch can give cached memory back" if over else ""),
    ]  # fmt: skip


def _budget_note(ledger: MemoryLedger, utilization: Any) -> str:
    note = f"requested utilisation {_number(utilization)} x CUDA's total"
    return note if ledger.budget_gib is not None else f"{note}: give --card"


def _applied(applied: bool | None) -> str:
    return {True: "taken off the KV cache", False: "not taken off the KV cache", None: ""}[applied]


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} GiB"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:+,.0f} MiB"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)

"""`qwenbench ledger`: read vLLM start-up logs that are already there."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwenbench.capacity.cards import find_card
from qwenbench.capacity.configuration import layout_of_server
from qwenbench.capacity.kv import KvLayout
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.cli.runs import JsonOption, option, print_json
from qwenbench.engine.startup_log_reader import read_named_log
from qwenbench.errors import UsageError
from qwenbench.input_files import MIB, check_input, read_input, read_json
from qwenbench.report.text_writers import print_document
from qwenbench.sweep.model_files import read_shape, served_layout, shape_of_server

if TYPE_CHECKING:
    from qwenbench.observe.ledger import MemoryLedger

METRICS_BYTES = 64 * MIB
SAMPLES_BYTES = 256 * MIB
MOST_SAMPLES = 2_000_000
"""Ten a second for two days."""


def command(
    logs: Annotated[
        list[Path],
        typer.Argument(
            help="A vLLM server's output, which may still be growing; several make a table; or a run's folder.",
            metavar="LOG...",
        ),
    ],
    metrics: Annotated[
        Path | None, option("A saved answer of GET /metrics: the number of blocks.", metavar="FILE")
    ] = None,
    nvml: Annotated[
        Path | None,
        option(
            "VRAM over the server's life: a samples .nvml.parquet, or JSON rows [seconds, used bytes].", metavar="FILE"
        ),
    ] = None,
    model_config: Annotated[
        Path | None,
        option(
            "The model's folder or config.json; what owners run is built in, and the model cache is looked into.",
            metavar="PATH",
        ),
    ] = None,
    card: Annotated[str | None, option("The card it ran on, for the budget (utilisation x CUDA's total).")] = None,
    platform: Annotated[str, option("linux or wsl: CUDA's totals differ.")] = "linux",
    vram_mib: Annotated[float | None, option("CUDA's total of that card in MiB, where it is not known here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a configuration really holds: weights, graphs, KV cache, tokens, and what is left over."""
    from qwenbench.observe.ledger import compare_starts, questions
    from qwenbench.report.memory import ledger_document, ledgers_document

    servers = [server for path in logs for server in _servers(path)]
    if len(servers) > 1 and (metrics or nvml):
        raise UsageError("--metrics and --nvml belong to one log: give one LOG with them")
    shape = None if model_config is None else read_shape(model_config, str(model_config))
    total = vram_mib / 1024 if vram_mib is not None else find_card(card).cuda_gib(platform) if card else None
    ledgers = [(name, _ledger(log, kept, metrics, nvml, shape, total)) for name, log, kept in servers]
    doubts = [(name, questions(ledger, card_total_gib=total, card=card)) for name, ledger in ledgers]
    asked = [f"{name}: {question}" for name, found in doubts for question in found]
    if as_json:
        every = [{"server": name, **ledger.to_json()} for name, ledger in ledgers]
        print_json(ledgers[0][1].to_json() if len(ledgers) == 1 else {"ledgers": every})
        _note(*asked)
    elif len(ledgers) == 1:
        print_document(ledger_document(ledgers[0][1], doubts[0][1]))
    else:
        print_document(ledgers_document(ledgers, [*asked, *compare_starts(ledgers)]))
    for name, ledger in ledgers:
        if not ledger.startup.recognised:
            _note(
                f"{name} holds no start-up line of vLLM: all values are empty. Give the server's own output (docker "
                "logs NAME, or servers/CONFIG/server.log of a run)."
            )
        elif not ledger.startup.ready:
            _note(f"{name} ends before the server was ready: some values are missing.")
    if not any(ledger.startup.recognised for _, ledger in ledgers):
        raise typer.Exit(2)


def _note(*lines: str) -> None:
    for line in lines:
        print(f"qwenbench ledger: {line}", file=sys.stderr)


def _servers(path: Path) -> list[tuple[str, Path, dict[str, Any]]]:
    """(name, log, kept memory.json) of a log, a configuration's folder or a run's folder."""
    if not path.is_dir():
        return [(str(path), path, {})]
    if (path / "server.log").is_file():
        return [(path.name, path / "server.log", _kept(path))]
    found = sorted((path / "servers").glob("*/server.log"))
    if not found:
        raise UsageError(f"LOG {path}: neither a run's folder (servers/*/server.log) nor a log")
    return [(log.parent.name, log, _kept(log.parent)) for log in found]


def _kept(folder: Path) -> dict[str, Any]:
    """What the sweep wrote into memory.json; empty where it wrote none."""
    path = folder / "memory.json"
    if not path.is_file():
        return {}
    data = read_json(path, "memory.json", SAMPLES_BYTES)
    return data if isinstance(data, dict) else {}


def _ledger(
    log: Path, kept: dict[str, Any], metrics: Path | None, nvml: Path | None, shape: ModelShape | None,
    total: float | None,
) -> MemoryLedger:  # fmt: skip
    from qwenbench.observe.ledger import build_ledger
    from qwenbench.observe.nvml import VramPhases, vram_phases

    startup = read_named_log(log, "LOG")
    labels, blocks = _cache_config(metrics), kept.get("kv_cache_blocks")
    if blocks is not None and not labels:
        labels = {"num_gpu_blocks": str(blocks)}
    if nvml is not None:
        kv, seconds = startup.kv_cache_gib, startup.kv_to_ready_s
        vram = vram_phases(_samples(nvml), kv_cache_gib=kv, kv_to_ready_s=seconds)
    else:
        names = ("before_mib", "ready_mib", "peak_mib", "after_mib")
        vram = VramPhases(**{name: kept.get(f"vram_{name}") for name in names})
    if shape is not None:
        layout: KvLayout | None = layout_of_server(shape, startup, labels)
    else:
        layout = served_layout(shape_of_server(startup), startup, labels)
    ledger = build_ledger(startup, vram=vram, cache_config=labels, layout=layout, cuda_total_gib=total)
    if kept and total is None and ledger.budget_gib is None:
        ledger = replace(ledger, budget_gib=kept.get("budget_gib"), rest_gib=kept.get("rest_gib"))
    return ledger


def _read_text(path: Path, option: str, most_bytes: int) -> str:
    return read_input(path, option, most_bytes).decode("utf-8", errors="replace")


def _cache_config(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    from qwenbench.observe.metrics import parse_metrics

    try:
        labels = dict(parse_metrics(_read_text(path, "--metrics", METRICS_BYTES)).cache_config)
    except ValueError as error:
        raise UsageError(f"--metrics {path}: no Prometheus text ({error})") from None
    if not labels:
        raise UsageError(f"--metrics {path}: no vllm:cache_config_info in it; save GET /metrics of a vLLM server")
    return labels


def _samples(path: Path) -> list[tuple[float, float]]:
    """(seconds, used MiB) of the card that was used most."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_input(path, "--nvml", SAMPLES_BYTES)
        try:
            if pq.read_metadata(path).num_rows > MOST_SAMPLES:
                raise UsageError(f"--nvml {path}: holds more than {MOST_SAMPLES:,} rows.")
            columns = pq.read_table(path, columns=["t_ns", "gpu", "used_mib"]).to_pydict().values()
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"--nvml {path}: no NVML samples ({error})") from None
        rows = [row for row in zip(*columns, strict=True) if row[2] is not None]
        if not rows:
            return []
        busiest = max(rows, key=lambda row: row[2])[1]
        return [(t_ns / 1e9, used) for t_ns, gpu, used in rows if gpu == busiest]
    rows = read_json(path, "--nvml", SAMPLES_BYTES)
    try:
        return [(float(row[0]), float(row[1]) / 2**20) for row in rows]
    except (TypeError, ValueError, IndexError, KeyError):
        raise UsageError(f"--nvml {path}: rows must be [seconds, used bytes, ...]") from None

"""From a run's folder to the report's document."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import pandas as pd

from qwenbench.analysis.columns import METRICS, Column
from qwenbench.capacity.cards import find_card
from qwenbench.errors import UsageError
from qwenbench.report.document import ConfigView, Document, Metric
from qwenbench.report.points import known, point_views, read_summary
from qwenbench.report.prices import price_views
from qwenbench.report.timeline import timelines
from qwenbench.runfolder.names import RunPaths
from qwenbench.runfolder.run import Run

_ACRONYMS = {"ttft": "TTFT", "ttfo": "TTFO", "tpot": "TPOT", "itl": "ITL", "e2e": "E2E"}
_LABELS = {
    "requests_per_s": "Requests",
    "input_tokens_per_s": "Input tokens",
    "output_tokens_per_s": "Output tokens",
    "total_tokens_per_s": "Total tokens",
    "output_tokens_per_s_per_user": "Output tokens per user",
    "goodput_rps": "Goodput",
    "energy_j_per_output_token": "Energy per output token",
}


def build_document(run: Run) -> Document:
    """Everything that the page draws."""
    lines, left_out = timelines(run)
    points = point_views(run.points, read_summary(RunPaths(run.path).summary))
    rates = not run.points.empty and bool(run.points["concurrency"].isna().all())
    name, total, nvml = card_of(run)
    return Document(
        run_id=run.run_id,
        simulated=run.simulated,
        card_name=name,
        card_gib=total,
        card_nvml_gib=nvml,
        level_label="Scheduled sessions per second" if rates else "Client streams (concurrency)",
        level_log=not rates,
        workloads=tuple(dict.fromkeys(point.workload for point in points)),
        configs=config_views(run),
        metrics=tuple(_metric(key, column) for key, column in METRICS.items()),
        points=points,
        timelines=lines,
        timelines_left_out=left_out,
        prices=price_views(run),
    )


def config_views(run: Run) -> tuple[ConfigView, ...]:
    """Every configuration that was launched, measured or failed: by capture, then max-num-seqs, then name."""
    rows = {} if run.points.empty else {str(key): group for key, group in run.points.groupby("config_id")}
    names = dict.fromkeys([*run.launches, *rows, *run.failures])
    views = [_config(run, name, rows.get(name, pd.DataFrame())) for name in names]
    return tuple(
        sorted(views, key=lambda v: (v.capture or 0, v.max_num_seqs or 0, v.gpu_memory_utilization or 0, v.id))
    )


def _config(run: Run, name: str, rows: pd.DataFrame) -> ConfigView:
    flags = launch_flags(run.launches.get(name, {}))
    ledger = run.ledgers.get(name, {})

    def setting(column: str, flag: str) -> float | None:
        values = rows[column].dropna() if column in rows else pd.Series(dtype=float)
        return float(values.iloc[0]) if len(values) else _number(flags.get(flag))

    def peak(column: str) -> float | None:
        values = pd.to_numeric(rows[column], errors="coerce").dropna() if column in rows else pd.Series(dtype=float)
        largest = float(values.max()) if len(values) else _number(ledger.get(column))
        return None if largest is None else round(largest / 1024, 3)

    startup = (
        pd.to_numeric(rows["startup_s"], errors="coerce").dropna() if "startup_s" in rows else pd.Series(dtype=float)
    )
    vary = {column: str(rows[column].iloc[0]) for column in rows if str(column).startswith("vary_")}
    return ConfigView(
        id=name,
        capture=_whole(setting("capture", "max-cudagraph-capture-size")),
        max_num_seqs=_whole(setting("max_num_seqs", "max-num-seqs")),
        gpu_memory_utilization=setting("gpu_memory_utilization", "gpu-memory-utilization"),
        vary={str(column).removeprefix("vary_").replace("_", "-"): value for column, value in vary.items()},
        cards=_cards(flags),
        startup_s=float(startup.mean()) if len(startup) else None,
        vram_before_gib=peak("vram_before_mib"),
        vram_ready_gib=peak("vram_ready_mib"),
        vram_peak_gib=peak("vram_peak_mib"),
        ledger=ledger,
        prediction=run.predictions.get(name, {}),
        failed=name in run.failures,
    )


def launch_flags(launch: Mapping[str, Any]) -> dict[str, str]:
    """The flags of a launch line, without dashes, with their values (`--a b` and `--a=b`)."""
    argv = [str(word) for word in launch.get("shown_argv") or launch.get("argv") or ()]
    flags: dict[str, str] = {}
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags[name] = value if equals else following
    return flags


def card_of(run: Run) -> tuple[str | None, float | None, float | None]:
    """The card's name, CUDA's total and NVML's total in GiB, as far as run.json tells and the card is known."""
    hardware = run.meta.get("hardware")
    hardware = hardware if isinstance(hardware, Mapping) else {}
    options = run.meta.get("options")
    options = options if isinstance(options, Mapping) else {}
    name = hardware.get("card") or options.get("card")
    if name is None:
        gpus = hardware.get("gpus")
        name = gpus[0].get("name") if isinstance(gpus, list) and gpus and isinstance(gpus[0], Mapping) else None
    total = _number(hardware.get("cuda_total_gib"))
    if name is None:
        return None, total, None
    try:
        card = find_card(str(name))
        total = total if total is not None else card.cuda_gib(str(hardware.get("platform") or "linux"))
    except UsageError:
        return str(name), total, None
    return str(name), total, round(card.nvml_mib / 1024, 3)


def _metric(key: str, column: Column) -> Metric:
    stem, _, statistic = key.rpartition("_")
    label = f"{_ACRONYMS[stem]} {statistic}" if stem in _ACRONYMS else _LABELS.get(key, key)
    return Metric(key, label, column.unit, column.better, column.definition)


def _cards(flags: Mapping[str, str]) -> int:
    sizes = (_number(flags.get(f"{kind}-parallel-size")) for kind in ("tensor", "pipeline", "data"))
    product = 1
    for size in sizes:
        product *= int(size) if size is not None and size >= 1 else 1
    return product


def _number(value: Any) -> float | None:
    try:
        return known(float(value)) if value is not None and not isinstance(value, bool) else None
    except (TypeError, ValueError):
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)

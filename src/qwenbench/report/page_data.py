"""What the page's script draws from and whom it is about: typed values, collected from a run's folder.

orjson turns them into JSON as they stand, assets/*.js draws them. Unknown is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pandas as pd

from qwenbench.analysis.capture_reach import Reached, captures_reached
from qwenbench.analysis.columns import METRICS, Column, label
from qwenbench.analysis.price import PER_LAUNCH, PER_LOAD, PER_SCENARIO, price_of_capture
from qwenbench.analysis.run import LOAD_POINT, Run, known_numbers, records
from qwenbench.analysis.spread import Spread, spread_of
from qwenbench.capacity.cards import Card, find_card
from qwenbench.errors import UsageError
from qwenbench.report.document import titled
from qwenbench.report.points import (
    PointView,
    TimelineView,
    known,
    level_of,
    point_views,
    read_summary,
    timelines,
    workload_index,
)
from qwenbench.runfolder.names import RunPaths


@dataclass(frozen=True, slots=True)
class Subject:
    """What a run is about. None: not known."""

    models: tuple[str, ...]
    """Short names: the last part of a repository's name, or the served name of a local folder."""
    card: str | None
    """The card whose memory budget was kept: the real one, or the one that --card named."""
    gpu: str | None
    """What NVML calls the real card; None where there was none."""
    budget_on_larger: bool
    """The real card is another than `card`: only its memory budget was kept, its speed is the real card's."""
    vllm: str | None
    driver: str | None
    cuda_gib: float | None
    """CUDA's total of `card`, which --gpu-memory-utilization multiplies."""
    nvml_gib: float | None
    """NVML's total, which VRAM figures are to be held against."""
    simulated: bool
    interval: str | None
    """How far real figures lay from such simulated ones, in words."""
    run_id: str
    started: str | None

    @property
    def model(self) -> str:
        return ", ".join(self.models) or "a model that the run does not name"

    @property
    def where(self) -> str:
        """The card, in words: `an RTX 5090`, `an H200 kept to an RTX 5090's memory`."""
        if self.simulated:
            return f"a simulated {card_words(self.card)}" if self.card else "a simulated card"
        real = _gpu_words(self.gpu)
        if self.budget_on_larger:
            return f"{_with_article(real)} kept to {_with_article(card_words(self.card))}'s memory"
        return _with_article(real or card_words(self.card)) if real or self.card else "a card that is not named"

    @property
    def title(self) -> str:
        return f"{self.model} on {self.where}, {f'vLLM {self.vllm}' if self.vllm else 'vLLM (version not known)'}"


def card_words(card: str | None) -> str:
    """`rtx-5090` -> `RTX 5090`; other names as they are."""
    if card is None:
        return "card"
    return card.upper().replace("-", " ") if card == card.lower() else card.removeprefix("NVIDIA ")


def _gpu_words(gpu: str | None) -> str:
    """NVML's name of a card, short: `NVIDIA H100 80GB HBM3` -> `H100`."""
    known = _card(gpu)
    return card_words(known.name) if known is not None else (gpu or "").removeprefix("NVIDIA ").removeprefix("GeForce ")


def _with_article(name: str) -> str:
    """`an RTX 5090`, `a GB200`: letters are spelled."""
    return f"{'an' if name[:1] in 'AEFHILMNORSX8' else 'a'} {name}"


def subject_of(run: Run) -> Subject:
    """Reads run.json, launches and ledgers; whatever is not there stays None."""
    hardware, options = _mapping(run.meta.get("hardware")), _mapping(run.meta.get("options"))
    gpu = _first_gpu(hardware)
    name = hardware.get("card") or options.get("card") or gpu
    known = _card(name)
    on_larger = bool(gpu and known is not None and not _same_card(gpu, known.name))
    total = None if on_larger else number_or_none(hardware.get("cuda_total_gib"))  # the real card's, as its driver told
    if total is None and known is not None:
        total = known.known_cuda_gib(str(hardware.get("platform") or "linux"))
    versions = _mapping(run.meta.get("versions"))
    started = run.meta.get("started") or run.meta.get("started_at")
    return Subject(
        models=_models(run),
        card=None if name is None else str(name),
        gpu=gpu,
        budget_on_larger=on_larger,
        vllm=_vllm(run, versions),
        driver=None if versions.get("driver") is None else str(versions["driver"]),
        cuda_gib=total,
        nvml_gib=None if known is None else round(known.vram_mib / 1024, 3),
        simulated=run.simulated,
        interval=None if run.meta.get("simulated_interval") is None else str(run.meta["simulated_interval"]),
        run_id=run.run_id,
        started=None if started is None else str(started),
    )


def _card(name: object) -> Card | None:
    try:
        return None if name is None else find_card(str(name))
    except UsageError:
        return None


def _same_card(gpu: str, card: str) -> bool:
    """Whether NVML's name of a card means the card of that name in the catalogue."""
    known = _card(gpu)
    return known.name == card if known is not None else card.replace("-", " ").lower() in gpu.lower()


def _vllm(run: Run, versions: Mapping[str, Any]) -> str | None:
    found = (ledger.get("vllm_version") for ledger in run.ledgers.values())
    version = versions.get("vllm") or next((each for each in found if each), None)
    return None if version is None else str(version)


def _models(run: Run) -> tuple[str, ...]:
    servers = (launch.get("server") for launch in run.launches.values())
    names = (_model_name(server) for server in servers if isinstance(server, Mapping))
    return tuple(dict.fromkeys(name for name in names if name))


def _model_name(server: Mapping[str, Any]) -> str | None:
    model, served = server.get("model"), server.get("served_model_name")
    if not model:
        return None if served is None else str(served)
    path = str(model)
    return str(served) if served and path.startswith(("/", ".", "~")) else path.rstrip("/").rpartition("/")[2]


def _first_gpu(hardware: Mapping[str, Any]) -> str | None:
    gpus = hardware.get("gpus")
    first = gpus[0] if isinstance(gpus, list) and gpus else None
    name = first.get("name") if isinstance(first, Mapping) else None
    return None if name is None else str(name)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Metric:
    key: str
    """As in limits and `recommend`: ttft_p50."""
    label: str
    title: str
    """The label with its unit, for menus and axes."""
    unit: str
    better: str
    """`higher`, `lower` or empty."""
    definition: str


@dataclass(frozen=True, slots=True)
class ConfigView:
    """One server configuration, in the order of its first launch."""

    id: str
    capture: int | None
    max_num_seqs: int | None
    gpu_memory_utilization: float | None
    vary: Mapping[str, str]
    cards: int
    """Cards that one server of it takes (tensor x pipeline x data parallel)."""
    startup_s: float | None
    vram_before_gib: float | None
    vram_ready_gib: float | None
    vram_peak_gib: float | None
    """Largest over all of its points."""
    ledger: Mapping[str, Any]
    """memory.json; empty when there is none."""
    prediction: Mapping[str, Any]
    """prediction.json; empty when there is none."""
    failed: bool
    """True when a failure was recorded for it."""


@dataclass(frozen=True, slots=True)
class Change:
    workload: str | None
    """None for figures of a launch, which do not depend on the load."""
    level: float | None
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    basis: str
    """`repeats`, `rounding` (of the printed figure) or `indicative`."""


@dataclass(frozen=True, slots=True)
class PriceView:
    """What one step of the captured size costs and buys, all else being equal."""

    before: str
    after: str
    label: str
    costs: Mapping[str, Change]
    gains: tuple[Change, ...]
    """Output tokens/s at each load."""


@dataclass(frozen=True, slots=True)
class PageData:
    run_id: str
    simulated: bool
    card_name: str | None
    card_gib: float | None
    """CUDA's total, which --gpu-memory-utilization multiplies."""
    card_nvml_gib: float | None
    """NVML's total, which the VRAM figures are to be held against."""
    level_label: str
    """Title of the load axis with its unit."""
    level_log: bool
    """True: levels are spread over a logarithmic axis."""
    workloads: tuple[str, ...]
    configs: tuple[ConfigView, ...]
    metrics: tuple[Metric, ...]
    points: tuple[PointView, ...]
    timelines: tuple[TimelineView, ...]
    timelines_left_out: int
    """Points that have samples but carry no time line, to keep the file small."""
    prices: tuple[PriceView, ...]
    reached: tuple[Reached, ...]
    """Loads whose prompts fit under the larger of two captures: what that gave."""
    spread: Spread
    """How far launches of one configuration lie apart, which one launch cannot show."""


def page_data(run: Run, samples: bool = True) -> PageData:
    """Everything that the page draws; without `samples` no time line is read."""
    lines, left_out = timelines(run) if samples else ((), 0)
    points = point_views(run.points, read_summary(RunPaths(run.path).summary))
    rates = not run.points.empty and bool(run.points["concurrency"].isna().all())
    subject = subject_of(run)
    return PageData(
        run_id=run.run_id,
        simulated=run.simulated,
        card_name=subject.card,
        card_gib=subject.cuda_gib,
        card_nvml_gib=subject.nvml_gib,
        level_label="Scheduled sessions per second" if rates else "Client streams (concurrency)",
        level_log=not rates,
        workloads=tuple(dict.fromkeys(point.workload for point in points)),
        configs=config_views(run),
        metrics=tuple(_metric(key, column) for key, column in METRICS.items()),
        points=points,
        timelines=lines,
        timelines_left_out=left_out,
        prices=price_views(run),
        reached=captures_reached(run.points),
        spread=spread_of(run),
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
        values = known_numbers(rows, column)
        return float(values.iloc[0]) if len(values) else number_or_none(flags.get(flag))

    def peak(column: str) -> float | None:
        values = known_numbers(rows, column)
        largest = float(values.max()) if len(values) else number_or_none(ledger.get(column))
        return None if largest is None else round(largest / 1024, 3)

    startup = known_numbers(rows, "startup_s")
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


def _metric(key: str, column: Column) -> Metric:
    return Metric(key, label(key), titled(key), column.unit, column.better, column.definition)


def _cards(flags: Mapping[str, str]) -> int:
    sizes = (number_or_none(flags.get(f"{kind}-parallel-size")) for kind in ("tensor", "pipeline", "data"))
    product = 1
    for size in sizes:
        product *= int(size) if size is not None and size >= 1 else 1
    return product


def number_or_none(value: Any) -> float | None:
    """A number, or the text of one; None for anything else."""
    try:
        return known(float(value)) if value is not None and not isinstance(value, bool) else None
    except (TypeError, ValueError):
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def price_views(run: Run) -> tuple[PriceView, ...]:
    """One view per step of capture size; empty without two sizes."""
    if run.points.empty:
        return ()
    needed = {"valid", "launch", "repeat", "capture", "max_num_seqs", "gpu_memory_utilization", *LOAD_POINT}
    needed |= {*PER_LAUNCH, *PER_SCENARIO, *PER_LOAD}
    columns = [name for name in run.points if name in needed or str(name).startswith("vary_")]
    prices = price_of_capture(run.points[columns].copy(), run.ledgers)
    steps = prices.groupby(["config_from", "config_to"], sort=False)
    names = workload_index(run.points)
    return tuple(_view(str(before), str(after), rows, names) for (before, after), rows in steps)


def _view(before: str, after: str, rows: pd.DataFrame, names: dict[tuple[str, str], str]) -> PriceView:
    costs: dict[str, Change] = {}
    gains: list[Change] = []
    for row in records(rows):
        if known(row["scenario"]) is None:
            costs[str(row["metric"])] = _change(row, None)
        elif row["metric"] == "output_tokens_per_s":
            gains.append(_change(row, names.get((str(row["scenario"]), str(row["profile"])))))
    return PriceView(before, after, f"{before} → {after}", costs, tuple(gains))


def _change(row: dict[str, Any], workload: str | None) -> Change:
    level = None if workload is None else level_of(row)
    before, after, change, low, high = (known(row[name]) for name in ("before", "after", "change", "low", "high"))
    return Change(workload, level, before, after, change, low, high, str(row["basis"]))

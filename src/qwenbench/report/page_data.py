"""What the page's script draws from and whom it is about: typed values, collected from a run's folder.

orjson turns them into JSON as they stand, assets/*.js draws them. Unknown is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from qwenbench.analysis.columns import METRICS, VARIED, label
from qwenbench.analysis.price import Price, Reached, captures_reached, price_of_capture
from qwenbench.analysis.run import Run, known_numbers, level_of
from qwenbench.analysis.spread import Spread, spread_of
from qwenbench.capacity.cards import Card, find_card
from qwenbench.engine.flags import parse_flags
from qwenbench.errors import UsageError
from qwenbench.report.document import titled
from qwenbench.report.points import (
    PointView,
    TimelineView,
    point_views,
    read_summary,
    timelines,
    workload_index,
)
from qwenbench.report.svg import SERIES
from qwenbench.runfolder.damage import mapping, text_or_none
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
    hardware, versions = run.part("hardware"), run.part("versions")
    gpus = hardware.get("gpus")
    gpu = text_or_none(mapping(gpus[0]).get("name")) if isinstance(gpus, list) and gpus else None
    name = hardware.get("card") or run.part("options").get("card") or gpu
    known = _card(name)
    on_larger = bool(gpu and known is not None and not _same_card(gpu, known.name))
    total = None if on_larger else number_or_none(hardware.get("cuda_total_gib"))  # the real card's, as its driver told
    if total is None and known is not None:
        total = known.known_cuda_gib(str(hardware.get("platform") or "linux"))
    told = (ledger.get("vllm_version") for ledger in run.ledgers.values())
    return Subject(
        models=tuple(dict.fromkeys(filter(None, map(_model_name, run.launches.values())))),
        card=text_or_none(name),
        gpu=gpu,
        budget_on_larger=on_larger,
        vllm=text_or_none(versions.get("vllm") or next(filter(None, told), None)),
        driver=text_or_none(versions.get("driver")),
        cuda_gib=total,
        nvml_gib=None if known is None else round(known.vram_mib / 1024, 3),
        simulated=run.simulated,
        interval=text_or_none(run.meta.get("simulated_interval")),
        run_id=run.run_id,
        started=text_or_none(run.meta.get("started") or run.meta.get("started_at")),
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


def _model_name(launch: Mapping[str, Any]) -> str | None:
    server = mapping(launch.get("server"))
    model, served = text_or_none(server.get("model")), text_or_none(server.get("served_model_name"))
    if not model or (served and model.startswith(("/", ".", "~"))):
        return served
    return model.rstrip("/").rpartition("/")[2]


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
class PriceView:
    """What one step of the captured size costs and buys, all else being equal."""

    before: str
    after: str
    label: str
    costs: Mapping[str, Price]
    """Of figures of a launch, which do not depend on the load."""
    gains: tuple[Mapping[str, Any], ...]
    """Output tokens/s at each load: its `workload`, its `level`, and the change of a Price."""


@dataclass(frozen=True, slots=True)
class PageData:
    subject: Subject
    level_label: str
    """Title of the load axis with its unit."""
    level_log: bool
    """True: levels are spread over a logarithmic axis."""
    workloads: tuple[str, ...]
    configs: tuple[ConfigView, ...]
    metrics: tuple[Mapping[str, str], ...]
    """Of each its key as in limits, its label, `title` (the label with its unit, for menus and axes) and unit."""
    points: tuple[PointView, ...]
    timelines: tuple[TimelineView, ...]
    timelines_left_out: int
    """Points that have samples but carry no time line, to keep the file small."""
    prices: tuple[PriceView, ...]
    reached: tuple[Reached, ...]
    """Loads whose prompts fit under the larger of two captures: what that gave."""
    spread: Spread
    """How far launches of one configuration lie apart, which one launch cannot show."""

    @property
    def simulated(self) -> bool:
        return self.subject.simulated

    def points_of(self, config: str) -> list[PointView]:
        """Every load point of a configuration."""
        return [point for point in self.points if point.config == config]

    def colour(self, config: str) -> str:
        """The colour of a configuration's marks, by its place: `s0` to `s7`."""
        return f"s{next((place for place, view in enumerate(self.configs) if view.id == config), 0) % SERIES}"

    def grid(self, workload: str) -> tuple[list[str], list[tuple[ConfigView, list[PointView | None]]]]:
        """The loads of a workload, and of each configuration that has any of them the point at each."""
        cells = {(point.config, point.level): point for point in self.points if point.workload == workload}
        loads = {level: point.load for (_, level), point in cells.items()}
        levels = sorted(loads, key=lambda level: level or 0.0)
        rows = [(view, [cells.get((view.id, level)) for level in levels]) for view in self.configs]
        return [loads[level] for level in levels], [(view, row) for view, row in rows if any(row)]


def page_data(run: Run, samples: bool = True) -> PageData:
    """Everything that the page draws; without `samples` no time line is read."""
    lines, left_out = timelines(run) if samples else ((), 0)
    points = point_views(run.points, read_summary(RunPaths(run.path).summary))
    rates = not run.points.empty and bool(run.points["concurrency"].isna().all())
    return PageData(
        subject=subject_of(run),
        level_label="Scheduled sessions per second" if rates else "Client streams (concurrency)",
        level_log=not rates,
        workloads=tuple(dict.fromkeys(point.workload for point in points)),
        configs=config_views(run),
        metrics=tuple(
            {"key": key, "label": column.label, "title": titled(key), "unit": column.unit}
            for key, column in METRICS.items()
        ),
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

    def setting(column: str) -> float | None:
        flag = number_or_none(
            flags.get("max-cudagraph-capture-size" if column == "capture" else column.replace("_", "-"))
        )
        return next(iter(known_numbers(rows, column)), flag)

    def peak_gib(column: str) -> float | None:
        largest = max(known_numbers(rows, column), default=number_or_none(ledger.get(column)))
        return None if largest is None else round(largest / 1024, 3)

    startup = known_numbers(rows, "startup_s")
    return ConfigView(
        id=name,
        capture=_whole(setting("capture")),
        max_num_seqs=_whole(setting("max_num_seqs")),
        gpu_memory_utilization=setting("gpu_memory_utilization"),
        vary={label(str(column)): str(rows[column].iloc[0]) for column in rows if str(column).startswith(VARIED)},
        cards=_cards(flags),
        startup_s=float(np.mean(startup)) if startup else None,
        vram_before_gib=peak_gib("vram_before_mib"),
        vram_ready_gib=peak_gib("vram_ready_mib"),
        vram_peak_gib=peak_gib("vram_peak_mib"),
        ledger=ledger,
        prediction=run.predictions.get(name, {}),
        failed=name in run.failures,
    )


def launch_flags(launch: Mapping[str, Any]) -> dict[str, str]:
    """The flags of a launch line, without dashes, with their values."""
    argv = map(str, launch.get("shown_argv") or launch.get("argv") or ())
    return {name: value or "" for name, value in parse_flags(list(argv)).items()}


def _cards(flags: Mapping[str, str]) -> int:
    sizes = (number_or_none(flags.get(f"{kind}-parallel-size")) for kind in ("tensor", "pipeline", "data"))
    return math.prod(max(1, int(size or 1)) for size in sizes)


def number_or_none(value: Any) -> float | None:
    """A number, or the text of one; None for anything else."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def price_views(run: Run) -> tuple[PriceView, ...]:
    """One view per step of capture size; empty without two sizes."""
    steps: dict[tuple[str, str], list[Price]] = {}
    for price in price_of_capture(run.points, run.ledgers) if len(run.points) else ():
        steps.setdefault((price.smaller.config_id, price.larger.config_id), []).append(price)
    names = workload_index(run.points) if steps else {}
    return tuple(_view(before, after, prices, names) for (before, after), prices in steps.items())


def _view(before: str, after: str, prices: list[Price], names: Mapping[tuple[str, str], str]) -> PriceView:
    costs = {price.metric: price for price in prices if price.load.scenario is None}
    gains = tuple(
        {
            "workload": names.get((str(price.load.scenario), str(price.load.profile))),
            "level": level_of(asdict(price.load)),
            **{name: getattr(price, name) for name in ("before", "after", "change", "low", "high", "basis")},
        }
        for price in prices
        if price.metric == "output_tokens_per_s"
    )
    return PriceView(before, after, f"{before} → {after}", costs, gains)

"""What was measured: model, card, engine and versions, as far as a run's folder tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.analysis.run import Run
from qwenbench.capacity.cards import Card, find_card
from qwenbench.errors import UsageError


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
        """The model or models, in words."""
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
        """What was measured, in a line."""
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
    total = None if on_larger else _number(hardware.get("cuda_total_gib"))  # the real card's, as its driver told
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


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

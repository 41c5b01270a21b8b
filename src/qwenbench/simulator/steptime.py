"""How long one engine step takes: the greater of the host's time and the GPU's.

The GPU's time belongs to the card: kernels of a decode step by rows, prefill by tokens, contexts by their bytes,
sampling by rows. The host's time belongs to the machine: what launching a step's kernels takes it, by kind of step
(one captured graph, graphs piece by piece, kernel by kernel), and what scheduling and output take it, hidden behind
the GPU with asynchronous scheduling. docs/simulator.md says where each number comes from.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Self

from qwenbench.capacity.cards import Card, find_card
from qwenbench.capacity.model_shape import SEED_SHAPE, ModelShape
from qwenbench.errors import UsageError

CALIBRATION_FILE = Path(__file__).with_name("calibration.json")


@dataclass(frozen=True, slots=True)
class _Timings:
    """Fields whose names end in `_ms` are milliseconds, numbers or tables of them."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Raises TypeError where fields lack or are unknown."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def stretched(self, factor: float) -> Self:
        """Every duration times `factor`."""
        if factor == 1.0:
            return self
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_ms"):
                changed[field.name] = (
                    tuple(item * factor for item in value) if isinstance(value, tuple) else value * factor
                )
        return replace(self, **changed)


@dataclass(frozen=True, slots=True)
class GpuTimes(_Timings):
    """What a card's kernels take."""

    decode_rows: tuple[int, ...]
    decode_ms: tuple[float, ...]
    """A step that decodes so many rows inside a CUDA graph; straight lines between, the last slope beyond."""
    fixed_ms: float
    """The part of a decode step that no memory bandwidth shortens."""
    prefill_first_ms: float
    prefill_token_ms: float
    """A step with prefill: first + tokens x this."""
    prefill_row_ms: float
    """Each decoding row that rides along in a step with prefill."""
    prefill_context_ms: float
    """A prompt token's attention, for each token before it."""
    context_token_ms: float
    """Reading one token's keys and values."""
    filter_first_ms: float
    filter_row_ms: float
    """Top-k, top-p or min-p with PyTorch's and Triton's sampler (VLLM_USE_FLASHINFER_SAMPLER=0)."""
    filter_few_row_ms: float
    """The same for each row of a batch under `FILTER_FEW_ROWS`, which vLLM sorts with PyTorch."""
    flashinfer_row_ms: float
    """The same with FlashInfer's sampler, vLLM's default."""
    penalty_row_ms: float
    """Presence, frequency or repetition penalties."""
    draft_first_ms: float
    draft_row_ms: float
    """One pass of a drafter of one layer and the model's output matrix, for so many sequences."""
    jitter: float
    """Relative standard deviation of a step."""

    def decode(self, rows: float) -> float:
        """Milliseconds of a decode step's kernels, contexts and sampling aside."""
        sizes, times = self.decode_rows, self.decode_ms
        at = bisect_left(sizes, rows)
        if at == 0:
            return times[0]
        at = min(at, len(sizes) - 1)
        low, high = sizes[at - 1], sizes[at]
        slope = (times[at] - times[at - 1]) / (high - low)
        return times[at - 1] + slope * (rows - low)


FILTER_FEW_ROWS = 8
"""vLLM takes its Triton kernel for top-k and top-p from so many rows on (vllm/v1/sample/ops/topk_topp_sampler.py)."""


@dataclass(frozen=True, slots=True)
class HostTimes(_Timings):
    """What a machine takes to get a step onto the GPU; the same whatever the card."""

    name: str
    graph_ms: float
    """Launching a decode step that is one CUDA graph."""
    piecewise_ms: float
    """A step with prefill whose tokens fit the captured size: graphs piece by piece, attention between them."""
    launch_ms: float
    """A step with prefill launched kernel by kernel (940 to 1,000 of them)."""
    eager_ms: float
    """A decode step launched kernel by kernel, beyond the graphs, however many rows it has."""
    row_ms: float
    """Each row of a step with prefill, or of one in graphs piece by piece."""
    mixed_ms: float
    """What a step with prefill costs more where sequences decode beside it: both kinds' attention is launched."""
    serial_ms: float
    serial_row_ms: float
    """Scheduling before a step and taking its tokens in after it, for the step and for each row."""
    frontend_ms: float
    frontend_token_ms: float
    """From a request's last byte to the scheduler: HTTP, chat template, tokeniser (by prompt token)."""
    frontend_stream_ms: float
    """The same for each running request, whose tokens the frontend sends meanwhile."""
    jitter: float
    """Relative standard deviation of the time to launch a step."""
    point_spread: float
    launch_spread: float
    """Relative standard deviations of the host's speed between two points, and between two launches."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step has to do."""

    decodes: int = 0
    """Sequences that decode."""
    prefill_tokens: int = 0
    context_tokens: int = 0
    """Tokens of all its sequences together whose keys and values are read."""
    prompts: int = 0
    """Sequences that prefill."""
    filtered: int = 0
    """Rows whose tokens are drawn with top-k, top-p or min-p."""
    penalised: int = 0
    attended: float = 0.0
    """Pairs of a prompt token and a token before it that attention looks at."""


@dataclass(frozen=True, slots=True)
class StepSettings:
    """What of a server's configuration a step's time depends on."""

    captured_full: int
    """Largest decode batch (rows) that is one graph; 0 with --enforce-eager."""
    captured_piecewise: int
    """Most tokens of a step that runs in piecewise graphs."""
    flashinfer_sampler: bool = True
    async_scheduling: bool = True
    drafted: int = 0
    """Tokens that a drafter proposes for each sequence and step."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """A card in a machine."""

    gpu: GpuTimes
    host: HostTimes

    def step_ms(self, shape: StepShape, settings: StepSettings) -> tuple[float, float]:
        """(host, GPU) milliseconds of a step, without jitter."""
        gpu, host = self.gpu, self.host
        rows = shape.decodes * (1 + settings.drafted)
        device = gpu.context_token_ms * shape.context_tokens + self._sampling(shape, settings)
        if shape.prefill_tokens:
            device += gpu.prefill_first_ms + gpu.prefill_token_ms * shape.prefill_tokens + gpu.prefill_row_ms * rows
            device += gpu.prefill_context_ms * shape.attended
            graphs = shape.prefill_tokens + rows <= settings.captured_piecewise
        else:
            device += gpu.decode(rows)
            graphs = rows <= settings.captured_piecewise
        if not shape.prefill_tokens and rows <= settings.captured_full:
            launching = host.graph_ms
        elif not shape.prefill_tokens and not graphs:
            launching = host.eager_ms
        else:
            launching = (host.piecewise_ms if graphs else host.launch_ms) + host.row_ms * rows
            launching += host.mixed_ms if shape.prefill_tokens and rows else 0.0
        if settings.drafted:
            sequences = shape.decodes + shape.prompts
            drafting = settings.drafted * (gpu.draft_first_ms + gpu.draft_row_ms * sequences)
            device += drafting
            # the drafter's passes are launched one after the other, each when the one before has its tokens
            launching += drafting if settings.async_scheduling else 0.0
        return launching, device

    def frontend_ms(self, prompt_tokens: int, running: int) -> float:
        """Milliseconds from a request's last byte to the scheduler, beside so many running requests."""
        host = self.host
        return host.frontend_ms + host.frontend_token_ms * prompt_tokens + host.frontend_stream_ms * running

    def serial_ms(self, shape: StepShape) -> float:
        """Milliseconds of scheduling and output of a step."""
        return self.host.serial_ms + self.host.serial_row_ms * (shape.decodes + shape.prompts)

    def decode_ms(self, sequences: int, captured: int) -> float:
        """Milliseconds of a plain step that decodes `sequences`, contexts and sampling fields aside."""
        return max(self.step_ms(StepShape(decodes=sequences), StepSettings(captured, captured)))

    def stretched(self, factor: float) -> StepModel:
        """Every duration times `factor`."""
        return StepModel(self.gpu.stretched(factor), self.host.stretched(factor))

    def _sampling(self, shape: StepShape, settings: StepSettings) -> float:
        gpu = self.gpu
        per_sequence = 1 + settings.drafted
        filtered = shape.filtered * per_sequence
        cost = gpu.penalty_row_ms * shape.penalised * per_sequence
        if not filtered:
            return cost
        if settings.flashinfer_sampler:
            return cost + gpu.flashinfer_row_ms * filtered
        if filtered < FILTER_FEW_ROWS:
            return cost + gpu.filter_few_row_ms * filtered
        return cost + gpu.filter_first_ms + gpu.filter_row_ms * filtered


@cache
def calibration() -> Mapping[str, Any]:
    """The whole calibration file that the package ships (provenance, cards, hosts, start-up phases, memory)."""
    loaded: dict[str, Any] = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
    return loaded


def measured_cards() -> tuple[str, ...]:
    """Cards whose kernels were measured."""
    return tuple(calibration()["cards"])


def gpu_times(card: Card, shape: ModelShape = SEED_SHAPE, version: str = "") -> GpuTimes:
    """A card's kernels for a model: measured, or scaled from the measured card whose bandwidth is nearest.

    `version`: vLLM's, where its kernels were seen to differ.

    Decoding in graphs is taken as bound by memory but for `fixed_ms`, prefill by compute, both in proportion to the
    weights; sampling, which reads the logits, by memory.
    """
    cards = calibration()["cards"]
    nearest = min(cards, key=lambda name: abs(find_card(name).bandwidth_gb_s / card.bandwidth_gb_s - 1))
    release = ".".join(version.split(".")[:2])
    times = GpuTimes.from_json({**cards[nearest], **calibration()["versions"].get(release, {})})
    return scaled(times, find_card(nearest), card, (shape.weights_gib or 1.0) / (SEED_SHAPE.weights_gib or 1.0))


def scaled(times: GpuTimes, known: Card, card: Card, size: float = 1.0) -> GpuTimes:
    """A known card's kernels on another card, for a model `size` times as large: an extrapolation."""
    memory = known.bandwidth_gb_s / card.bandwidth_gb_s
    compute = known.bf16_tflops / card.bf16_tflops
    if memory == compute == size == 1.0:
        return times
    factors = {
        **dict.fromkeys(("prefill_first_ms", "prefill_row_ms", "draft_first_ms", "draft_row_ms"), memory * size),
        **dict.fromkeys(("context_token_ms", "filter_first_ms", "filter_row_ms", "filter_few_row_ms"), memory),
        **dict.fromkeys(("flashinfer_row_ms", "penalty_row_ms"), memory),
        "prefill_token_ms": compute * size,
        "prefill_context_ms": compute,
    }
    return replace(
        times,
        decode_ms=tuple(times.fixed_ms + (ms - times.fixed_ms) * memory * size for ms in times.decode_ms),
        **{name: getattr(times, name) * factor for name, factor in factors.items()},
    )


TYPICAL = "typical"
"""The middle of the machines that were measured: what is taken where nothing is known."""


def measured_hosts() -> dict[str, HostTimes]:
    hosts = calibration()["hosts"]
    return {name: HostTimes.from_json({"name": name, **values["times"]}) for name, values in hosts.items()}


def typical_host() -> HostTimes:
    """The geometric mean of the machines that were measured."""
    return mean_host(list(measured_hosts().values()))


def find_host(name: str | None) -> HostTimes:
    """A machine by name, `typical` (None), or a file of `qwenbench simulate --measure-host`. Raises UsageError."""
    hosts = measured_hosts()
    if name is None or name == TYPICAL:
        return typical_host()
    if name in hosts:
        return hosts[name]
    path = Path(name)
    if not path.is_file():
        raise UsageError(
            f"--sim-host {name!r}: no machine of that name and no such file; known are {', '.join([TYPICAL, *hosts])}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return HostTimes.from_json(values["times"] if isinstance(values, dict) and "times" in values else values)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--sim-host {path}: no machine's times: {error}") from None


def mean_host(hosts: Sequence[HostTimes]) -> HostTimes:
    """The geometric mean of machines, as `typical`."""
    names = [field.name for field in fields(HostTimes) if field.name != "name"]
    means = {name: math.prod(max(getattr(host, name), 1e-9) for host in hosts) ** (1 / len(hosts)) for name in names}
    return HostTimes(TYPICAL, **means)


def step_model(card: Card, host: str | None = None, shape: ModelShape = SEED_SHAPE, version: str = "") -> StepModel:
    """The model of a card in a machine (`find_host`). Raises UsageError for a machine that is not known."""
    return StepModel(gpu_times(card, shape, version), find_host(host))

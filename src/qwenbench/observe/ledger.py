"""The memory ledger of one server configuration: memory.json and `qwenbench ledger --json`.

It holds the start-up log and NVML's phases as they were read and adds what only both together tell (budget, rest,
blocks); `to_json` alone flattens them into the keys of the contract."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from qwenbench.capacity.configuration import label_int
from qwenbench.capacity.kv import (
    GIB,
    KvLayout,
    blocks_from_printed_tokens,
    blocks_range_for_printed_gib,
    kv_cache_tokens,
)
from qwenbench.engine.speed_settings import SpeedSetting, speed_settings
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError
from qwenbench.observe.nvml import MIB_PER_GIB, NOT_WATCHED, VramPhases

KEYS = tuple(
    """vllm_version budget_gib weights_gib activations_gib graphs_estimated_gib graphs_actual_gib kv_cache_gib rest_gib
    kv_cache_blocks attention_block_tokens kv_cache_tokens kv_cache_tokens_logged kv_cache_tokens_formula
    max_concurrency_logged capture_effective capture_effective_full max_model_len_effective attention_backend
    quantization_backend compile_s profile_s capture_s init_s vram_before_mib vram_ready_mib vram_peak_mib
    vram_after_mib warnings non_torch_gib workers speculative_tokens sampler async_scheduling speed_settings setup_s
    load_s startup_log_s compile_cache died graph_steps""".split()
)
"""Keys of memory.json, in their order: attributes of StartupLog, but for those that `to_json` makes."""


@dataclass(frozen=True, slots=True)
class MemoryLedger:
    """What a configuration holds. Sizes in GiB or MiB as named; None is not known."""

    startup: StartupLog
    """Everything that the server's log tells, as printed."""
    vram: VramPhases = NOT_WATCHED
    budget_gib: float | None = None
    """--gpu-memory-utilization x CUDA's total."""
    rest_gib: float | None = None
    """Budget minus every part that counts against it: CUDA context, libraries and, where vLLM prints no activations,
    those. Negative when the parts exceed the budget."""
    kv_cache_blocks: int | None = None
    attention_block_tokens: int | None = None
    kv_cache_tokens: int | None = None
    """Longest single request, this project's definition (docs/memory.md)."""

    def to_json(self) -> dict[str, Any]:
        """The object that memory.json holds; GiB as printed, times in seconds."""
        log = self.startup
        own = {
            **{f"vram_{name}": mib for name, mib in asdict(self.vram).items()},
            **{name: getattr(self, name) for name in ("budget_gib", "rest_gib")},
            **{name: getattr(self, name) for name in ("kv_cache_blocks", "attention_block_tokens", "kv_cache_tokens")},
            "warnings": list(log.warnings),
            "workers": [asdict(worker) for worker in log.workers] if len(log.workers) > 1 else None,
            "speed_settings": [asdict(setting) for setting in self.speed_settings] if log.recognised else None,
            "startup_log_s": log.total_s,
            "died": log.died or None,
            "graph_steps": self._graph_steps() or None,
        }
        return {key: own[key] if key in own else getattr(log, key) for key in KEYS}

    def _graph_steps(self) -> dict[str, int]:
        """Steps by how they ran (FULL, PIECEWISE, NONE), as --cudagraph-metrics counted them."""
        counted: Counter[str] = Counter()
        for (_, mode), steps in self.startup.graph_steps.items():
            counted[mode] += steps
        return dict(counted)

    @property
    def speed_settings(self) -> tuple[SpeedSetting, ...]:
        """What makes this server slower than it could be, as its log tells."""
        return speed_settings(self.startup)

    @property
    def parts_gib(self) -> float | None:
        """Weights + captured graphs + KV cache, GiB: what vLLM says that it holds when it is ready.

        Activations are not held then; what PyTorch keeps of them shows in `nvml_minus_parts_mib`.
        """
        log = self.startup
        if log.weights_gib is None or log.kv_cache_gib is None:
            return None
        return log.weights_gib + (log.graphs_actual_gib or 0.0) + log.kv_cache_gib

    @property
    def nvml_minus_parts_mib(self) -> float | None:
        """What the server added on the card until it was ready (NVML) beyond its parts, MiB."""
        if self.vram.ready_mib is None or self.parts_gib is None:
            return None
        return self.vram.ready_mib - (self.vram.before_mib or 0.0) - self.parts_gib * MIB_PER_GIB

    @property
    def vram_over_budget_mib(self) -> float | None:
        """NVML peak, less what was used before the launch, minus the budget, MiB. A risk, no proof of an
        out-of-memory error: PyTorch's allocator can give cached memory back."""
        if self.vram.peak_mib is None or self.budget_gib is None:
            return None
        return self.vram.peak_mib - (self.vram.before_mib or 0.0) - self.budget_gib * MIB_PER_GIB


def build_ledger(
    startup: StartupLog,
    *,
    vram: VramPhases = NOT_WATCHED,
    cache_config: Mapping[str, str] | None = None,
    layout: KvLayout | None = None,
    cuda_total_gib: float | None = None,
    utilization: float | None = None,
) -> MemoryLedger:
    """Joins a start-up log with NVML's figures and the labels of `vllm:cache_config_info`.

    `layout` (capacity.kv_layout) makes blocks from printed tokens and gives kv_cache_tokens. `utilization` and
    `cuda_total_gib` make the budget; unset they come from the log, where it has them.
    """
    labels = {key: value for key, value in (cache_config or {}).items() if value not in ("None", "")}
    blocks = _blocks(startup, labels, layout)
    budget = _budget(startup, labels, cuda_total_gib, utilization)
    tokens = None
    if layout is not None and blocks is not None and startup.max_model_len_effective is not None:
        tokens = kv_cache_tokens(blocks, layout, startup.max_model_len_effective)
    return MemoryLedger(
        startup=startup,
        vram=vram,
        budget_gib=budget,
        rest_gib=_rest(startup, budget),
        kv_cache_blocks=blocks,
        attention_block_tokens=_block_tokens(startup, labels),
        kv_cache_tokens=tokens,
    )


def _blocks(startup: StartupLog, labels: Mapping[str, str], layout: KvLayout | None) -> int | None:
    """From /metrics, else from the log, else from the printed tokens where only one number fits."""
    label = label_int(labels.get("num_gpu_blocks"))
    if label is not None:
        return label
    if startup.kv_cache_blocks is not None:
        return startup.kv_cache_blocks
    formula = startup.kv_cache_tokens_formula
    length = startup.max_concurrency_tokens or startup.max_model_len_effective
    if layout is None or startup.kv_cache_tokens_logged is None or formula is None or length is None:
        return None
    try:
        low, high = blocks_from_printed_tokens(startup.kv_cache_tokens_logged, formula, layout, length)
    except UsageError:
        return None
    if startup.kv_cache_gib is not None:
        fewest, most = blocks_range_for_printed_gib(startup.kv_cache_gib, layout)
        low, high = max(low, fewest), min(high, most)
    return low if low == high else None


def _block_tokens(startup: StartupLog, labels: Mapping[str, str]) -> int | None:
    """The log's figure first: before `effective_attention_block_size` came, the label was wrong for hybrids,
    but every hybrid logs its block size."""
    if startup.attention_block_tokens is not None:
        return startup.attention_block_tokens
    return label_int(labels.get("effective_attention_block_size")) or label_int(labels.get("block_size"))


def _budget(
    startup: StartupLog,
    labels: Mapping[str, str],
    cuda_total_gib: float | None,
    utilization: float | None,
) -> float | None:
    total = cuda_total_gib if cuda_total_gib is not None else startup.cuda_total_gib
    share = utilization
    if share is None:
        asked = startup.requested.get("gpu_memory_utilization", labels.get("gpu_memory_utilization"))
        try:
            share = float(asked) if asked is not None else None
        except (TypeError, ValueError):
            share = None
    if total is None or share is None:
        return startup.budget_gib
    return round(total * share, 4)


def _rest(startup: StartupLog, budget: float | None) -> float | None:
    """Needs to know whether the graphs' estimate counted; without a printed estimate it is part of the rest."""
    if budget is None or startup.weights_gib is None or startup.kv_cache_gib is None:
        return None
    graphs = startup.graphs_estimated_gib
    if graphs is not None and startup.graphs_estimate_applied is None and startup.activations_gib is None:
        return None
    if not startup.graphs_estimate_applied or startup.activations_hold_graphs:
        graphs = 0.0
    parts = startup.weights_gib + (startup.activations_gib or 0.0) + (graphs or 0.0) + startup.kv_cache_gib
    return round(budget - parts, 4)


CARD_DIFFERS = 0.03
"""Share by which a card's total may differ from the log's before it is another card: driver and ECC move it by less."""
STARTS_DIFFER_GIB = 0.05
CACHES = {"cold": "compiled", "warm": "from the cache"}


def questions(ledger: MemoryLedger, *, card_total_gib: float | None = None, card: str | None = None) -> tuple[str, ...]:
    """What about this ledger cannot be as it seems: another card than said, parts beyond the budget, a dead engine."""
    log = ledger.startup
    asked = []
    seen, named = log.cuda_total_gib, card or "the given total"
    if seen is not None and card_total_gib is not None and abs(card_total_gib / seen - 1) > CARD_DIFFERS:
        asked.append(
            f"is it another card? The log says {seen:.2f} GiB in all, {named} has {card_total_gib:.2f} GiB: budget and "
            "rest are wrong if it is."
        )
    elif ledger.rest_gib is not None and ledger.rest_gib < -0.5:
        asked.append(
            f"is it another card, or another utilisation? The parts exceed the budget of {ledger.budget_gib:.2f} GiB "
            f"({named}) by {-ledger.rest_gib:.2f} GiB, which no server can hold."
        )
    if log.kv_cache_gib is not None and log.kv_cache_gib < 0:
        asked.append(
            "nothing is left for a KV cache: weights and activations alone exceed the budget by "
            f"{-log.kv_cache_gib:.2f} GiB. More --gpu-memory-utilization, fewer --max-num-batched-tokens, or a smaller "
            "or quantised model."
        )
    if log.died:
        asked.append("the engine died in this log: the figures are of a server that did not live.")
    return tuple(asked)


def compare_starts(named: Sequence[tuple[str, MemoryLedger]]) -> list[str]:
    """Cold and warm starts of the same settings that held different KV caches.

    vLLM may charge compiling as peak activation memory (vllm issue 54122): a first start then holds less than the
    restart, and a comparison of configurations must not mix the two.
    """
    remarks = []
    starts = [
        (f"{name} ({CACHES[cache]})", log) for name, ledger in named if (cache := (log := ledger.startup).compile_cache)
    ]
    for (cold_name, one), (warm_name, two) in product(starts, starts):
        same = one.requested == two.requested and one.vllm_version == two.vllm_version
        if (one.compile_cache, two.compile_cache) != ("cold", "warm") or not same:
            continue
        if one.kv_cache_gib is None or two.kv_cache_gib is None:
            continue
        activations = ""
        if one.activations_gib is not None and two.activations_gib is not None:
            activations = f", peak activations {one.activations_gib:.2f} and {two.activations_gib:.2f} GiB"
        if abs(two.kv_cache_gib - one.kv_cache_gib) >= STARTS_DIFFER_GIB:
            remarks.append(
                f"{cold_name} held {one.kv_cache_gib:.2f} GiB of KV cache, {warm_name} {two.kv_cache_gib:.2f}"
                f"{activations}: compiling may be charged as activations (vllm issue 54122), so compare warm starts "
                "with warm ones"
            )
        else:
            remarks.append(
                f"{cold_name} and {warm_name} held the same KV cache{activations}: compiling was not charged"
            )
    return remarks


def with_cache_labels(
    startup: StartupLog, labels: Mapping[str, str], max_model_len: int | None = None, version: str | None = None
) -> StartupLog:
    """The log with what it does not tell taken from the labels (vLLM 0.26 and later tell most of them).

    `max_model_len` is /v1/models' figure, in tokens; `version` is /version's.
    """
    tokens = _label_number(labels, "kv_cache_size_tokens")
    concurrency = _label_number(labels, "kv_cache_max_concurrency")
    length = max_model_len
    if length is None and tokens and concurrency:
        length = round(tokens / concurrency)
    memory = _label_number(labels, "kv_cache_memory_bytes")
    if _label_number(labels, "num_gpu_blocks_override") is not None:
        memory = None  # the cache is then not as large as the memory that was set aside
    told: dict[str, Any] = {
        "vllm_version": version,
        "kv_cache_gib": None if memory is None else memory / GIB,
        "kv_cache_tokens_logged": None if tokens is None else int(tokens),
        "max_concurrency_logged": concurrency,
        "max_concurrency_tokens": length if concurrency is not None else None,
        "max_model_len_effective": length,
        "enable_prefix_caching": {"True": True, "False": False}.get(labels.get("enable_prefix_caching", "")),
        "mamba_cache_mode": labels.get("mamba_cache_mode"),
        "kv_cache_dtype": labels.get("cache_dtype"),
    }
    missing = {
        name: value
        for name, value in told.items()
        if value not in (None, "None", "") and getattr(startup, name) is None
    }
    return replace(startup, **missing)


def _label_number(labels: Mapping[str, str], name: str) -> float | None:
    try:
        return float(labels[name])
    except (KeyError, ValueError):
        return None  # `None` is how a label says that it is not set

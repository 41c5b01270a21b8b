"""From vLLM's settings to the arithmetic: defaults by version, block layouts, and the plan of one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwenbench.capacity.calibration import built_in_calibration, calibrate
from qwenbench.capacity.cards import Card
from qwenbench.capacity.doomed import cannot_start
from qwenbench.capacity.kv import KvLayout, kv_layout, release_minor
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.predict import SEEN_BATCHED_TOKENS, PlanTarget, Prediction, predict
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.startup_log import StartupLog

LARGE_CARD_GIB = 70.0
"""vLLM's defaults for max-num-seqs and batched tokens differ from this size on."""


@dataclass(frozen=True, slots=True)
class ConfigPlan:
    """What is known about a configuration before its launch."""

    prediction: Prediction | None
    """None where the card's memory is not known."""
    cannot_start: str | None
    """Why it cannot start, with the arithmetic; None when nothing speaks against it."""
    layout: KvLayout


def default_utilization(version: str) -> float:
    """vLLM's default --gpu-memory-utilization (0.90 up to 0.20, 0.92 from 0.28 on; read in both)."""
    return 0.92 if release_minor(version) >= 28 else 0.90


def default_max_num_seqs(cuda_total_gib: float) -> int:
    """vLLM's default --max-num-seqs of a server: 256 under 70 GiB, else 1024."""
    return 256 if cuda_total_gib < LARGE_CARD_GIB else 1024


def default_batched_tokens(cuda_total_gib: float) -> int:
    """vLLM's default --max-num-batched-tokens of a server: 2048 under 70 GiB, else 8192."""
    return 2048 if cuda_total_gib < LARGE_CARD_GIB else 8192


def default_capture(max_num_seqs: int, batched_tokens: int) -> int:
    """vLLM's default --max-cudagraph-capture-size: twice max-num-seqs, at most 512 and the batched tokens."""
    return min(2 * max_num_seqs, 512, batched_tokens)


def plan_config(
    config: ServerConfig,
    shape: ModelShape,
    *,
    version: str,
    card: Card | None = None,
    platform: str = "linux",
    cuda_total_gib: float | None = None,
    probe: StartupLog | None = None,
    probe_cuda_total_gib: float | None = None,
    request_tokens: int | None = None,
    on_gpu: bool = True,
) -> ConfigPlan:
    """Predicts a configuration and checks whether it can start.

    `cuda_total_gib` is the total that the utilisation multiplies (the card's when unset). `probe` is a log of the
    same model on the card of `probe_cuda_total_gib` (the same card when unset); without one the built-in servers
    calibrate. Raises UsageError for what makes no sense (a utilisation over 1, an unknown dtype).
    """
    total = cuda_total_gib if cuda_total_gib is not None else (card.cuda_gib(platform) if card else None)
    batched = config.int_flag("max-num-batched-tokens") or (default_batched_tokens(total) if total else None)
    layout = _layout(config, shape, version, batched or SEEN_BATCHED_TOKENS, on_gpu, probe)
    prediction = None
    if total is not None and on_gpu and config.flag("kv-cache-memory-bytes") is None:
        prediction = _predict(
            config, shape, layout, version, total, card, platform, probe, probe_cuda_total_gib, request_tokens
        )
    reason = cannot_start(
        config,
        layout=layout,
        prediction=prediction,
        version=version,
        model_max_len=shape.max_position,
        default_batched_tokens=batched,
        on_gpu=on_gpu,
    )
    return ConfigPlan(prediction, reason, layout)


def layout_of_server(shape: ModelShape, startup: StartupLog, cache_config: Mapping[str, str] | None = None) -> KvLayout:
    """`cache_config` holds the labels of vllm:cache_config_info. Raises UsageError where shape and log differ.

    The log's block size comes first, since older labels are wrong for hybrids; dense models never log theirs.
    """
    labels = {name: value for name, value in (cache_config or {}).items() if value not in ("", "None")}
    asked = startup.requested
    block = startup.attention_block_tokens or _label_int(labels.get("effective_attention_block_size"))
    if block is None and not shape.hybrid:
        block = _label_int(labels.get("block_size"))
    speculation = asked.get("speculative_config")
    speculated = speculation.get("num_speculative_tokens", 0) if isinstance(speculation, Mapping) else 0
    return kv_layout(
        shape,
        labels.get("cache_dtype") or startup.kv_cache_dtype or "auto",
        state_dtype=labels.get("mamba_ssm_cache_dtype") or asked.get("mamba_ssm_cache_dtype"),
        mamba_cache_mode=labels.get("mamba_cache_mode") or startup.mamba_cache_mode or "none",
        speculative_tokens=int(speculated or 0),
        base_block_tokens=128 if startup.device == "cpu" else 16,
        block_tokens=block,
        tensor_parallel=int(asked.get("tensor_parallel_size") or 1),
        max_num_batched_tokens=int(asked.get("max_num_batched_tokens") or 2048),
    )


def _label_int(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def prefix_caching(config: ServerConfig, version: str) -> bool:
    """Whether a hybrid model's prefix caching is on: as asked, else off up to 0.20 and on from 0.28 (seen in both)."""
    if "no-enable-prefix-caching" in config.flags:
        return False
    return "enable-prefix-caching" in config.flags or release_minor(version) >= 28


def _layout(
    config: ServerConfig,
    shape: ModelShape,
    version: str,
    batched_tokens: int,
    on_gpu: bool,
    probe: StartupLog | None,
) -> KvLayout:
    dtype = config.flag("kv-cache-dtype") or "auto"
    state_dtype = config.flag("mamba-ssm-cache-dtype")
    if state_dtype is None and shape.state_dtype is None and not on_gpu and release_minor(version) > 28:
        state_dtype = "float32"  # 0.32 resets it on a CPU; 0.28 kept the model's dtype
    seen = probe is not None and dtype == (probe.kv_cache_dtype or "auto")
    return kv_layout(
        shape,
        dtype,
        state_dtype=state_dtype,
        mamba_cache_mode=config.flag("mamba-cache-mode") or ("align" if prefix_caching(config, version) else "none"),
        base_block_tokens=config.int_flag("block-size") or (16 if on_gpu else 128),
        block_tokens=probe.attention_block_tokens if probe is not None and seen else None,
        tensor_parallel=config.int_flag("tensor-parallel-size") or 1,
        max_num_batched_tokens=batched_tokens,
    )


def _predict(
    config: ServerConfig,
    shape: ModelShape,
    layout: KvLayout,
    version: str,
    total: float,
    card: Card | None,
    platform: str,
    probe: StartupLog | None,
    probe_total: float | None,
    request_tokens: int | None,
) -> Prediction:
    if probe is not None:
        calibration = calibrate(
            probe, shape, layout_of_server(shape, probe), cuda_total_gib=probe_total or probe.cuda_total_gib or total
        )
        same = probe_total is None or abs(probe_total - total) < 0.2
        seen = int(probe.requested.get("max_num_batched_tokens") or default_batched_tokens(probe_total or total))
    else:
        calibration = built_in_calibration(shape, card.name if card else None, platform, version)
        same, seen = True, SEEN_BATCHED_TOKENS
    seqs = config.max_num_seqs or default_max_num_seqs(total)
    batched = config.int_flag("max-num-batched-tokens") or default_batched_tokens(total)
    utilization = config.gpu_memory_utilization
    target = PlanTarget(
        cuda_total_gib=total,
        utilization=default_utilization(version) if utilization is None else utilization,
        capture=0 if "enforce-eager" in config.flags else config.capture or default_capture(seqs, batched),
        max_num_seqs=seqs,
        version=version,
        platform=platform,
        nvml_mib=card.nvml_mib if card else None,
        max_model_len=config.int_flag("max-model-len"),
        request_tokens=request_tokens,
        estimate_graphs=config.env.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "1") != "0",
        same_machine=same,
        unseen_batched_tokens=abs(batched - seen),
    )
    return predict(target, shape, layout, calibration)

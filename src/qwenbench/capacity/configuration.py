"""The plan of one configuration: its block layout, its prediction and whether it can start at all.

Of what cannot start only what is certain counts: a prediction's optimistic end must fall short too, and a rule must
have been read in the version's source or seen on a server. `--force` in the sweep runs them all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qwenbench.capacity.calibration import Calibration, built_in_calibration, calibrate, load_of
from qwenbench.capacity.cards import Card
from qwenbench.capacity.kv import (
    GIB,
    KvLayout,
    blocks_for_gib,
    blocks_from_printed_tokens,
    blocks_range_for_printed_gib,
    gib_for_blocks,
    kv_layout,
    release_minor,
)
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.predict import Prediction, Target, predict
from qwenbench.capacity.settings import (
    Settings,
    default_batched_tokens,
    default_capture,
    default_utilization,
    settings_of_config,
    settings_of_log,
)
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError

NULL_BLOCK_COUNTS_FROM = 32
"""Minor version whose check of max-model-len leaves the null block out (read in 0.32; not in 0.18 to 0.28)."""
MAMBA_CHECK_FROM = 26
"""Minor version that refuses max-num-seqs above the number of blocks for hybrids with FULL graphs (read in 0.26 and
0.33; 0.18 caps the captures instead)."""


def cannot_start(
    settings: Settings,
    *,
    layout: KvLayout | None = None,
    prediction: Prediction | None = None,
    version: str | None = None,
    model_max_len: int | None = None,
    on_gpu: bool = True,
) -> str | None:
    """Why this configuration cannot start, with the arithmetic; None when nothing speaks against it.

    `layout` and `model_max_len` come from the model, `prediction` from `predict`; what is missing is not checked.
    """
    share, seqs, rows = settings.utilization, settings.max_num_seqs, settings.rows_per_sequence
    batched = settings.batched_tokens
    if share is not None and not 0 < share <= 1:
        return f"--gpu-memory-utilization {share:g} is not within (0, 1]"
    if batched is not None and seqs is not None and batched < seqs:
        return f"--max-num-batched-tokens {batched} is less than --max-num-seqs {seqs}, which vLLM refuses"
    if settings.drafter is not None and settings.capture and settings.capture < rows:
        return (
            f"--max-cudagraph-capture-size {settings.capture} is less than the {rows} rows of one sequence (1 + "
            f"{settings.drafter.tokens} drafted tokens): vLLM finds no valid graph size"
        )
    if prediction is not None and prediction.kv_cache_gib_high is None:
        return prediction.basis
    return _too_few_blocks(settings, layout, prediction, version, model_max_len, on_gpu) if layout else None


def _too_few_blocks(
    settings: Settings,
    layout: KvLayout,
    prediction: Prediction | None,
    version: str | None,
    model_max_len: int | None,
    on_gpu: bool,
) -> str | None:
    most = _most_blocks(settings, layout, prediction)
    if most is None:
        return None
    blocks, source = most
    minor = release_minor(version) if version else None
    null_block = 1 if minor is not None and minor >= NULL_BLOCK_COUNTS_FROM else 0
    length = 1 if settings.auto_model_len else settings.max_model_len or model_max_len
    if length is not None:
        needed = layout.blocks_per_request(length)
        if needed > blocks - null_block:
            what = _request_in_words(settings, length)
            null = " and vLLM's null block" if null_block else ""
            state = f", {layout.state_blocks} of them states" if layout.state_blocks else ""
            return (
                f"{what} needs {needed} blocks of {layout.block_tokens} tokens{state}{null} "
                f"({gib_for_blocks(needed + null_block, layout):.2f} GiB), but the cache holds {blocks} ({source})"
            )
    seqs = settings.max_num_seqs
    checked = minor is not None and minor >= MAMBA_CHECK_FROM and on_gpu and settings.capture != 0
    if checked and layout.state_blocks and seqs is not None and seqs > blocks:
        return (
            f"--max-num-seqs {seqs} exceeds the {blocks} blocks of the cache ({source}): a hybrid model needs a state "
            "block per sequence to capture its graphs"
        )
    return None


def _request_in_words(settings: Settings, length: int) -> str:
    if settings.auto_model_len:
        return "a single token"
    if settings.max_model_len is None:
        return f"one request of the model's own {length:,} tokens (--max-model-len auto would shorten it)"
    return f"one request of --max-model-len {length:,} tokens"


def _most_blocks(settings: Settings, layout: KvLayout, prediction: Prediction | None) -> tuple[int, str] | None:
    """The most blocks that the cache can get, and where that comes from."""
    if settings.blocks_override is not None:
        return settings.blocks_override, f"--num-gpu-blocks-override {settings.blocks_override}"
    if settings.kv_cache_bytes is not None:
        size = settings.kv_cache_bytes
        return size // layout.bytes_per_block, f"--kv-cache-memory-bytes {size} ({size / GIB:.3g} GiB)"
    if prediction is not None and prediction.kv_cache_gib_high is not None:
        high = prediction.kv_cache_gib_high
        return blocks_for_gib(high, layout), f"at most {high:.2f} GiB; {prediction.basis}"
    return None


SEEN_BATCHED_TOKENS = 2048
"""Step budget where neither the settings nor a card tell it."""
CPU_BLOCK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class ConfigPlan:
    prediction: Prediction | None
    """None where the card's memory is not known."""
    cannot_start: str | None
    """Why it cannot start, with the arithmetic; None when nothing speaks against it."""
    layout: KvLayout
    target: Target | None = None
    """What was asked for, vLLM's defaults filled in; None where the card's memory is not known."""
    calibration: Calibration | None = None


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
    cpu_bf16: bool | None = None,
    drafter_shape: ModelShape | None = None,
) -> ConfigPlan:
    """Predicts a configuration and checks whether it can start.

    `cuda_total_gib` is the total that the utilisation multiplies (the card's when unset). `probe` is a log of the
    same model on the card of `probe_cuda_total_gib` (the same card when unset); without one the built-in servers
    calibrate. On a CPU, `cpu_bf16` is whether it has AVX512-BF16, which decides the width of a hybrid's states; None
    is not known, and then only what holds either way is refused. Raises UsageError for what makes no sense (a
    utilisation over 1, an unknown dtype).
    """
    settings = settings_of_config(config)
    if settings.dtype is not None:
        shape = replace(shape, dtype=settings.dtype)
    total = cuda_total_gib if cuda_total_gib is not None else (card.cuda_gib(platform) if card else None)
    if total and not settings.batched_tokens:
        settings = replace(settings, batched_tokens=default_batched_tokens(total))
    layouts = _layouts(settings, shape, version, on_gpu, cpu_bf16, probe, drafter_shape)
    prediction = target = calibration = None
    if total is not None and on_gpu:
        seen_total = total
        if probe is None:
            calibration = built_in_calibration(shape, settings, card, platform, version, total)
        else:
            seen_total = probe_cuda_total_gib or probe.cuda_total_gib or total
            calibration = calibrate(probe, shape, layout_of_server(shape, probe), cuda_total_gib=seen_total)
        target = _target(settings, version, total, card, platform, abs(seen_total - total) < 0.2, request_tokens)
        prediction = predict(target, shape, layouts[0], calibration)
    reasons = [
        cannot_start(
            settings,
            layout=layout,
            prediction=prediction,
            version=version,
            model_max_len=shape.max_position,
            on_gpu=on_gpu,
        )
        for layout in layouts
    ]
    certain = reasons[0] if all(reasons) else None
    return ConfigPlan(prediction, certain, layouts[0], target, calibration)


def layout_of_server(
    shape: ModelShape,
    startup: StartupLog,
    cache_config: Mapping[str, str] | None = None,
    drafter_shape: ModelShape | None = None,
) -> KvLayout:
    """The KV layout of a server that is up, or was: the model's shape with what its log and its labels say.

    `cache_config` holds the labels of vllm:cache_config_info. Raises UsageError where shape and log differ.

    The log's block size comes first, since older labels are wrong for hybrids; dense models never log theirs. Where
    nothing tells the mode in which a hybrid's states are cached, it is the one that meets the printed figures.
    """
    labels = {name: value for name, value in (cache_config or {}).items() if value not in ("", "None")}
    settings = settings_of_log(startup)
    settings = replace(
        settings,
        kv_dtype=labels.get("cache_dtype") or settings.kv_dtype,
        state_dtype=labels.get("mamba_ssm_cache_dtype") or settings.state_dtype,
    )
    if settings.dtype is not None:
        shape = replace(shape, dtype=settings.dtype)
    block = startup.attention_block_tokens or label_int(labels.get("effective_attention_block_size"))
    if block is None and not shape.hybrid:
        block = label_int(labels.get("block_size"))
    told = labels.get("mamba_cache_mode") or settings.mamba_cache_mode
    modes = [told] if told else ["align", "none"] if settings.prefix_caching else ["none", "align"]
    layouts = [
        _layout(settings, shape, drafter_shape, mode, block, base=CPU_BLOCK_TOKENS if startup.device == "cpu" else 16)
        for mode in modes
    ]
    return next((layout for layout in layouts if _meets(layout, startup)), layouts[0])


def _meets(layout: KvLayout, startup: StartupLog) -> bool:
    """Whether printed tokens and GiB are figures of one number of these blocks; True where they are not told."""
    tokens, formula = startup.kv_cache_tokens_logged, startup.kv_cache_tokens_formula
    length = startup.max_concurrency_tokens or startup.max_model_len_effective
    if tokens is None or formula is None or length is None or startup.kv_cache_gib is None:
        return True
    try:
        fewest, most = blocks_from_printed_tokens(tokens, formula, layout, length)
    except UsageError:
        return False
    low, high = blocks_range_for_printed_gib(startup.kv_cache_gib, layout)
    return fewest <= high and low <= most


def label_int(text: str | None) -> int | None:
    """A whole number in a label of /metrics; None where it is none (`None`, `auto`)."""
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def prefix_caching(settings: Settings, version: str) -> bool:
    """Whether a hybrid model's prefix caching is on: as asked, else off up to 0.26 and on from 0.28 (seen in both)."""
    return settings.prefix_caching if settings.prefix_caching is not None else release_minor(version) >= 28


def _layouts(
    settings: Settings,
    shape: ModelShape,
    version: str,
    on_gpu: bool,
    cpu_bf16: bool | None,
    probe: StartupLog | None,
    drafter_shape: ModelShape | None,
) -> list[KvLayout]:
    """The layouts that this configuration may get, the likeliest first."""
    seen = probe is not None and settings.kv_dtype == (probe.kv_cache_dtype or "auto")
    seen = seen and probe is not None and settings.drafter == settings_of_log(probe).drafter
    block = probe.attention_block_tokens if probe is not None and seen else None
    dtypes: list[str | None] = [settings.state_dtype]
    if shape.hybrid and settings.state_dtype is None and shape.state_dtype is None and not on_gpu:
        dtypes = _cpu_state_dtypes(version, cpu_bf16)
        if block is not None and shape.states:
            dtypes = ["float32", None]  # the block that was seen decides which of them fits
    mode = settings.mamba_cache_mode or ("align" if prefix_caching(settings, version) else "none")
    base = settings.block_size or (16 if on_gpu else CPU_BLOCK_TOKENS)
    return [
        _layout(replace(settings, state_dtype=state_dtype), shape, drafter_shape, mode, block, base)
        for state_dtype in _fitting(dtypes, block, shape)
    ]


def _layout(
    settings: Settings, shape: ModelShape, drafter_shape: ModelShape | None, mode: str, block: int | None, base: int
) -> KvLayout:
    return kv_layout(
        shape,
        settings.kv_dtype,
        state_dtype=settings.state_dtype,
        mamba_cache_mode=mode,
        drafter=settings.drafter,
        drafter_shape=drafter_shape,
        base_block_tokens=base,
        block_tokens=block,
        tensor_parallel=settings.tensor_parallel,
        pipeline_parallel=settings.pipeline_parallel,
        max_num_batched_tokens=settings.batched_tokens or SEEN_BATCHED_TOKENS,
    )


def _fitting(dtypes: list[str | None], block: int | None, shape: ModelShape) -> list[str | None]:
    """Of several state dtypes those whose state fits the block that a server was seen to use."""
    if block is None or len(dtypes) == 1:
        return dtypes
    made = {
        dtype: kv_layout(shape, state_dtype=dtype, base_block_tokens=CPU_BLOCK_TOKENS).block_tokens for dtype in dtypes
    }
    return [dtype for dtype in dtypes if made[dtype] == block] or dtypes[-1:]


def _cpu_state_dtypes(version: str, cpu_bf16: bool | None) -> list[str | None]:
    """What a CPU keeps a hybrid's states in. With AVX512-BF16 vLLM resets them to float32 (0.32, 0.33:
    platforms/cpu.py), without they stay as the model is; 0.28 kept them in any case."""
    if release_minor(version) <= 28 or cpu_bf16 is False:
        return [None]
    return ["float32"] if cpu_bf16 else ["float32", None]


def _target(
    settings: Settings,
    version: str,
    total: float,
    card: Card | None,
    platform: str,
    same_machine: bool,
    request_tokens: int | None,
) -> Target:
    load = load_of(settings, total)
    capture = settings.capture
    if capture is None:
        capture = default_capture(load.max_num_seqs, load.batched_tokens, settings.rows_per_sequence)
    return Target(
        settings,
        load,
        cuda_total_gib=total,
        utilization=default_utilization(version) if settings.utilization is None else settings.utilization,
        capture=min(capture, load.batched_tokens),
        version=version,
        platform=platform,
        nvml_mib=card.nvml_mib if card else None,
        request_tokens=request_tokens,
        same_machine=same_machine,
    )

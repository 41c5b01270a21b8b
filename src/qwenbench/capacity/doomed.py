"""Configurations that cannot start, told before they are tried.

Only what is certain counts: a prediction's optimistic end must fall short too, and a rule must have been read in
the version's source or seen on a server. `--force` in the sweep runs them all the same.
"""

from __future__ import annotations

from qwenbench.capacity.kv import GIB, KvLayout, blocks_for_gib, gib_for_blocks, release_minor
from qwenbench.capacity.predict import Prediction
from qwenbench.capacity.settings import Settings

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
    default_batched_tokens: int | None = None,
    on_gpu: bool = True,
) -> str | None:
    """Why this configuration cannot start, with the arithmetic; None when nothing speaks against it.

    `layout` and `model_max_len` come from the model, `prediction` from `predict`; what is missing is not checked.
    """
    return (
        _bad_utilization(settings)
        or _bad_batch(settings, default_batched_tokens)
        or _bad_capture(settings)
        or _no_cache(prediction)
        or (_too_few_blocks(settings, layout, prediction, version, model_max_len, on_gpu) if layout else None)
    )


def _bad_utilization(settings: Settings) -> str | None:
    share = settings.utilization
    if share is not None and not 0 < share <= 1:
        return f"--gpu-memory-utilization {share:g} is not within (0, 1]"
    return None


def _bad_batch(settings: Settings, default_batched_tokens: int | None) -> str | None:
    batched, seqs = settings.batched_tokens or default_batched_tokens, settings.max_num_seqs
    if batched is not None and seqs is not None and batched < seqs:
        return f"--max-num-batched-tokens {batched} is less than --max-num-seqs {seqs}, which vLLM refuses"
    return None


def _bad_capture(settings: Settings) -> str | None:
    rows = settings.rows_per_sequence
    if settings.capture and settings.drafter is not None and settings.capture < rows:
        return (
            f"--max-cudagraph-capture-size {settings.capture} is less than the {rows} rows of one sequence (1 + "
            f"{settings.drafter.tokens} drafted tokens): vLLM finds no valid graph size"
        )
    return None


def _no_cache(prediction: Prediction | None) -> str | None:
    if prediction is not None and prediction.kv_cache_gib_high is None:
        return prediction.basis
    return None


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

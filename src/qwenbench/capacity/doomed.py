"""Configurations that cannot start, told before they are tried.

Only what is certain counts: a prediction's optimistic end must fall short too, and a rule must have been read in
the version's source or seen on a server. `--force` in the sweep runs them all the same.
"""

from __future__ import annotations

import re

from qwenbench.capacity.kv import KvLayout, blocks_for_gib, gib_for_blocks, release_minor
from qwenbench.capacity.predict import Prediction
from qwenbench.engine.config import ServerConfig

NULL_BLOCK_COUNTS_FROM = 32
"""Minor version whose check of max-model-len leaves the null block out (read in 0.32; not in 0.18 to 0.28)."""
MAMBA_CHECK_FROM = 32
"""Minor version that refuses max-num-seqs above the number of blocks for hybrids with FULL graphs."""

_SUFFIXES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cannot_start(
    config: ServerConfig,
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
        _bad_utilization(config)
        or _bad_batch(config, default_batched_tokens)
        or _no_cache(prediction)
        or (_too_few_blocks(config, layout, prediction, version, model_max_len, on_gpu) if layout else None)
    )


def _bad_utilization(config: ServerConfig) -> str | None:
    share = config.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        return f"--gpu-memory-utilization {share:g} is not within (0, 1]"
    return None


def _bad_batch(config: ServerConfig, default_batched_tokens: int | None) -> str | None:
    batched = config.int_flag("max-num-batched-tokens") or default_batched_tokens
    seqs = config.max_num_seqs
    if batched is not None and seqs is not None and batched < seqs:
        return f"--max-num-batched-tokens {batched} is less than --max-num-seqs {seqs}, which vLLM refuses"
    return None


def _no_cache(prediction: Prediction | None) -> str | None:
    if prediction is not None and prediction.kv_cache_gib_high is None:
        return prediction.basis
    return None


def _too_few_blocks(
    config: ServerConfig,
    layout: KvLayout,
    prediction: Prediction | None,
    version: str | None,
    model_max_len: int | None,
    on_gpu: bool,
) -> str | None:
    most = _most_blocks(config, layout, prediction)
    if most is None:
        return None
    blocks, source = most
    minor = release_minor(version) if version else None
    null_block = 1 if minor is not None and minor >= NULL_BLOCK_COUNTS_FROM else 0
    asked = config.flag("max-model-len")
    length = 1 if asked in ("auto", "-1") else config.int_flag("max-model-len") or model_max_len
    if length is not None:
        needed = layout.blocks_per_request(length)
        if needed > blocks - null_block:
            what = _request_in_words(asked, length)
            null = " and vLLM's null block" if null_block else ""
            state = f", {layout.state_blocks} of them states" if layout.state_blocks else ""
            return (
                f"{what} needs {needed} blocks of {layout.block_tokens} tokens{state}{null} "
                f"({gib_for_blocks(needed + null_block, layout):.2f} GiB), but the cache holds {blocks} ({source})"
            )
    seqs = config.max_num_seqs
    eager = "enforce-eager" in config.flags or "--enforce-eager" in config.extra_args
    checked = minor is not None and minor >= MAMBA_CHECK_FROM and on_gpu and not eager
    if checked and layout.state_blocks and seqs is not None and seqs > blocks:
        return (
            f"--max-num-seqs {seqs} exceeds the {blocks} blocks of the cache ({source}): a hybrid model needs a state "
            "block per sequence to capture its graphs"
        )
    return None


def _request_in_words(asked: str | None, length: int) -> str:
    if asked in ("auto", "-1"):
        return "a single token"
    if asked is None:
        return f"one request of the model's own {length:,} tokens (--max-model-len auto would shorten it)"
    return f"one request of --max-model-len {length:,} tokens"


def _most_blocks(config: ServerConfig, layout: KvLayout, prediction: Prediction | None) -> tuple[int, str] | None:
    """The most blocks that the cache can get, and where that comes from."""
    override = config.int_flag("num-gpu-blocks-override")
    if override is not None:
        return override, f"--num-gpu-blocks-override {override}"
    given = config.flag("kv-cache-memory-bytes")
    exact = parse_bytes(given) if given is not None else None
    if exact is not None:
        return exact // layout.bytes_per_block, f"--kv-cache-memory-bytes {given}"
    if prediction is not None and prediction.kv_cache_gib_high is not None:
        high = prediction.kv_cache_gib_high
        return blocks_for_gib(high, layout), f"at most {high:.2f} GiB; {prediction.basis}"
    return None


def parse_bytes(text: str) -> int | None:
    """A size as vLLM takes it: 67108864, 64M (2^20), 1.5g (10^9); None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgKMG]?)", text.strip())
    if found is None:
        return None
    return int(float(found.group(1)) * _SUFFIXES[found.group(2)])

"""KV-cache arithmetic: blocks, tokens and requests, for vLLM's paged cache of dense and hybrid models and of drafters.

vLLM splits the layers into groups of the same number of layers; every group draws blocks from one pool, and
a block holds one page for each layer of a group. Rules read in vLLM 0.32's source (kv_cache_utils,
kv_cache_interface, platforms/interface) and checked against servers of 0.20.2, 0.28 and 0.32.

Speculative decoding, read in vLLM 0.26 and 0.33 (config/speculative.py, v1/core/sched/scheduler.py): every method
gives each state group one more state a drafted token and the convolution one more row; MTP, EAGLE and DFlash add
attention layers of their own; MTP, EAGLE and draft models write their tokens' keys ahead (DFlash one more).
Checked against four recorded servers and two published ones (docs/memory.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwenbench.capacity.model_shape import DTYPE_BYTES, AttentionLayers, ModelShape
from qwenbench.engine.startup_log import tokens_formula
from qwenbench.errors import UsageError

_WITHOUT_LAYERS = ("ngram", "ngram_gpu", "suffix", "prompt_lookup", "extract_hidden_states", "custom_class")
_EAGLE = ("eagle", "eagle3", "medusa", "mlp_speculator")
DEFAULT_TOKENS = {"mtp": 1, "dflash": 15}
"""Drafted tokens where --speculative-config names none: MTP's one layer, DFlash's block of 16 less the known token."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """What --speculative-config asks for."""

    method: str
    """`mtp`, `eagle`, `dflash`, `draft_model` or `ngram` (which stands for all that keep no keys)."""
    tokens: int
    """Drafted tokens a step (num_speculative_tokens)."""
    model: str | None = None
    """The drafter's own folder or name; None for MTP and n-grams."""

    @property
    def lookahead_tokens(self) -> int:
        """Tokens beyond the request's own whose keys the cache holds."""
        if self.method == "ngram":
            return 0
        return self.tokens + 1 if self.method == "dflash" else self.tokens

    @property
    def rows_per_sequence(self) -> int:
        """Rows of a decode step for one sequence: the known token and the drafted ones. Graphs must cover
        sequences x this."""
        return 1 + self.tokens


def parse_drafter(value: str | Mapping[str, Any] | None) -> Drafter | None:
    """Reads --speculative-config as vLLM takes it: JSON or the dictionary that a log repeats; None: no drafter.

    Raises UsageError for what is no such object and for a method that is not known.
    """
    if value is None or value in ("", {}):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UsageError(f"--speculative-config {value!r}: no JSON ({error.msg})") from None
    if not isinstance(value, Mapping):
        raise UsageError(f"--speculative-config: {value!r} is no JSON object like " + '{"method": "mtp", ...}')
    model = value.get("model")
    named = str(value.get("method") or ("draft_model" if model else "")).lower()
    method = _method(named, str(model or ""))
    tokens = value.get("num_speculative_tokens", DEFAULT_TOKENS.get(method))
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise UsageError("--speculative-config: num_speculative_tokens must be a whole number from 1 on")
    return Drafter(method, tokens, str(model) if model and method != "mtp" else None)


def _method(named: str, model: str) -> str:
    if named in _WITHOUT_LAYERS:
        return "ngram"
    if named == "mtp" or named.endswith("_mtp"):
        return "mtp"
    if "dflash" in named or (named == "draft_model" and "dflash" in model.lower()):
        return "dflash"
    if named in _EAGLE or (named == "draft_model" and "eagle" in model.lower()):
        return "eagle"
    if named == "draft_model":
        return "draft_model"
    raise UsageError(f"--speculative-config: the method {named!r} is not known here")


def with_drafter(shape: ModelShape, drafter: Drafter | None, own: ModelShape | None = None) -> ModelShape:
    """The shape with the drafter's attention layers beside the model's.

    `own` is the drafter's shape, from its config.json. Without it, MTP's layers are as the model's own full attention;
    EAGLE is taken as one such layer. Raises UsageError for a drafter whose layers cannot be known without `own`.
    """
    if drafter is None or drafter.method == "ngram":
        return shape
    if own is not None and drafter.method != "mtp":
        return replace(shape, attention=_joined(shape.attention, own.attention))
    full = next((layers for layers in shape.attention if layers.window is None), None)
    if drafter.method in ("dflash", "draft_model") or full is None:
        raise UsageError(
            f"the drafter {drafter.model or drafter.method} has layers that only its own config.json tells: give its "
            "folder as the model in --speculative-config"
        )
    count = max(1, shape.mtp_layers) if drafter.method == "mtp" else 1
    return replace(shape, attention=_joined(shape.attention, (replace(full, count=count),)))


def _joined(main: tuple[AttentionLayers, ...], drafter: tuple[AttentionLayers, ...]) -> tuple[AttentionLayers, ...]:
    """Layers of one kind stand in one group, whichever model they belong to."""
    counts: dict[AttentionLayers, int] = {}
    for layers in (*main, *drafter):
        kind = replace(layers, count=0)
        counts[kind] = counts.get(kind, 0) + layers.count
    return tuple(replace(kind, count=count) for kind, count in counts.items())


GIB = 1 << 30
PADDING_RATIO = 1.5
"""Where the layer kinds' counts differ by less, groups take the larger count and are padded (0.32)."""
NULL_BLOCKS = 1
"""vLLM keeps one block of the pool for itself."""


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share a block table."""

    kind: str
    """`full`, `window` or `state`."""
    block_tokens: int
    window: int | None = None
    state_blocks: int = 0
    """State groups: the most blocks that a request holds, whatever its length; vLLM's own bound."""
    state_blocks_held: int | None = None
    """State groups: blocks that a running request holds but at the moment when it passes a block's end. With prefix
    caching (mode `align`) one fewer than the bound; None: as many."""

    def blocks_of(self, tokens: int, in_flight_tokens: int, *, held: bool = False) -> int:
        """Blocks of this group that a request of so many tokens holds: vLLM's bound, or those held while it runs."""
        if self.kind == "state":
            return self.state_blocks_held if held and self.state_blocks_held is not None else self.state_blocks
        blocks = -(-tokens // self.block_tokens)
        if self.window is None:
            return blocks
        # vLLM's admission rule: the window, what is in flight, and one block for the unaligned start.
        kept = min(self.window - 1 + in_flight_tokens, tokens)
        return min(blocks, -(-kept // self.block_tokens) + 1)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """How a model's cache is cut into blocks on one card."""

    block_tokens: int
    """Tokens of one attention block."""
    page_bytes: int
    """Bytes of one block in one layer."""
    layers_per_group: int
    groups: tuple[KvGroup, ...]
    in_flight_tokens: int = 2048
    """Tokens scheduled at a time (max-num-batched-tokens): sliding-window groups hold them on top."""
    lookahead_tokens: int = 0
    """Drafted tokens whose keys are written ahead of the request's own."""

    @property
    def bytes_per_block(self) -> int:
        return self.page_bytes * self.layers_per_group

    @property
    def state_blocks(self) -> int:
        """Blocks that every request holds for its states, whatever its length."""
        return sum(group.state_blocks for group in self.groups if group.kind == "state")

    def blocks_per_request(self, tokens: int) -> int:
        """The most blocks that one request of this many tokens (prompt and output) takes: what vLLM's start-up check
        and its printed concurrency count with."""
        return sum(group.blocks_of(tokens, self.in_flight_tokens) for group in self.groups)

    def blocks_held(self, tokens: int) -> int:
        """Blocks that a running request of this many tokens holds, its drafted tokens included.

        On a real server with prefix caching 15 requests of one attention block ran at once in 63 blocks (60 used):
        1 + 3 states each, where vLLM's bound is 1 + 6.
        """
        ahead = tokens + self.lookahead_tokens
        return sum(group.blocks_of(ahead, self.in_flight_tokens, held=True) for group in self.groups)


def kv_layout(
    shape: ModelShape,
    kv_dtype: str = "auto",
    *,
    state_dtype: str | None = None,
    mamba_cache_mode: str = "none",
    drafter: Drafter | None = None,
    drafter_shape: ModelShape | None = None,
    base_block_tokens: int = 16,
    block_tokens: int | None = None,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    max_num_batched_tokens: int = 2048,
) -> KvLayout:
    """The block layout that vLLM derives for a model.

    `base_block_tokens` is the platform's block size (16 on NVIDIA cards, 128 on the CPU): hybrids raise it
    in its steps until one attention page holds a state. `block_tokens` is the attention block size where the
    log tells it, which then wins. `state_dtype` overrides the config's (`--mamba-ssm-cache-dtype`).
    `drafter` adds its layers (`drafter_shape`, from its own config.json) and states. Under tensor parallelism heads and
    states are split, under pipeline parallelism layers: the layout is one card's, of the stage with most layers.
    Raises UsageError for a model without a cache and for dtypes that are not known.
    """
    shape = with_drafter(shape, drafter, drafter_shape)
    speculative_tokens = drafter.tokens if drafter is not None else 0
    cache_dtype = shape.dtype if kv_dtype == "auto" else kv_dtype
    element = _dtype_bytes(cache_dtype, "--kv-cache-dtype")
    if not shape.attention and not shape.states:
        raise UsageError(f"{shape.name}: no layer of this model keeps a KV cache")
    token_bytes = [layers.token_elements(tensor_parallel) * element for layers in shape.attention]
    state_bytes = _state_page(shape, state_dtype, speculative_tokens, tensor_parallel)
    largest_token = max(token_bytes, default=0)
    block = block_tokens or base_block_tokens
    if block_tokens is None and largest_token and state_bytes:
        block = max(block, base_block_tokens * -(-state_bytes // (base_block_tokens * largest_token)))
    page = block * largest_token if largest_token else state_bytes
    if page < state_bytes:
        raise UsageError(
            f"{shape.name}: an attention block of {block} tokens ({page} bytes) is smaller than a state "
            f"({state_bytes} bytes): the block size and the model do not belong together"
        )
    counts = [layers.count for layers in shape.attention] + [states.count for states in shape.states]
    # vLLM's rule: the smallest count of a kind, or the largest where padding to it wastes little
    per_group = max(counts) if max(counts) < min(counts) * PADDING_RATIO else min(counts)
    groups: list[KvGroup] = []
    for layers, size in zip(shape.attention, token_bytes, strict=True):
        if page % size:
            raise UsageError(
                f"{shape.name}: its attention layers have pages that do not divide each other: not supported"
            )
        kind = "full" if layers.window is None else "window"
        groups += [KvGroup(kind, page // size, layers.window)] * -(-layers.count // per_group)
    bound, held = _state_blocks(mamba_cache_mode, speculative_tokens), 1 + speculative_tokens
    for states in shape.states:
        group = KvGroup("state", block, state_blocks=bound, state_blocks_held=held)
        groups += [group] * -(-states.count // per_group)
    stage = -(-per_group // max(1, pipeline_parallel))
    ahead = drafter.lookahead_tokens if drafter is not None else 0
    return KvLayout(block, page, stage, tuple(groups), max_num_batched_tokens, ahead)


def blocks_for_gib(gib: float, layout: KvLayout) -> int:
    """Whole blocks that so much KV memory holds, the null block included."""
    return max(0, int(gib * GIB // layout.bytes_per_block))


def blocks_range_for_printed_gib(printed_gib: float, layout: KvLayout, decimals: int = 2) -> tuple[int, int]:
    """Fewest and most blocks that a printed (rounded) figure stands for."""
    half = 0.5 * 10**-decimals
    return blocks_for_gib(printed_gib - half, layout), blocks_for_gib(printed_gib + half, layout)


def gib_for_blocks(blocks: int, layout: KvLayout) -> float:
    return blocks * layout.bytes_per_block / GIB


def kv_cache_tokens(blocks: int, layout: KvLayout, max_model_len: int | None) -> int:
    """The longest single request that fits, in tokens: this project's kv_cache_tokens.

    For a hybrid with one attention group this is min(max_model_len, block x (blocks - 1 - state blocks)).
    """
    usable = blocks - NULL_BLOCKS
    if layout.blocks_per_request(1) > usable:
        return 0
    if all(group.kind == "state" or group.window is not None for group in layout.groups):
        # Nothing grows with the length for ever: only the model's own limit bounds it.
        if max_model_len is None:
            raise UsageError("this model's cache does not grow with the context: give its max-model-len")
        most = max_model_len
    else:
        tokens_per_block = max(group.block_tokens for group in layout.groups if group.kind != "state")
        most = usable * tokens_per_block if max_model_len is None else max_model_len
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if layout.blocks_per_request(middle) <= usable:
            low = middle
        else:
            high = middle - 1
    return low


def requests_that_fit(blocks: int, layout: KvLayout, tokens_per_request: int) -> int:
    """Requests of this length (prompt and output, in tokens) that run at a time without a preemption."""
    if tokens_per_request <= 0:
        raise UsageError(f"a request of {tokens_per_request} tokens holds no cache: give its full length")
    return max(0, blocks - NULL_BLOCKS) // layout.blocks_held(tokens_per_request)


def printed_tokens(version: str, blocks: int, layout: KvLayout, max_model_len: int) -> int:
    """The number behind `KV cache size: N tokens` in a version's log.

    Up to 0.20.0: blocks // groups x the smallest block size. Later: int(blocks / blocks of one request of
    max_model_len x max_model_len). Null block included in both.
    """
    release_minor(version)  # says what is no version
    if tokens_formula(version) == "blocks_per_group":
        return blocks // len(layout.groups) * min(group.block_tokens for group in layout.groups)
    return int(blocks / layout.blocks_per_request(max_model_len) * max_model_len)


_MOST_TRIED = 100_000


def blocks_from_printed_tokens(tokens: int, formula: str, layout: KvLayout, max_model_len: int) -> tuple[int, int]:
    """Fewest and most blocks that a printed token count stands for, the inverse of `printed_tokens`."""
    if formula == "blocks_per_group":
        groups = len(layout.groups)
        count = tokens // min(group.block_tokens for group in layout.groups)
        return count * groups, count * groups + groups - 1
    per_request = layout.blocks_per_request(max_model_len)
    first = tokens * per_request // max(max_model_len, 1)
    last = min(-(-(tokens + 1) * per_request // max(max_model_len, 1)), first + _MOST_TRIED)
    fitting = [blocks for blocks in range(first, last + 1) if int(blocks / per_request * max_model_len) == tokens]
    if not fitting:
        raise UsageError(
            f"{tokens:,} printed tokens belong to no number of blocks of {layout.block_tokens} tokens at a "
            f"max-model-len of {max_model_len:,}: model, cache mode or version differ from what was assumed"
        )
    return fitting[0], fitting[-1]


def release_of(version: str) -> tuple[int, int, int]:
    """The three numbers of a version; 0.20 without a patch number stands for its later releases. Raises UsageError."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    if found is None:
        raise UsageError(f"{version!r} is no vLLM version: give it as 0.18 or 0.20.2")
    return int(found[1]), int(found[2]), int(found[3]) if found[3] else 99


def release_minor(version: str) -> int:
    """The y of a version 0.y.z. Raises UsageError for a text that is no version."""
    major, minor, _ = release_of(version)
    return minor if major == 0 else 1000


def _dtype_bytes(name: str, option: str) -> int:
    try:
        return DTYPE_BYTES[name]
    except KeyError:
        known = ", ".join(DTYPE_BYTES)
        raise UsageError(f"{option} {name!r}: its size is not known here (known: {known})") from None


def _state_page(shape: ModelShape, state_dtype: str | None, speculative: int, tensor_parallel: int) -> int:
    if not shape.states:
        return 0
    chosen = state_dtype if state_dtype not in (None, "auto") else shape.state_dtype
    recurrent = _dtype_bytes(chosen or shape.dtype, "--mamba-ssm-cache-dtype")
    conv = _dtype_bytes(shape.dtype, "dtype")
    pages = []
    for layers in shape.states:
        rows = layers.conv_elements // layers.conv_width
        elements = layers.conv_elements + rows * speculative
        pages.append((elements * conv + layers.recurrent_elements * recurrent) // tensor_parallel)
    return max(pages)


def _state_blocks(mode: str, speculative: int) -> int:
    if mode == "align":
        return 2 + speculative
    if mode in ("none", ""):
        return 1 + speculative
    raise UsageError(f"mamba cache mode {mode!r}: its blocks per request are not known here (none, align are)")

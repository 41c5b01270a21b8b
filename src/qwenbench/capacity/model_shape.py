"""What a Hugging Face config.json says about a model: which layers keep what in the KV cache, and how wide they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwenbench.capacity.modules import text_part
from qwenbench.capacity.weights import Weights, WeightsUnknown, count_weights
from qwenbench.errors import UsageError

DTYPE_BYTES = {
    "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2,
    "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "int8": 1,
}  # fmt: skip
"""Bytes per element of the dtype names that vLLM uses for caches and states."""


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """Layers that keep keys and values per token."""

    count: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    """Sliding window (or chunk) in tokens; None attends to everything."""
    latent_dim: int | None = None
    """MLA: elements of the shared latent vector per token, kept instead of keys and values."""

    def token_elements(self, tensor_parallel: int = 1) -> int:
        """Elements that one token takes in one layer on one card."""
        if self.latent_dim is not None:
            return self.latent_dim
        return 2 * max(1, self.kv_heads // tensor_parallel) * self.head_dim


@dataclass(frozen=True, slots=True)
class StateLayers:
    """Layers that keep one state per request whatever its length (gated delta net, Mamba)."""

    count: int
    conv_elements: int
    """Convolution state in the model's dtype, elements in one layer."""
    recurrent_elements: int
    """Recurrent state in the state dtype, elements in one layer."""
    conv_width: int = 1
    """Rows of the convolution state: speculation adds one row per speculated token."""


@dataclass(frozen=True, slots=True)
class LayerWidths:
    """Widths, in elements, of what a layer holds for each token while it computes: what decides peak activations."""

    hidden: int
    vocab: int
    mlp: int
    """Intermediate width of the MLP; of a mixture of experts those that one token takes."""
    attention: int
    """Queries of all heads."""
    keys: int = 0
    """Gated delta net: all key heads. 0 without such layers."""
    values: int = 0
    """Gated delta net: all value heads."""
    state: int = 0
    """Gated delta net: elements of one layer's recurrent state."""
    vision_hidden: int = 0
    """Width of the vision encoder; 0 without one."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as far as memory planning needs it."""

    name: str
    attention: tuple[AttentionLayers, ...]
    states: tuple[StateLayers, ...]
    dtype: str
    state_dtype: str | None
    """dtype of recurrent states named by the config; None leaves it to vLLM's platform default."""
    max_position: int | None
    """The model's own context limit, tokens."""
    weights: Weights | None = None
    """Measured (the built-in model), from the files' headers, or counted from config.json; None where none can be."""
    weights_unknown: str = ""
    """Why the weights are not known."""
    widths: LayerWidths | None = None
    mtp_layers: int = 0
    """Layers of the built-in drafter (MTP)."""

    @property
    def weights_gib(self) -> float | None:
        """Weights of the whole model, vision part included and drafter left out, GiB; None: not known."""
        return None if self.weights is None else self.weights.total_gib()

    @property
    def layers(self) -> int:
        """Layers that keep something in the cache."""
        return sum(part.count for part in self.attention) + sum(part.count for part in self.states)

    @property
    def hybrid(self) -> bool:
        """Whether attention layers and state layers share the cache."""
        return bool(self.states)

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any], name: str = "model") -> ModelShape:
        """Reads a parsed config.json. Raises UsageError naming the field that is missing or unusable."""
        if not isinstance(config, Mapping):
            raise UsageError(f"{name}: config.json holds no JSON object")
        body = text_part(config)
        kinds = _layer_kinds(body, name)
        dtype = str(body.get("dtype") or body.get("torch_dtype") or config.get("torch_dtype") or "bfloat16")
        weights, unknown = None, ""
        try:
            weights = count_weights(config)
        except WeightsUnknown as error:
            unknown = str(error)
        mtp = _optional_int(body, "mtp_num_hidden_layers") or _optional_int(body, "num_nextn_predict_layers")
        return cls(
            name=name,
            attention=_attention_layers(body, kinds, name),
            states=_state_layers(body, kinds, name),
            dtype=dtype.removeprefix("torch."),
            state_dtype=body.get("mamba_ssm_dtype") or body.get("mamba_ssm_cache_dtype"),
            max_position=_optional_int(body, "max_position_embeddings"),
            weights=weights,
            weights_unknown=unknown,
            widths=_widths(body, config),
            mtp_layers=mtp or 0,
        )


def _widths(body: Mapping[str, Any], config: Mapping[str, Any]) -> LayerWidths | None:
    hidden, vocab = _optional_int(body, "hidden_size"), _optional_int(body, "vocab_size")
    if hidden is None or vocab is None:
        return None
    heads = _optional_int(body, "num_attention_heads") or 0
    head_dim = _optional_int(body, "head_dim") or (hidden // heads if heads else 0)
    wide_dim = max(head_dim, _optional_int(body, "global_head_dim") or 0)
    mlp = _optional_int(body, "intermediate_size") or 0
    each = _optional_int(body, "num_experts_per_tok") or _optional_int(body, "experts_per_token")
    if each:
        width = _optional_int(body, "moe_intermediate_size") or mlp
        mlp = each * width + (_optional_int(body, "shared_expert_intermediate_size") or 0)
    value_dim = _optional_int(body, "linear_value_head_dim") or 0
    key_dim = _optional_int(body, "linear_key_head_dim") or 0
    values = value_dim * (_optional_int(body, "linear_num_value_heads") or 0)
    vision = config.get("vision_config")
    return LayerWidths(
        hidden=hidden,
        vocab=vocab,
        mlp=mlp,
        attention=heads * wide_dim * (2 if body.get("attn_output_gate") else 1),
        keys=key_dim * (_optional_int(body, "linear_num_key_heads") or 0),
        values=values,
        state=values * key_dim,
        vision_hidden=(_optional_int(vision, "hidden_size") or 0) if isinstance(vision, Mapping) else 0,
    )


def _int(body: Mapping[str, Any], field: str, name: str) -> int:
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        state = "is missing" if value is None else f"is {value!r}, no positive whole number"
        raise UsageError(f"{name}: the field {field!r} of config.json {state}: the KV cache cannot be computed")
    return value


def _optional_int(body: Mapping[str, Any], field: str) -> int | None:
    value = body.get(field)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


_KIND_NAMES = {
    "full_attention": "full", "attention": "full", "global_attention": "full", "hybrid": "full",
    "sliding_attention": "window", "sliding_window": "window", "chunked_attention": "window",
    "linear_attention": "delta", "gated_delta_net": "delta",
    "mamba": "mamba", "mamba2": "mamba",
    "moe": "none", "mlp": "none",
}  # fmt: skip


def _layer_kinds(body: Mapping[str, Any], name: str) -> Counter[str]:
    count = _int(body, "num_hidden_layers", name)
    listed = body.get("layer_types") or body.get("layers_block_type")
    if isinstance(listed, list):
        if len(listed) != count:
            raise UsageError(f"{name}: config.json lists {len(listed)} layer types for {count} layers")
        if set(listed) == {"linear_attention"} and _optional_int(body, "full_attention_interval"):
            listed = None  # Qwen3.8's checkpoints: the interval is what its code goes by
    if isinstance(listed, list):
        unknown = sorted({str(kind) for kind in listed if kind not in _KIND_NAMES})
        if unknown:
            raise UsageError(f"{name}: config.json has layers of an unknown type: {', '.join(unknown)}")
        return Counter(_KIND_NAMES[kind] for kind in listed)
    pattern = body.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        letters = {"M": "mamba", "*": "full", "-": "none", "E": "none"}
        return Counter(letters.get(letter, "none") for letter in pattern)
    interval = _optional_int(body, "full_attention_interval")
    if interval and "linear_num_value_heads" in body:
        full = count // interval
        return Counter(full=full, delta=count - full)
    if not _window(body):
        return Counter(full=count)
    every = _optional_int(body, "sliding_window_pattern")
    full = count // every if every else 0
    return Counter(full=full, window=count - full)


def _window(body: Mapping[str, Any]) -> int | None:
    if body.get("use_sliding_window") is False:
        return None
    return _optional_int(body, "sliding_window") or _optional_int(body, "attention_chunk_size")


def _attention_layers(body: Mapping[str, Any], kinds: Counter[str], name: str) -> tuple[AttentionLayers, ...]:
    if not kinds["full"] and not kinds["window"]:
        return ()
    heads = _int(body, "num_attention_heads", name)
    kv_heads = _optional_int(body, "num_key_value_heads") or heads
    head_dim = _optional_int(body, "head_dim")
    if head_dim is None:
        head_dim = _int(body, "hidden_size", name) // heads
    rank = _optional_int(body, "kv_lora_rank")
    latent = rank + (_optional_int(body, "qk_rope_head_dim") or 0) if rank else None
    full = AttentionLayers(
        kinds["full"],
        _optional_int(body, "num_global_key_value_heads") or kv_heads,
        _optional_int(body, "global_head_dim") or head_dim,
        latent_dim=latent,
    )
    window = AttentionLayers(kinds["window"], kv_heads, head_dim, _window(body), latent)
    if kinds["window"] and window.window is None:
        raise UsageError(f"{name}: config.json has sliding-window layers but no 'sliding_window'")
    return tuple(layers for layers in (full, window) if layers.count)


def _state_layers(body: Mapping[str, Any], kinds: Counter[str], name: str) -> tuple[StateLayers, ...]:
    layers = []
    if kinds["delta"]:
        key_dim = _int(body, "linear_key_head_dim", name)
        value_dim = _int(body, "linear_value_head_dim", name)
        value_heads = _int(body, "linear_num_value_heads", name)
        rows = _int(body, "linear_conv_kernel_dim", name) - 1
        channels = 2 * key_dim * _int(body, "linear_num_key_heads", name) + value_dim * value_heads
        layers.append(StateLayers(kinds["delta"], channels * rows, value_heads * value_dim * key_dim, max(1, rows)))
    if kinds["mamba"]:
        state = _optional_int(body, "mamba_d_state") or _int(body, "ssm_state_size", name)
        heads = _optional_int(body, "mamba_n_heads") or _int(body, "mamba_num_heads", name)
        head_dim = _optional_int(body, "mamba_d_head") or _int(body, "mamba_head_dim", name)
        groups = _optional_int(body, "mamba_n_groups") or _optional_int(body, "n_groups") or 1
        rows = (_optional_int(body, "mamba_d_conv") or _int(body, "conv_kernel", name)) - 1
        channels = heads * head_dim + 2 * groups * state
        layers.append(StateLayers(kinds["mamba"], channels * rows, heads * head_dim * state, max(1, rows)))
    return tuple(layers)

"""What a Hugging Face config.json says about a model: which layers keep what in the KV cache, and how wide they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwenbench.capacity.modules import dtype_of, layer_kinds, optional_int, text_part, window_tokens
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
        _int(body, "num_hidden_layers", name)
        try:
            kinds = Counter(layer_kinds(body))
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
        weights, unknown = None, ""
        try:
            weights = count_weights(config)
            if not 0 < weights.total_gib() < _MOST_GIB:
                weights, unknown = None, "config.json has sizes that no model has"
        except WeightsUnknown as error:
            unknown = str(error)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            # a stranger's file: whatever stands where a number or an object should costs the weights only
            unknown = f"config.json is malformed ({' '.join(str(error).split())[:80]})"
        mtp = optional_int(body, "mtp_num_hidden_layers", "num_nextn_predict_layers")
        return cls(
            name=name,
            attention=_attention_layers(body, kinds, name),
            states=_state_layers(body, kinds, name),
            dtype=dtype_of(config),
            state_dtype=str(body.get("mamba_ssm_dtype") or body.get("mamba_ssm_cache_dtype") or "") or None,
            max_position=optional_int(body, "max_position_embeddings"),
            weights=weights,
            weights_unknown=unknown,
            widths=_widths(body, config),
            mtp_layers=mtp or 0,
        )


def _widths(body: Mapping[str, Any], config: Mapping[str, Any]) -> LayerWidths | None:
    hidden, vocab = optional_int(body, "hidden_size"), optional_int(body, "vocab_size")
    if hidden is None or vocab is None:
        return None
    heads = optional_int(body, "num_attention_heads") or 0
    head_dim = optional_int(body, "head_dim") or (hidden // heads if heads else 0)
    wide_dim = max(head_dim, optional_int(body, "global_head_dim") or 0)
    mlp = optional_int(body, "intermediate_size") or 0
    each = optional_int(body, "num_experts_per_tok", "experts_per_token")
    if each:
        width = optional_int(body, "moe_intermediate_size") or mlp
        mlp = each * width + (optional_int(body, "shared_expert_intermediate_size") or 0)
    value_dim = optional_int(body, "linear_value_head_dim") or 0
    key_dim = optional_int(body, "linear_key_head_dim") or 0
    values = value_dim * (optional_int(body, "linear_num_value_heads") or 0)
    vision = config.get("vision_config")
    return LayerWidths(
        hidden=hidden,
        vocab=vocab,
        mlp=mlp,
        attention=heads * wide_dim * (2 if body.get("attn_output_gate") else 1),
        keys=key_dim * (optional_int(body, "linear_num_key_heads") or 0),
        values=values,
        state=values * key_dim,
        vision_hidden=(optional_int(vision, "hidden_size") or 0) if isinstance(vision, Mapping) else 0,
    )


def _int(body: Mapping[str, Any], field: str, name: str) -> int:
    value = optional_int(body, field)
    if value is None:
        told = body.get(field)
        state = "is missing" if told is None else f"is {str(told)[:40]!r}, no whole number of a model's size"
        raise UsageError(f"{name}: the field {field!r} of config.json {state}: the KV cache cannot be computed")
    return value


_MOST_GIB = 1e6


def _attention_layers(body: Mapping[str, Any], kinds: Counter[str], name: str) -> tuple[AttentionLayers, ...]:
    if not kinds["full"] and not kinds["window"]:
        return ()
    heads = _int(body, "num_attention_heads", name)
    kv_heads = optional_int(body, "num_key_value_heads") or heads
    head_dim = optional_int(body, "head_dim")
    if head_dim is None:
        head_dim = _int(body, "hidden_size", name) // heads
        if head_dim == 0:
            raise UsageError(f"{name}: config.json has more attention heads than its hidden_size")
    rank = optional_int(body, "kv_lora_rank")
    latent = rank + (optional_int(body, "qk_rope_head_dim") or 0) if rank else None
    full = AttentionLayers(
        kinds["full"],
        optional_int(body, "num_global_key_value_heads") or kv_heads,
        optional_int(body, "global_head_dim") or head_dim,
        latent_dim=latent,
    )
    window = AttentionLayers(kinds["window"], kv_heads, head_dim, window_tokens(body), latent)
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
        state = optional_int(body, "mamba_d_state") or _int(body, "ssm_state_size", name)
        heads = optional_int(body, "mamba_n_heads") or _int(body, "mamba_num_heads", name)
        head_dim = optional_int(body, "mamba_d_head") or _int(body, "mamba_head_dim", name)
        groups = optional_int(body, "mamba_n_groups", "n_groups") or 1
        rows = (optional_int(body, "mamba_d_conv") or _int(body, "conv_kernel", name)) - 1
        channels = heads * head_dim + 2 * groups * state
        layers.append(StateLayers(kinds["mamba"], channels * rows, heads * head_dim * state, max(1, rows)))
    return tuple(layers)


SEED_MODEL = "ig1/Qwen3.5-9B-NVFP4"
_PRINTED = "printed by vLLM 0.20.2 and 0.26.0 (10.57 GiB, 9.71 without the vision part, 10.70 with MTP)"
SEED_WEIGHTS = Weights(9.71, 0.86, 0.13, 0.005, _PRINTED)


@dataclass(frozen=True, slots=True)
class KnownModel:
    names: tuple[str, ...]
    """Names without organisation and quantisation, in lower case."""
    config: Mapping[str, Any]
    source: str


def _qwen35(hidden: int, layers: int, kv_heads: int, value_heads: int, **more: Any) -> dict[str, Any]:
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_key_value_heads": kv_heads, "head_dim": 256,
        "vocab_size": 248_320, "max_position_embeddings": 262_144, "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": 16, "linear_num_value_heads": value_heads, "mamba_ssm_dtype": "float32",
        "attn_output_gate": True, "mtp_num_hidden_layers": 1, "dtype": "bfloat16", **more,
    }  # fmt: skip
    vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "spatial_merge_size": 2}
    return {"text_config": text, "vision_config": {**vision, "out_hidden_size": hidden}}


_LLAMA31_8B = {
    "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072, "torch_dtype": "bfloat16",
}  # fmt: skip
_GPT_OSS_20B = {
    "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24, "num_attention_heads": 64,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201_088, "max_position_embeddings": 131_072,
    "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "torch_dtype": "bfloat16",
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                                   "lm_head"],
    },
}  # fmt: skip
_GEMMA4_31B = {
    "hidden_size": 5376, "intermediate_size": 21_504, "num_hidden_layers": 60, "num_attention_heads": 32,
    "num_key_value_heads": 16, "head_dim": 256, "num_global_key_value_heads": 4, "global_head_dim": 512,
    "attention_k_eq_v": True, "sliding_window": 1024, "vocab_size": 262_144, "max_position_embeddings": 262_144,
    "tie_word_embeddings": True, "dtype": "bfloat16",
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 10,
}  # fmt: skip

KNOWN_MODELS = (
    KnownModel(
        ("qwen3.5-9b",),
        _qwen35(4096, 32, 4, 32, num_attention_heads=16, intermediate_size=12_288),
        "config.json of ig1/Qwen3.5-9B-NVFP4, checked against recorded servers",
    ),
    KnownModel(
        ("qwen3.5-4b",),
        _qwen35(2560, 32, 4, 32, num_attention_heads=16, intermediate_size=9216, tie_word_embeddings=True),
        "config.json of Qwen/Qwen3.5-4B as quoted in public tests; KV checked against a published log of 0.29",
    ),
    KnownModel(
        ("qwen3.5-27b", "qwen3.6-27b", "qwen3.8-27b"),
        _qwen35(5120, 64, 4, 48, num_attention_heads=24, intermediate_size=17_408),
        "config.json of Qwen/Qwen3.6-27B at revision 6a9e13bd, quoted whole in public tests; Qwen3.5-27B and "
        "Qwen3.8-27B (revision 1d4bf0f2) have the same sizes; KV checked against published logs",
    ),
    KnownModel(
        ("qwen3.5-35b-a3b", "qwen3.6-35b-a3b"),
        _qwen35(
            2048, 40, 2, 32, num_attention_heads=16, num_experts=256, num_experts_per_tok=8,
            moe_intermediate_size=512, shared_expert_intermediate_size=512,
        ),
        "config.json of Qwen3.6-35B-A3B as verified by the club-3090 project; KV checked against published logs",
    ),
    KnownModel(
        ("gpt-oss-20b",), _GPT_OSS_20B, "config.json of openai/gpt-oss-20b as documented in public repositories"
    ),
    KnownModel(
        ("gemma-4-31b", "gemma-4-31b-it"),
        _GEMMA4_31B,
        "config.json of google/gemma-4-31B-it as recorded by the club-3090 project; its vision part is not counted",
    ),
    KnownModel(
        ("llama-3.1-8b", "llama-3.1-8b-instruct", "meta-llama-3.1-8b-instruct"),
        _LLAMA31_8B,
        "config.json of meta-llama/Llama-3.1-8B as quoted in public repositories",
    ),
)  # fmt: skip

_QUANTISED = re.compile(
    r"[-_.](?:nvfp4|fp8|fp4|mxfp\d|awq|gptq|int[48]|w\d+a\d+|autoround|bnb|bf16|dynamic|ct|modelopt|quantized"
    r"|mixed|fast|kv\w*|block|4bit|8bit|\d+bit|qat)(?=[-_.]|$)",
    re.IGNORECASE,
)


def known_shape(model: str) -> ModelShape | None:
    """The built-in shape of a model name, None when there is none (then a config.json is needed).

    A quantised checkpoint has its base model's shape; what its weights take is known for the seed's only.
    """
    name = model.rstrip("/").split("/")[-1].lower()
    base = _QUANTISED.sub("", name)
    found = next((known for known in KNOWN_MODELS if base in known.names), None)
    if found is None:
        return None
    shape = ModelShape.from_hf_config(found.config, model)
    if name == SEED_MODEL.rpartition("/")[2].lower():
        return replace(shape, weights=SEED_WEIGHTS)
    if base != name and "bf16" not in model.lower():
        base_model = found.names[0]
        why = f"{base_model}'s shape is built in, but not how {model} is quantised: give its folder or config.json"
        return replace(shape, weights=None, weights_unknown=why)
    return shape


_seed = known_shape(SEED_MODEL)
assert _seed is not None
SEED_SHAPE = _seed
"""The seed's model."""

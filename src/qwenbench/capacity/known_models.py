"""The models that owners run, built in: what memory needs of their config.json, each with its source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.weights import Weights

SEED_MODEL = "ig1/Qwen3.5-9B-NVFP4"
SEED_WEIGHTS = Weights(
    9.71,
    0.86,
    0.13,
    0.005,
    "printed by vLLM 0.20.2 and 0.26.0 (10.57 GiB, 9.71 without the vision part, 10.70 with MTP)",
)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model whose shape is built in."""

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


def _base_name(model: str) -> tuple[str, bool]:
    """The name without organisation and quantisation, and whether it carried one."""
    name = model.rstrip("/").split("/")[-1].lower()
    base = _QUANTISED.sub("", name)
    return base, base != name


def known_shape(model: str) -> ModelShape | None:
    """The built-in shape of a model name, None when there is none (then a config.json is needed).

    A quantised checkpoint has its base model's shape; what its weights take is known for the seed's only.
    """
    base, quantised = _base_name(model)
    found = next((known for known in KNOWN_MODELS if base in known.names), None)
    if found is None:
        return None
    shape = ModelShape.from_hf_config(found.config, model)
    if model.rstrip("/").split("/")[-1].lower() == SEED_MODEL.rsplit("/", maxsplit=1)[-1].lower():
        return replace(shape, weights=SEED_WEIGHTS)
    if quantised and "bf16" not in model.lower():
        base_model = found.names[0]
        why = f"{base_model}'s shape is built in, but not how {model} is quantised: give its folder or config.json"
        return replace(shape, weights=None, weights_unknown=why)
    return shape


_seed = known_shape(SEED_MODEL)
assert _seed is not None
SEED_SHAPE = _seed
"""The seed's model."""

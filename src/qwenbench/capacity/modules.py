"""The modules that a config.json implies, with their numbers of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Module:
    name: str
    """As checkpoints name it (`model.layers.0.mlp.down_proj`), without `language_model`."""
    parameters: float
    linear: bool = True
    """Whether a quantisation of linear layers may hold it; embeddings, routers, convolutions and norms are not."""
    part: str = "text"
    """`text`, `vision` or `drafter`."""


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config.json."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def dtype_of(config: Mapping[str, Any]) -> str:
    """The dtype that a config.json names for the model, bfloat16 where it names none."""
    body = text_part(config)
    named = body.get("dtype") or body.get("torch_dtype") or config.get("torch_dtype") or "bfloat16"
    return str(named).removeprefix("torch.")


def modules_of(config: Mapping[str, Any]) -> Iterator[Module]:
    """All modules of a model. Raises KeyError or ValueError for what is missing or not known."""
    body = text_part(config)
    hidden = body["hidden_size"]
    table = float(body["vocab_size"] * hidden)
    yield Module("model.embed_tokens", table, linear=False)
    if not body.get("tie_word_embeddings", config.get("tie_word_embeddings", False)):
        yield Module("lm_head", table)
    kinds = layer_kinds(body)
    if uncounted := set(kinds) - {"full", "window", "delta"}:
        raise ValueError(f"the parameters of its layers ({', '.join(sorted(uncounted))}) are not counted here")
    for index, kind in enumerate(kinds):
        prefix = f"model.layers.{index}"
        if kind == "delta":
            yield from _delta_net(body, prefix)
        else:
            yield from _attention(body, prefix, kind)
        yield from _mlp(body, prefix, index)
        yield Module(f"{prefix}.input_layernorm", 2.0 * hidden, linear=False)
    yield from _drafter(body)
    yield from _vision(config)


_KIND_NAMES = {
    "full_attention": "full", "attention": "full", "global_attention": "full", "hybrid": "full",
    "sliding_attention": "window", "sliding_window": "window", "chunked_attention": "window",
    "linear_attention": "delta", "gated_delta_net": "delta",
    "mamba": "mamba", "mamba2": "mamba",
    "moe": "none", "mlp": "none",
}  # fmt: skip


_MOST_LAYERS = 10_000


def layer_kinds(body: Mapping[str, Any]) -> list[str]:
    """What each layer is: `full` or `window` attention, `delta` (gated delta net), `mamba`, or `none` of them.

    Raises ValueError for kinds that are not known, KeyError without a number of layers.
    """
    count = body["num_hidden_layers"]
    for field in ("num_hidden_layers", "mtp_num_hidden_layers", "num_nextn_predict_layers"):
        if isinstance(body.get(field), int) and body[field] > _MOST_LAYERS:
            raise ValueError(f"the field {field!r} of config.json is larger than {_MOST_LAYERS:,}")
    every = optional_int(body, "full_attention_interval")
    listed = body.get("layer_types") or body.get("layers_block_type")
    if isinstance(listed, list):
        listed = [str(kind) for kind in listed]
        if len(listed) != count:
            raise ValueError(f"config.json lists {len(listed)} layer types for {count} layers")
        if not (every and set(listed) == {"linear_attention"}):  # Qwen3.8's: the interval is what its code goes by
            unknown = sorted({kind for kind in listed if kind not in _KIND_NAMES})
            if unknown:
                raise ValueError(f"config.json has layers of an unknown type: {', '.join(unknown)}")
            return [_KIND_NAMES[kind] for kind in listed]
    pattern = body.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return [{"M": "mamba", "*": "full"}.get(letter, "none") for letter in pattern]
    if every and "linear_num_value_heads" in body:
        return ["delta" if (index + 1) % every else "full" for index in range(count)]
    if window_tokens(body) is None:
        return ["full"] * count
    full = count // (optional_int(body, "sliding_window_pattern") or count + 1)
    return ["full"] * full + ["window"] * (count - full)


def window_tokens(body: Mapping[str, Any]) -> int | None:
    """Length of a sliding window (or chunk); None where attention goes over everything."""
    if body.get("use_sliding_window") is False:
        return None
    return optional_int(body, "sliding_window", "attention_chunk_size")


def optional_int(body: Mapping[str, Any], *fields: str) -> int | None:
    """The first of these fields that holds a positive whole number, below 2^31."""
    values = (body.get(field) for field in fields)
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 < v < 1 << 31), None)


def _attention(body: Mapping[str, Any], prefix: str, kind: str) -> Iterator[Module]:
    hidden, heads = body["hidden_size"], body["num_attention_heads"]
    name = f"{prefix}.self_attn"
    if body.get("kv_lora_rank"):
        rank, rope = body["kv_lora_rank"], body.get("qk_rope_head_dim") or 0
        nope, value = body["qk_nope_head_dim"], body["v_head_dim"]
        query = body.get("q_lora_rank")
        if query:
            yield Module(f"{name}.q_a_proj", hidden * query)
        yield Module(f"{name}.q_b_proj", (query or hidden) * heads * (nope + rope))
        yield Module(f"{name}.kv_a_proj_with_mqa", hidden * (rank + rope))
        yield Module(f"{name}.kv_b_proj", rank * heads * (nope + value))
        yield Module(f"{name}.o_proj", heads * value * hidden)
        return
    wide = kind == "full" and body.get("global_head_dim")
    head_dim = body["global_head_dim"] if wide else body.get("head_dim") or hidden // heads
    kv_heads = (wide and body.get("num_global_key_value_heads")) or body.get("num_key_value_heads") or heads
    yield Module(f"{name}.q_proj", hidden * head_dim * heads * (2 if body.get("attn_output_gate") else 1))
    yield Module(f"{name}.k_proj", hidden * head_dim * kv_heads)
    if not (wide and body.get("attention_k_eq_v")):
        yield Module(f"{name}.v_proj", hidden * head_dim * kv_heads)
    yield Module(f"{name}.o_proj", heads * head_dim * hidden)


def _delta_net(body: Mapping[str, Any], prefix: str) -> Iterator[Module]:
    hidden, heads = body["hidden_size"], body["linear_num_value_heads"]
    keys = body["linear_num_key_heads"] * body["linear_key_head_dim"]
    values = heads * body["linear_value_head_dim"]
    name = f"{prefix}.linear_attn"
    yield Module(f"{name}.in_proj_qkv", hidden * (2 * keys + values))
    yield Module(f"{name}.in_proj_z", hidden * values)
    yield Module(f"{name}.in_proj_a", hidden * heads)
    yield Module(f"{name}.in_proj_b", hidden * heads)
    yield Module(f"{name}.out_proj", values * hidden)
    yield Module(f"{name}.conv1d", float((2 * keys + values) * body["linear_conv_kernel_dim"]), linear=False)


def _mlp(body: Mapping[str, Any], prefix: str, index: int) -> Iterator[Module]:
    hidden = body["hidden_size"]
    experts = body.get("num_experts") or body.get("num_local_experts") or body.get("n_routed_experts")
    dense_first = body.get("first_k_dense_replace") or 0
    if not experts or index < dense_first or index in (body.get("mlp_only_layers") or ()):
        yield from _gated(f"{prefix}.mlp", hidden, body["intermediate_size"])
        return
    width = body.get("moe_intermediate_size") or body["intermediate_size"]
    for part in _gated(f"{prefix}.mlp.experts.0", hidden, width):
        yield Module(part.name, part.parameters * experts)
    yield Module(f"{prefix}.mlp.gate", float(hidden * experts), linear=False)
    shared = body.get("shared_expert_intermediate_size") or (body.get("n_shared_experts") or 0) * width
    if shared:
        yield from _gated(f"{prefix}.mlp.shared_expert", hidden, shared)
    if body.get("enable_moe_block"):  # Gemma 4: a dense block beside the experts
        yield from _gated(f"{prefix}.mlp.dense", hidden, body["intermediate_size"])


def _gated(name: str, hidden: int, width: int) -> Iterator[Module]:
    for part in ("gate_proj", "up_proj", "down_proj"):
        yield Module(f"{name}.{part}", hidden * width)


def _drafter(body: Mapping[str, Any]) -> Iterator[Module]:
    """The built-in MTP layers: full attention and the model's own MLP, plus the projection that joins two inputs."""
    layers = body.get("mtp_num_hidden_layers") or body.get("num_nextn_predict_layers") or 0
    for index in range(layers):
        prefix = f"mtp.layers.{index}"
        modules = [
            *_attention(body, prefix, "full"),
            *_mlp(body, prefix, body["num_hidden_layers"] + index),
            Module("mtp.fc", 2.0 * body["hidden_size"] ** 2, linear=False),
        ]
        for module in modules:
            yield Module(module.name, module.parameters, module.linear, "drafter")


def _vision(config: Mapping[str, Any]) -> Iterator[Module]:
    vision = config.get("vision_config")
    if not isinstance(vision, Mapping):
        return
    hidden = vision["hidden_size"]
    layers = vision.get("depth") or vision["num_hidden_layers"]
    block = 4.0 * hidden * hidden + 2.0 * hidden * vision["intermediate_size"]
    yield Module("model.visual.blocks", layers * block, part="vision")
    merged = hidden * vision.get("spatial_merge_size", 1) ** 2
    merger = float(merged * (merged + vision.get("out_hidden_size", hidden)))
    yield Module("model.visual.merger", merger, part="vision")

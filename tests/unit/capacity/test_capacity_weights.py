"""Weights by config.json and by the headers of safetensors files, for each way of quantising them."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.kv import kv_layout
from qwenbench.capacity.model_shape import KNOWN_MODELS, ModelShape
from qwenbench.capacity.weights import GIB, WeightsUnknown, count_weights, weights_from_headers
from qwenbench.errors import UsageError
from qwenbench.sweep.model_files import read_shape, stored_weights

DENSE: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 32_000, "torch_dtype": "bfloat16",
}  # fmt: skip
EMBEDDINGS = 2 * 32_000 * 1024
LINEARS = 4 * (1024 * 1024 * 2 + 2 * 1024 * 256 + 3 * 1024 * 4096)
NORMS = 4 * 2 * 1024 + 1024


def bytes_of(quantization: dict[str, Any] | None = None) -> float:
    return count_weights({**DENSE, "quantization_config": quantization} if quantization else DENSE).text_gib * GIB


def test_a_dense_model_is_all_its_parameters() -> None:
    assert bytes_of() == pytest.approx(2 * (EMBEDDINGS + LINEARS + NORMS), rel=1e-3)


NVFP4_WEIGHTS = {"num_bits": 4, "type": "float", "group_size": 16}


@pytest.mark.parametrize(
    ("quantization", "bytes_per_weight"),
    [
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, 1.0),
        ({"quant_method": "fbgemm_fp8"}, 1.0),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 0.5 + 1 / 16),
        ({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, 0.5 + 1 / 16),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 1.0),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 0.5 + 2.5 / 128),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, 0.5 + 2 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True}, 1.0),
        ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}, 0.5 + 2 / 128),
        (
            {
                "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": NVFP4_WEIGHTS}},
            },
            0.5 + 1 / 16,
        ),
        (
            {
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 8, "group_size": None}}},
            },
            1.0,
        ),
    ],
)  # fmt: skip
def test_each_format_has_its_width(quantization: dict[str, Any], bytes_per_weight: float) -> None:
    ignored = {**quantization, "ignore": ["lm_head"]}
    assert bytes_of(ignored) == pytest.approx(2 * (EMBEDDINGS + NORMS) + bytes_per_weight * LINEARS, rel=2e-3)


def test_a_mix_of_two_formats_by_pattern() -> None:
    mixed = {
        "quant_method": "compressed-tensors", "format": "mixed-precision", "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["re:.*mlp.*"], "format": "nvfp4-pack-quantized", "weights": NVFP4_WEIGHTS},
            "group_1": {"targets": ["re:.*self_attn.*"], "weights": {"num_bits": 8, "type": "float"}},
        },
    }  # fmt: skip
    mlp, attention = 4 * 3 * 1024 * 4096, 4 * (2 * 1024 * 1024 + 2 * 1024 * 256)
    assert bytes_of(mixed) == pytest.approx(2 * (EMBEDDINGS + NORMS) + 0.5625 * mlp + attention, rel=2e-3)


def test_modelopts_mixed_precision_names_each_layer() -> None:
    layers = {f"model.layers.{n}.mlp.{part}": {"quant_algo": "NVFP4"} for n in range(4)
              for part in ("gate_proj", "up_proj", "down_proj")}  # fmt: skip
    given = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    mlp, rest = 4 * 3 * 1024 * 4096, 4 * (2 * 1024 * 1024 + 2 * 1024 * 256)
    assert bytes_of(given) == pytest.approx(2 * (EMBEDDINGS + NORMS + rest) + 0.5625 * mlp, rel=2e-3)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "quip"}, "quip"),
        ({}, None),
        ({"quant_method": "modelopt", "quant_algo": "FP3"}, "FP3"),
        ({"quant_method": "compressed-tensors"}, "config_groups"),
        ({"quant_method": "awq"}, "bits"),
    ],
)
def test_what_is_not_known_is_said_and_not_guessed(quantization: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert bytes_of(quantization) == bytes_of()
        return
    with pytest.raises(WeightsUnknown, match=words):
        bytes_of(quantization)


@pytest.mark.parametrize(
    ("model", "gib"),
    # 27B in BF16: 51.1 GiB published; 9B's language part: 9.71 GiB in NVFP4, printed, is another checkpoint.
    [("qwen3.5-27b", 51.1), ("llama-3.1-8b", 14.99), ("gpt-oss-20b", 13.0)],
)
def test_built_in_models_against_printed_sizes(model: str, gib: float) -> None:
    known = next(known for known in KNOWN_MODELS if model in known.names)
    assert count_weights(known.config).total_gib() == pytest.approx(gib, rel=0.05)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    offset, header = 0, {}
    for name, (dtype, shape) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset]}
    text = json.dumps({**header, "__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


TENSORS = {
    "model.language_model.layers.0.mlp.up_proj.weight": ("U8", [4096, 512]),
    "model.language_model.layers.0.mlp.up_proj.weight_scale": ("F8_E4M3", [4096, 64]),
    "model.visual.blocks.0.attn.qkv.weight": ("BF16", [1024, 1024]),
    "mtp.layers.0.mlp.up_proj.weight": ("BF16", [1024, 512]),
}


def test_headers_of_a_folder_are_what_its_server_loads(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**DENSE, "quantization_config": {"quant_method": "quip"}}))
    write_safetensors(tmp_path / "model-00001-of-00002.safetensors", dict(list(TENSORS.items())[:2]))
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", dict(list(TENSORS.items())[2:]))
    weights = stored_weights(tmp_path)
    assert weights is not None
    assert weights.text_gib * GIB == 4096 * 512 + 4096 * 64
    assert weights.vision_gib * GIB == 2 * 1024 * 1024
    assert weights.drafter_gib * GIB == 2 * 1024 * 512
    shape = read_shape(tmp_path, "mine")
    assert shape.weights == weights, "files outrank a quantisation that cannot be counted"


def test_a_folder_without_weights_falls_back_to_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    assert stored_weights(tmp_path) is None
    shape = read_shape(tmp_path, "mine")
    assert shape.weights is not None
    assert "counted from config.json" in shape.weights.source


def test_broken_headers_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{")
    assert stored_weights(tmp_path) is None
    with pytest.raises(WeightsUnknown, match="not known"):
        weights_from_headers([{"a": {"dtype": "Q9", "shape": [1]}}], "file")


@given(st.integers(1, 64), st.sampled_from([16, 32, 64, 128]))
def test_fewer_bits_and_larger_groups_never_weigh_more(bits: int, group: int) -> None:
    def size(bits: int, group: int) -> float:
        return bytes_of({"quant_method": "gptq", "bits": bits, "group_size": group, "sym": True})

    assert size(bits, group) <= size(bits + 1, group)
    assert size(bits, 2 * group) <= size(bits, group)


ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 64) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = [*DENSE, "layer_types", "quantization_config", "mtp_num_hidden_layers", "mamba_ssm_dtype", "vision_config"]
GROUPS = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": NVFP4_WEIGHTS}}}


@given(st.dictionaries(st.sampled_from(FIELDS), ANY_VALUE, max_size=3), st.sampled_from(list(GROUPS)), ANY_VALUE)
def test_whatever_stands_in_a_config_json_is_a_shape_or_a_sentence(
    fields: dict[str, Any], key: str, value: Any
) -> None:
    for config in ({**DENSE, **fields}, {**DENSE, "quantization_config": {**GROUPS, key: value}, **fields}):
        with suppress(UsageError):
            shape = ModelShape.from_hf_config(config)
            assert shape.weights is None or 0 < shape.weights.total_gib() < 1e6
            with suppress(UsageError):
                kv_layout(shape)

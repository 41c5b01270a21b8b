"""The size of a model's weights: counted from config.json to a few per cent, or from the headers of its files, exactly.

Neither needs the weights themselves. A quantisation that is not known here is said (`WeightsUnknown`), not guessed.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from qwenbench.capacity.modules import Module, dtype_of, modules_of, text_part

GIB = 1 << 30
COUNT_ERROR = 0.05
"""Share by which a count from config.json may be off: padding, repacked copies, heads that it does not tell.
For the seed's model the count is 1.4 % below what vLLM printed."""
FILES_ERROR = 0.02
"""Share by which loaded weights may differ from their files: padded and repacked quantised layers."""

FLOAT_BITS = {"bfloat16": 16, "float16": 16, "half": 16, "float32": 32, "float": 32}
_TENSOR_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1, "F4": 0.5,
}  # fmt: skip
_VISION = re.compile(
    r"(?:^|\.)(?:visual|vision_\w+|audio_\w+|multi_modal_projector|mm_projector|embed_(?:vision|audio))\."
)
_DRAFTER = re.compile(r"(?:^|\.)(?:mtp\w*|nextn\w*|eagle\w*)\.")


class WeightsUnknown(ValueError):
    """The size of the weights cannot be counted; the text says why."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a whole model in GiB, before they are split over cards."""

    text_gib: float
    """The language model, embeddings and head included."""
    vision_gib: float = 0.0
    """Vision and audio parts, which --language-model-only leaves out."""
    drafter_gib: float = 0.0
    """The built-in drafter (MTP), which is loaded with --speculative-config only."""
    error: float = 0.0
    """Share by which the total may be off."""
    source: str = ""

    def total_gib(self, *, text_only: bool = False, drafter: bool = False) -> float:
        """What a server loads, GiB."""
        return self.text_gib + (0.0 if text_only else self.vision_gib) + (self.drafter_gib if drafter else 0.0)


@dataclass(frozen=True, slots=True)
class _Format:
    bits: float
    group: int | None = None
    """Weights that share a scale; None: one scale a row or tensor, which counts for nothing."""
    scale_bytes: float = 2.0
    zero_points: bool = False

    @property
    def bytes_per_weight(self) -> float:
        scales = (self.scale_bytes + (self.bits / 8 if self.zero_points else 0.0)) / self.group if self.group else 0.0
        return self.bits / 8 + scales


_NVFP4 = _Format(4, 16, 1.0)
_FP8 = _Format(8)
_MXFP4 = _Format(4, 32, 1.0)
_ALGORITHMS = {
    "NVFP4": _NVFP4, "W4A16_NVFP4": _NVFP4, "NVFP4_AWQ": _NVFP4, "W4A8_NVFP4_FP8": _NVFP4, "FP8": _FP8,
    "FP8_PB_WO": _FP8, "FP8_PER_CHANNEL_PER_TOKEN": _FP8, "MXFP8": _Format(8, 32, 1.0), "MXFP4": _MXFP4,
    "W4A16_AWQ": _Format(4, 128), "W4A8_AWQ": _Format(4, 128), "INT8_SQ": _Format(8), "W8A16": _Format(8),
}  # fmt: skip
"""NVIDIA ModelOpt's names (quant_algo)."""


def count_weights(config: Mapping[str, Any]) -> Weights:
    """Counts the parameters that config.json implies, each at its stored width.

    Raises WeightsUnknown for layers or quantisations that are not known here.
    """
    scheme = _scheme(config)
    try:
        sizes = {"text": 0.0, "vision": 0.0, "drafter": 0.0}
        for module in modules_of(config):
            sizes[module.part] += module.parameters * scheme.bytes_per_weight(module)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise WeightsUnknown(f"config.json lacks {error} to count the weights") from None
    except ValueError as error:
        raise WeightsUnknown(str(error)) from None
    text, vision, drafter = (size / GIB for size in sizes.values())
    return Weights(text, vision, drafter, COUNT_ERROR, f"counted from config.json ({scheme.name})")


def weights_from_headers(headers: Iterable[Mapping[str, Any]], source: str) -> Weights:
    """The sum of all tensors in the headers of a model's safetensors files.

    A header is the JSON object at a file's beginning: tensor name -> {dtype, shape, ...} and `__metadata__`.
    Raises WeightsUnknown for a dtype whose width is not known and when there is no tensor.
    """
    sizes = {"text": 0.0, "vision": 0.0, "drafter": 0.0}
    for header in headers:
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            try:
                width = _TENSOR_BYTES[tensor["dtype"]]
                size = width * prod(tensor["shape"])
            except (KeyError, TypeError):
                raise WeightsUnknown(f"{source}: the tensor {name} has a dtype or shape that is not known") from None
            sizes["drafter" if _DRAFTER.search(name) else "vision" if _VISION.search(name) else "text"] += size
    if not any(sizes.values()):
        raise WeightsUnknown(f"{source}: no tensor in it")
    text, vision, drafter = (size / GIB for size in sizes.values())
    return Weights(text, vision, drafter, FILES_ERROR, source)


class _Scheme:
    def __init__(self, name: str, plain_bytes: float, groups: list[tuple[list[str], _Format]], ignored: list[str]):
        self.name = name
        self._plain = plain_bytes
        self._groups = groups
        self._ignored = ignored

    def bytes_per_weight(self, module: Module) -> float:
        if not module.linear or not self._groups or any(_matches(text, module.name) for text in self._ignored):
            return self._plain
        by_name = next((form for targets, form in self._groups if any(_matches(t, module.name) for t in targets)), None)
        if by_name is not None:
            return by_name.bytes_per_weight
        if module.name in ("lm_head",) or module.part != "text":
            return self._plain  # left alone unless a target names it
        every = next((form for targets, form in self._groups if "Linear" in targets), None)
        return every.bytes_per_weight if every is not None else self._plain


def _matches(pattern: str, name: str) -> bool:
    """Whether an entry of a target or ignore list means this module.

    Entries are regular expressions (`re:`), globs, full names or parts of one; models with a vision part put
    `language_model` into the names of the others.
    """
    variants = (name, "model.language_model." + name.removeprefix("model."), "language_model." + name)
    if pattern.startswith("re:"):
        return any(re.match(pattern[3:], variant) for variant in variants)
    if any(mark in pattern for mark in "*?["):
        return any(fnmatch.fnmatchcase(variant, glob) for variant in variants for glob in (pattern, pattern + ".*"))
    if pattern == "Linear":
        return False
    return any(variant == pattern or f".{pattern}." in f".{variant}." for variant in variants)


def _scheme(config: Mapping[str, Any]) -> _Scheme:
    dtype = dtype_of(config)
    plain = FLOAT_BITS.get(dtype, 16) / 8
    quantization = config.get("quantization_config") or text_part(config).get("quantization_config")
    if not quantization:
        return _Scheme(dtype, plain, [], [])
    if not isinstance(quantization, Mapping):
        raise WeightsUnknown("quantization_config of config.json is no object")
    method = str(quantization.get("quant_method") or "").lower()
    ignored = [
        str(name)
        for key in ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers")
        for name in quantization.get(key) or ()
    ]
    read = _READERS.get(method)
    if read is None:
        raise WeightsUnknown(f"the quantisation {method or '(unnamed)'!r} of config.json is not known here")
    name, groups = read(quantization)
    return _Scheme(name, plain, groups, ignored)


_Groups = list[tuple[list[str], _Format]]


def _compressed_tensors(quantization: Mapping[str, Any]) -> tuple[str, _Groups]:
    groups: _Groups = []
    names = []
    for group in (quantization.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        bits = weights.get("num_bits")
        if not isinstance(bits, int):
            raise WeightsUnknown("a group of compressed-tensors names no num_bits for its weights")
        size = weights.get("group_size")
        size = size if isinstance(size, int) and size > 0 else None
        form = str(group.get("format") or quantization.get("format") or "")
        four_bit_float = bits == 4 and weights.get("type") == "float"
        nvfp4 = "nvfp4" in form or (four_bit_float and size == 16)
        mxfp4 = "mxfp4" in form or (four_bit_float and size == 32)
        stored = _NVFP4 if nvfp4 else _MXFP4 if mxfp4 else _Format(bits, size, 2.0, weights.get("symmetric") is False)
        groups.append(([str(target) for target in group.get("targets") or ["Linear"]], stored))
        names.append("NVFP4" if nvfp4 else "MXFP4" if mxfp4 else f"{bits} bit")
    if not groups:
        raise WeightsUnknown("compressed-tensors without config_groups")
    return "compressed-tensors " + " + ".join(dict.fromkeys(names)), groups


def _modelopt(quantization: Mapping[str, Any]) -> tuple[str, _Groups]:
    layers = quantization.get("quantized_layers")
    if isinstance(layers, Mapping) and layers:
        named = {
            name: layer.get("quant_algo") if isinstance(layer, Mapping) else layer for name, layer in layers.items()
        }
        return "ModelOpt mixed precision", [([str(name)], _algorithm(form)) for name, form in named.items()]
    if quantization.get("config_groups"):
        name, groups = _compressed_tensors(quantization)
        return name.replace("compressed-tensors", "ModelOpt"), groups
    algorithm = str(quantization.get("quant_algo") or "").upper()
    return f"ModelOpt {algorithm}", [(["Linear"], _algorithm(algorithm))]


def _algorithm(name: object) -> _Format:
    form = _ALGORITHMS.get(str(name or "").upper())
    if form is None:
        raise WeightsUnknown(f"ModelOpt's quant_algo {name!r} is not known here")
    return form


def _grouped(quantization: Mapping[str, Any]) -> tuple[str, _Groups]:
    method = str(quantization["quant_method"])
    bits = quantization.get("bits") or quantization.get("w_bit")
    if not isinstance(bits, int):
        raise WeightsUnknown(f"quantization_config of {method} names no bits")
    size = quantization.get("group_size") or quantization.get("q_group_size")
    zero_points = bool(quantization.get("zero_point")) or quantization.get("sym") is False
    form = _Format(bits, size if isinstance(size, int) and size > 0 else None, 2.0, zero_points)
    return f"{method} {bits} bit", [(["Linear"], form)]


def _bitsandbytes(quantization: Mapping[str, Any]) -> tuple[str, _Groups]:
    eight = bool(quantization.get("load_in_8bit"))
    return f"bitsandbytes {8 if eight else 4} bit", [(["Linear"], _FP8 if eight else _Format(4, 64, 1.0))]


_READERS: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, _Groups]]] = {
    "compressed-tensors": _compressed_tensors,
    **dict.fromkeys(("modelopt", "modelopt_fp4", "modelopt_mixed"), _modelopt),
    **dict.fromkeys(("fp8", "fbgemm_fp8"), lambda _: ("FP8", [(["Linear"], _FP8)])),
    **dict.fromkeys(("awq", "gptq", "auto-round", "auto_round", "intel/auto-round"), _grouped),
    "mxfp4": lambda _: ("MXFP4 experts", [(["re:.*experts.*"], _MXFP4)]),
    "bitsandbytes": _bitsandbytes,
}

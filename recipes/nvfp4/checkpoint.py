"""Checks an NVFP4 checkpoint against the format that the model card's checkpoint has.

    python checkpoint.py FOLDER [--json]

Reads config.json and the headers of the .safetensors files, no weights, so that it takes a second and needs no torch.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "nvfp4-pack-quantized"
GROUP = 16
"""Weights that share one FP8 scale (NVFP4's definition)."""
IGNORED = ("re:.*lm_head", "re:.*visual.*", "re:.*embed_tokens$", "re:.*linear_attn.*", "re:^mtp.*")
"""Layers that stay as they are: those of the card's checkpoint, and the ones that draft tokens (MTP)."""
_SCALES = {"weight_scale": "F8_E4M3", "weight_global_scale": "F32", "input_global_scale": "F32"}


@dataclass(frozen=True)
class Tensor:
    """What a safetensors header says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass
class Verdict:
    """What was found, and what does not agree with the card's format (empty: all does)."""

    quantized_layers: int = 0
    kept_layers: int = 0
    drafting_tensors: int = 0
    bytes: int = 0
    bytes_as_bf16: int = 0
    kv_cache_scheme: bool = False
    wrong: list[str] = field(default_factory=list)


def headers(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor over all .safetensors files of a folder. Raises ValueError when there is none or one is broken."""
    found: dict[str, Tensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: holds no .safetensors file")
    for file in files:
        with file.open("rb") as stream:
            head = stream.read(8)
            try:
                size = struct.unpack("<Q", head)[0]
                table = json.loads(stream.read(size))
            except (struct.error, ValueError, MemoryError, OverflowError) as error:
                raise ValueError(f"{file}: no safetensors file") from error
        for name, entry in table.items():
            if name != "__metadata__":
                found[name] = Tensor(entry["dtype"], tuple(entry["shape"]))
    return found


def check(folder: Path) -> Verdict:
    """Compare a checkpoint's config and tensors with the card's. Raises ValueError when it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}/config.json: {error}") from error
    verdict = Verdict()
    _check_config(config.get("quantization_config"), verdict)
    _check_tensors(headers(folder), verdict)
    return verdict


def _check_config(quantization: Mapping[str, Any] | None, verdict: Verdict) -> None:
    if not quantization:
        verdict.wrong.append("config.json has no quantization_config")
        return
    groups = list((quantization.get("config_groups") or {}).values())
    group = groups[0] if groups else {}
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    wanted = {
        "quant_method": (quantization.get("quant_method"), "compressed-tensors"),
        "format": (group.get("format") or quantization.get("format"), FORMAT),
        "config_groups": (len(groups), 1),
        "targets": (group.get("targets"), ["Linear"]),
        "weights.num_bits": (weights.get("num_bits"), 4),
        "weights.type": (weights.get("type"), "float"),
        "weights.group_size": (weights.get("group_size"), GROUP),
        "weights.strategy": (weights.get("strategy"), "tensor_group"),
        "weights.scale_dtype": (weights.get("scale_dtype"), "torch.float8_e4m3fn"),
        "input_activations.num_bits": (inputs.get("num_bits"), 4),
        "input_activations.dynamic": (inputs.get("dynamic"), "local"),
        "input_activations.group_size": (inputs.get("group_size"), GROUP),
    }
    verdict.wrong += [
        f"quantization_config {name} is {is_!r}, the card's is {should!r}"
        for name, (is_, should) in wanted.items()
        if is_ != should
    ]
    verdict.kv_cache_scheme = bool(quantization.get("kv_cache_scheme"))


def _check_tensors(tensors: Mapping[str, Tensor], verdict: Verdict) -> None:
    for name, tensor in tensors.items():
        size = _BYTES.get(tensor.dtype, 4) * math.prod(tensor.shape)
        verdict.bytes += size
        if name.endswith(".weight_packed"):
            verdict.quantized_layers += 1
            verdict.bytes_as_bf16 += 4 * math.prod(tensor.shape)  # two weights a byte, two bytes a weight
            _check_layer(name.removesuffix(".weight_packed"), tensor, tensors, verdict)
        elif not name.endswith(tuple(_SCALES)):
            verdict.drafting_tensors += name.startswith("mtp.")
            verdict.kept_layers += name.endswith(".weight") and len(tensor.shape) == 2
            verdict.bytes_as_bf16 += size
            if _should_be_quantized(name, tensor):
                verdict.wrong.append(f"{name} is {tensor.dtype}, not quantised")
    if not verdict.quantized_layers:
        verdict.wrong.append("no layer is quantised")


_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1, "I64": 8}


def _ignored(layer: str) -> bool:
    return any(re.match(pattern.removeprefix("re:"), layer) for pattern in IGNORED)


def _should_be_quantized(name: str, tensor: Tensor) -> bool:
    layer = name.removesuffix(".weight")
    linear = re.search(r"\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)$", layer)
    return bool(linear) and len(tensor.shape) == 2 and not _ignored(layer)


def _check_layer(layer: str, packed: Tensor, tensors: Mapping[str, Tensor], verdict: Verdict) -> None:
    if _ignored(layer):
        verdict.wrong.append(f"{layer} is quantised, the card keeps it as it is")
    if packed.dtype != "U8":
        verdict.wrong.append(f"{layer}.weight_packed is {packed.dtype}, the card's is U8 (two weights a byte)")
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    shapes = {"weight_scale": (rows, columns // GROUP), "weight_global_scale": (1,), "input_global_scale": (1,)}
    for suffix, dtype in _SCALES.items():
        scale = tensors.get(f"{layer}.{suffix}")
        if scale is None:
            verdict.wrong.append(f"{layer}.{suffix} is missing")
        elif (scale.dtype, scale.shape) != (dtype, shapes[suffix]):
            verdict.wrong.append(
                f"{layer}.{suffix} is {scale.dtype} {list(scale.shape)}, the card's is {dtype} {list(shapes[suffix])}"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Exit 0: the card's format; 1: it differs; 2: it cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    try:
        verdict = check(options.folder)
    except ValueError as error:
        print(f"checkpoint.py: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(verdict)))
    else:
        print(
            f"{verdict.quantized_layers} layers in NVFP4, {verdict.kept_layers} kept; {verdict.bytes / 2**30:.2f} GiB, "
            f"{verdict.bytes_as_bf16 / 2**30:.2f} GiB before"
        )
        for line in verdict.wrong:
            print(f"differs: {line}")
        print("as the model card's checkpoint" if not verdict.wrong else f"{len(verdict.wrong)} differences")
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

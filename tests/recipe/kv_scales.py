"""A checkpoint whose FP8 cache has the static scales that one wants: to break a cache on purpose.

    python kv_scales.py MODEL OUT SCALE

OUT is MODEL by links, with k_scale and v_scale of every layer in a file beside its weights and the scheme in its
config.json, as llm-compressor writes them. At 0.001 everything beyond 0.448 is clipped when it goes into the cache;
at 1.0 it is vLLM's own default. Needs no torch.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

SCHEME = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def write(model: Path, out: Path, scale: float) -> None:
    """Write the checkpoint into the new folder `out`."""
    out.mkdir(parents=True)
    for file in model.iterdir():
        if file.name != "config.json":
            (out / file.name).symlink_to(file.resolve())
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed",
        "config_groups": {}, "ignore": [], "kv_cache_scheme": SCHEME,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    names = [
        f"model.layers.{layer}.self_attn.{which}_scale"
        for layer in range(config["num_hidden_layers"])
        for which in "kv"
    ]
    table = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    scales = struct.pack(f"<{len(names)}f", *[scale] * len(names))
    (out / "kv_scales.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + scales)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: kv_scales.py MODEL OUT SCALE")
    write(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))

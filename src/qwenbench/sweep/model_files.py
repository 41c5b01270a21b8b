"""A model's files, wherever they are: the folder given, the Hugging Face cache, or what is built in.

Only config.json and the headers of the weights' files are read, a few MB at most.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from qwenbench.capacity.configuration import layout_of_server
from qwenbench.capacity.kv import Drafter, KvLayout
from qwenbench.capacity.model_shape import ModelShape, known_shape
from qwenbench.capacity.settings import settings_of_log
from qwenbench.capacity.weights import Weights, WeightsUnknown, weights_from_headers
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, MIB, open_input, read_json

CONFIG_BYTES = 64 * MIB
HEADER_BYTES = 16 * MIB
"""A safetensors header may take 100 MB by its definition; that of 100,000 tensors takes 13."""


def model_folders(model: str, cache_mount: str | None) -> Iterator[Path]:
    """Folders with the model's config.json: itself, then snapshots of the Hugging Face cache, the newest first."""
    if (Path(model) / "config.json").is_file():
        yield Path(model)
    hubs = [Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"]
    if os.environ.get("HF_HUB_CACHE"):
        hubs.insert(0, Path(os.environ["HF_HUB_CACHE"]).expanduser())
    if cache_mount:
        hubs.append(Path(cache_mount.rpartition(":")[0]) / "huggingface" / "hub")
    for hub in hubs:
        snapshots = (hub / ("models--" + model.replace("/", "--")) / "snapshots").glob("*/config.json")
        yield from sorted((path.parent for path in snapshots), key=lambda path: path.stat().st_mtime, reverse=True)


def find_shape(model: str, cache_mount: str | None = None) -> ModelShape | None:
    """The model's shape, or None when no readable config.json is at hand: then capacity figures stay empty."""
    for folder in model_folders(model, cache_mount):
        try:
            return read_shape(folder, model)
        except UsageError:
            return None
    return known_shape(model)


def model_type(model: str, cache_mount: str | None = None) -> str | None:
    """What the model's config.json says that it is (`qwen3_5`), or None when none is at hand."""
    for folder in model_folders(model, cache_mount):
        try:
            found = read_json(folder / "config.json", "model", CONFIG_BYTES).get("model_type")
        except (UsageError, AttributeError):
            continue
        return str(found) if found else None
    return None


def read_shape(path: Path, name: str) -> ModelShape:
    """The shape of a model's folder, or of a config.json. Weights come from the headers of the folder's files where
    all of them are there. Raises UsageError for what cannot be read."""
    folder = path if path.is_dir() else path.parent
    config = read_json(path / "config.json" if path.is_dir() else path, "model", CONFIG_BYTES)
    quantization = folder / "hf_quant_config.json"  # ModelOpt's, where config.json does not repeat it
    if path.is_dir() and isinstance(config, dict) and not config.get("quantization_config") and quantization.is_file():
        config = {**config, "quantization_config": _modelopt(read_json(quantization, "model", CONFIG_BYTES))}
    shape = ModelShape.from_hf_config(config, name)
    weights = stored_weights(folder) if path.is_dir() else None
    return replace(shape, weights=weights, weights_unknown="") if weights is not None else shape


def stored_weights(folder: Path) -> Weights | None:
    """The weights of a folder's safetensors files, from their headers; None where not all files are there."""
    files = _weight_files(folder)
    if not files:
        return None
    try:
        return weights_from_headers([_header(file) for file in files], f"headers of {len(files)} safetensors files")
    except (OSError, ValueError, WeightsUnknown):
        return None


def drafter_shape(drafter: Drafter | None, cache_mount: str | None = None) -> ModelShape | None:
    """The shape of a drafter with files of its own; None for built-in ones and where its files are not at hand."""
    if drafter is None or drafter.model is None:
        return None
    return find_shape(drafter.model, cache_mount)


def shape_of_server(startup: StartupLog) -> ModelShape | None:
    """The shape of the model that a server's log names; None where it is not known.

    A server started from a folder that is not here may carry the model's name as --served-model-name: that is taken
    where the block size and the printed figures fit it.
    """
    model = str(startup.requested.get("model") or startup.model or "")
    found = find_shape(model) if model else None
    if found is not None:
        return found
    served = startup.requested.get("served_model_name") or ()
    for name in [served] if isinstance(served, str) else served:
        shape = known_shape(str(name))
        if shape is not None and startup.attention_block_tokens is not None:
            # without the block that was printed, the layout would have to come out the same
            bare = replace(startup, attention_block_tokens=None)
            layout = served_layout(shape, bare, {})
            if layout is not None and layout.block_tokens == startup.attention_block_tokens:
                return shape
    return None


def served_layout(
    shape: ModelShape | None, startup: StartupLog, labels: Mapping[str, str], cache_mount: str | None = None
) -> KvLayout | None:
    """The block layout of a server that is up, with what its log and its cache_config labels say; None: unknown."""
    if shape is None:
        return None
    try:
        own = drafter_shape(settings_of_log(startup).drafter, cache_mount)
        return layout_of_server(shape, startup, labels, own)
    except UsageError:
        return None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(read_json(index, "model", CONFIG_BYTES)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError, UsageError):
            return []
        files = [folder / str(name) for name in names]
        return files if all(file.is_file() for file in files) else []
    return sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))


def _header(file: Path) -> Mapping[str, Any]:
    """The JSON header of a safetensors file: 8 bytes of its length (little endian), then the object."""
    with open_input(file, "weights", 1024 * GIB) as stream:
        length = int.from_bytes(stream.read(8) or b"", "little")
        if not 2 <= length <= HEADER_BYTES:
            raise ValueError(f"{file}: no safetensors header")
        header = orjson.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{file}: its header is no JSON object")
    return header


def _modelopt(data: Any) -> dict[str, Any]:
    """hf_quant_config.json in the words of config.json."""
    inner = data.get("quantization") if isinstance(data, dict) else None
    return {"quant_method": "modelopt", **inner} if isinstance(inner, dict) else {}

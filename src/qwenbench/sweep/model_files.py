"""The model's shape, from wherever its config.json is: the folder given, the Hugging Face cache, or built in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import orjson

from qwenbench.capacity.configuration import layout_of_server
from qwenbench.capacity.known_models import known_shape
from qwenbench.capacity.kv import KvLayout
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError


def _config_files(model: str, cache_mount: str | None) -> list[Path]:
    homes = [Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()]
    if cache_mount:
        homes.append(Path(cache_mount.rpartition(":")[0]) / "huggingface")
    name = "models--" + model.replace("/", "--")
    cached = [file for home in homes for file in sorted((home / "hub" / name).glob("snapshots/*/config.json"))]
    return [Path(model) / "config.json", *cached]


def find_shape(model: str, cache_mount: str | None = None) -> ModelShape | None:
    """The model's shape, or None when no readable config.json is at hand: then capacity figures stay empty."""
    for path in _config_files(model, cache_mount):
        try:
            return ModelShape.from_hf_config(orjson.loads(path.read_bytes()), name=model)
        except OSError:
            continue
        except (orjson.JSONDecodeError, UsageError):
            return None
    return known_shape(model)


def model_type(model: str, cache_mount: str | None = None) -> str | None:
    """What the model's config.json says that it is (`qwen3_5`), or None when none is at hand."""
    for path in _config_files(model, cache_mount):
        try:
            found = orjson.loads(path.read_bytes()).get("model_type")
        except (OSError, orjson.JSONDecodeError, AttributeError):
            continue
        return str(found) if found else None
    return None


def served_layout(shape: ModelShape | None, startup: StartupLog, labels: Mapping[str, str]) -> KvLayout | None:
    """The block layout of a server that is up, with what its log and its cache_config labels say; None: unknown."""
    if shape is None:
        return None
    try:
        return layout_of_server(shape, startup, labels)
    except UsageError:
        return None

"""JSON values with every string in them masked: run.json and launch.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenbench.masking import Masker


def masked(value: Any, masker: Masker) -> Any:
    """The same value without secrets; keys are kept as they are."""
    if isinstance(value, str):
        return masker(value)
    if isinstance(value, Mapping):
        return {name: masked(inner, masker) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, masker) for inner in value]
    return value

"""Speculative decoding as far as memory is concerned: the drafter's own layers in the KV cache and its look-ahead.

Read in vLLM 0.26 and 0.33 (config/speculative.py, v1/core/sched/scheduler.py, v1/kv_cache_interface.py): every method
gives each state group one more state a drafted token and the convolution one more row; MTP, EAGLE and DFlash add
attention layers of their own; MTP, EAGLE and draft models write their tokens' keys ahead (DFlash one more).
Checked against four recorded servers and two published ones (docs/memory.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qwenbench.capacity.model_shape import AttentionLayers, ModelShape
from qwenbench.errors import UsageError

_WITHOUT_LAYERS = ("ngram", "ngram_gpu", "suffix", "prompt_lookup", "extract_hidden_states", "custom_class")
_EAGLE = ("eagle", "eagle3", "medusa", "mlp_speculator")
DEFAULT_TOKENS = {"mtp": 1, "dflash": 15}
"""Drafted tokens where --speculative-config names none: MTP's one layer, DFlash's block of 16 less the known token."""


@dataclass(frozen=True, slots=True)
class Drafter:
    """What --speculative-config asks for."""

    method: str
    """`mtp`, `eagle`, `dflash`, `draft_model` or `ngram` (which stands for all that keep no keys)."""
    tokens: int
    """Drafted tokens a step (num_speculative_tokens)."""
    model: str | None = None
    """The drafter's own folder or name; None for MTP and n-grams."""

    @property
    def lookahead_tokens(self) -> int:
        """Tokens beyond the request's own whose keys the cache holds."""
        if self.method == "ngram":
            return 0
        return self.tokens + 1 if self.method == "dflash" else self.tokens

    @property
    def rows_per_sequence(self) -> int:
        """Rows of a decode step for one sequence: the known token and the drafted ones. Graphs must cover
        sequences x this."""
        return 1 + self.tokens


def parse_drafter(value: str | Mapping[str, Any] | None) -> Drafter | None:
    """Reads --speculative-config as vLLM takes it: JSON or the dictionary that a log repeats; None: no drafter.

    Raises UsageError for what is no such object and for a method that is not known.
    """
    if value is None or value in ("", {}):
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise UsageError(f"--speculative-config {value!r}: no JSON ({error.msg})") from None
    if not isinstance(value, Mapping):
        raise UsageError(f"--speculative-config: {value!r} is no JSON object like " + '{"method": "mtp", ...}')
    model = value.get("model")
    named = str(value.get("method") or ("draft_model" if model else "")).lower()
    method = _method(named, str(model or ""))
    tokens = value.get("num_speculative_tokens", DEFAULT_TOKENS.get(method))
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise UsageError("--speculative-config: num_speculative_tokens must be a whole number from 1 on")
    return Drafter(method, tokens, str(model) if model and method != "mtp" else None)


def _method(named: str, model: str) -> str:
    if named in _WITHOUT_LAYERS:
        return "ngram"
    if named == "mtp" or named.endswith("_mtp"):
        return "mtp"
    if "dflash" in named or (named == "draft_model" and "dflash" in model.lower()):
        return "dflash"
    if named in _EAGLE or (named == "draft_model" and "eagle" in model.lower()):
        return "eagle"
    if named == "draft_model":
        return "draft_model"
    raise UsageError(f"--speculative-config: the method {named!r} is not known here")


def with_drafter(shape: ModelShape, drafter: Drafter | None, own: ModelShape | None = None) -> ModelShape:
    """The shape with the drafter's attention layers beside the model's.

    `own` is the drafter's shape, from its config.json. Without it, MTP's layers are as the model's own full attention;
    EAGLE is taken as one such layer. Raises UsageError for a drafter whose layers cannot be known without `own`.
    """
    if drafter is None or drafter.method == "ngram":
        return shape
    if own is not None and drafter.method != "mtp":
        return replace(shape, attention=_joined(shape.attention, own.attention))
    full = next((layers for layers in shape.attention if layers.window is None), None)
    if drafter.method in ("dflash", "draft_model") or full is None:
        raise UsageError(
            f"the drafter {drafter.model or drafter.method} has layers that only its own config.json tells: give its "
            "folder as the model in --speculative-config"
        )
    count = max(1, shape.mtp_layers) if drafter.method == "mtp" else 1
    return replace(shape, attention=_joined(shape.attention, (replace(full, count=count),)))


def _joined(main: tuple[AttentionLayers, ...], drafter: tuple[AttentionLayers, ...]) -> tuple[AttentionLayers, ...]:
    """Layers of one kind stand in one group, whichever model they belong to."""
    joined = list(main)
    for added in drafter:
        for index, layers in enumerate(joined):
            if replace(layers, count=0) == replace(added, count=0):
                joined[index] = replace(layers, count=layers.count + added.count)
                break
        else:
            joined.append(added)
    return tuple(joined)

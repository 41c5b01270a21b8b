"""How long one engine step takes, from a handful of numbers that bench/calibrate_simulator.py fits.

    decode step    d sequences, no prefill:  captured(d) up to the captured size, eager(d) above it
    mixed step     p prefill tokens as well: max(floor, first + p x per_token) + d x per_sequence
    both           + context tokens read x per_context_token, on the GPU

The captured curve is a table over batch sizes with straight lines between (a graph is padded to the next
captured size, which those tables already hold). The jump above the captured size is the fall out of the
CUDA graphs into kernel launches one by one. A mixed or eager step keeps the engine's thread for all its time
(pipeline.py says what follows from that), a captured one only for `graph_launch_ms`.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from qwenbench.capacity.cards import Card, find_card

MEASURED = "h200"
"""The card that was recorded; every other card's speed is extrapolated."""
CALIBRATION_FILE = Path(__file__).with_name("calibration.json")


@dataclass(frozen=True, slots=True)
class StepModel:
    """Times in milliseconds, for the card that was measured (or scaled, see `scaled`)."""

    captured_batch: tuple[int, ...]
    captured_ms: tuple[float, ...]
    """Decode step inside a CUDA graph at these batch sizes."""
    fixed_ms: float
    """The part of a captured step that no memory bandwidth shortens."""
    graph_launch_ms: float
    """Host time of a captured step."""
    eager_ms: float
    """Decode step outside the graphs: kernel launches, whatever the batch."""
    eager_per_sequence_ms: float
    mixed_floor_ms: float
    """A step with any prefill takes at least this (launches of the prefill kernels)."""
    mixed_first_ms: float
    mixed_per_token_ms: float
    mixed_per_sequence_ms: float
    """Each decoding sequence that rides along in a mixed step."""
    per_context_token_ms: float
    """Reading one token's KV: bytes over bandwidth, not fitted."""
    frontend_ms: float
    """From the request's last byte to the scheduler (HTTP, tokeniser, the engine's input queue)."""
    jitter: float
    """Relative standard deviation of a step."""

    def decode_ms(self, sequences: int, captured_size: int) -> float:
        """Milliseconds of a step that decodes `sequences` and prefills nothing, contexts aside."""
        return max(self.step_ms(sequences, 0, 0, captured_size))

    def mixed_ms(self, sequences: int, prefill_tokens: int) -> float:
        """Milliseconds of a step that prefills so many tokens and decodes `sequences`."""
        prefill = self.mixed_first_ms + self.mixed_per_token_ms * prefill_tokens
        return max(self.mixed_floor_ms, prefill) + self.mixed_per_sequence_ms * sequences

    def step_ms(
        self, sequences: int, prefill_tokens: int, context_tokens: int, captured_size: int
    ) -> tuple[float, float]:
        """(host, device) milliseconds of any step, without jitter. `context_tokens`: of all sequences together."""
        context = self.per_context_token_ms * context_tokens
        if prefill_tokens:
            both = self.mixed_ms(sequences, prefill_tokens)
            return both, both + context
        host = self.graph_launch_ms
        if sequences > captured_size:
            host = self.eager_ms + self.eager_per_sequence_ms * sequences
        return host, self._captured(sequences) + context

    def scaled(self, bandwidth: float, compute: float) -> StepModel:
        """The same model on a card with so many times the memory bandwidth and compute: an extrapolation.

        Decoding in graphs is taken as bound by memory but for `fixed_ms`, prefill tokens by compute; launch
        costs are the host's and stay.
        """
        return replace(
            self,
            captured_ms=tuple(self.fixed_ms + (ms - self.fixed_ms) / bandwidth for ms in self.captured_ms),
            mixed_per_token_ms=self.mixed_per_token_ms / compute,
            per_context_token_ms=self.per_context_token_ms / bandwidth,
        )

    def stretched(self, factor: float) -> StepModel:
        """Every duration times `factor`."""
        if factor == 1.0:
            return self
        return replace(
            self,
            captured_ms=tuple(ms * factor for ms in self.captured_ms),
            fixed_ms=self.fixed_ms * factor,
            graph_launch_ms=self.graph_launch_ms * factor,
            eager_ms=self.eager_ms * factor,
            eager_per_sequence_ms=self.eager_per_sequence_ms * factor,
            mixed_floor_ms=self.mixed_floor_ms * factor,
            mixed_first_ms=self.mixed_first_ms * factor,
            mixed_per_token_ms=self.mixed_per_token_ms * factor,
            mixed_per_sequence_ms=self.mixed_per_sequence_ms * factor,
            per_context_token_ms=self.per_context_token_ms * factor,
            frontend_ms=self.frontend_ms * factor,
        )

    def _captured(self, sequences: int) -> float:
        sizes, times = self.captured_batch, self.captured_ms
        at = bisect_left(sizes, sequences)
        if at == 0:
            return times[0]
        at = min(at, len(sizes) - 1)
        low, high = sizes[at - 1], sizes[at]
        slope = (times[at] - times[at - 1]) / (high - low)
        return times[at - 1] + slope * (sequences - low)


def model_from_json(values: Mapping[str, Any]) -> StepModel:
    """The `step_model` object of calibration.json. Raises KeyError or TypeError when it does not fit."""
    plain = {**values}
    plain["captured_batch"] = tuple(int(value) for value in plain["captured_batch"])
    plain["captured_ms"] = tuple(float(value) for value in plain["captured_ms"])
    return StepModel(**plain)


@cache
def calibration() -> Mapping[str, Any]:
    """The whole calibration file that the package ships (provenance, step model, start-up phases, memory)."""
    loaded: dict[str, Any] = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
    return loaded


def calibrated_model() -> StepModel:
    """The step model that was fitted to the recorded card."""
    return model_from_json(calibration()["step_model"])


def step_model(card: Card) -> StepModel:
    """The fitted model, scaled to the card (an extrapolation for every card but the measured one)."""
    return calibrated_model().scaled(*relative_speed(card))


def relative_speed(card: Card) -> tuple[float, float]:
    """(memory bandwidth, BF16 compute) of the card in units of the measured one."""
    measured = find_card(MEASURED)
    return card.bandwidth_gb_s / measured.bandwidth_gb_s, card.bf16_tflops / measured.bf16_tflops

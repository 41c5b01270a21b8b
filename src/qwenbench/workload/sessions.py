"""The values that the workload hands to the load generator: sessions of turns, ready to be sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TurnPlan:
    """One request that will be sent.

    `payload` is the whole JSON body (model, messages or prompt, sampling, stream options, max_tokens,
    cache_salt, ...), already complete with the recorded answers of earlier turns.
    """

    request_id: str
    turn: int
    prompt_id: str
    language: str
    payload: Mapping[str, Any]
    output_tokens: int | None = None
    """Output length asked for (forced or limit), in tokens; None leaves it to the model."""
    think_s: float = 0.0
    """Pause in seconds between the end of the previous turn and this request."""
    due_s: float | None = None
    """Open loop: seconds after the point's start before which it is not sent (its place in a trace)."""


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Turns that one user sends one after another on one stream."""

    session_id: str
    scenario: str
    turns: tuple[TurnPlan, ...] = field(default=())
    start_s: float | None = None
    """Open loop: seconds after the point's start at which the first turn is due. Closed loop: None."""
    feed_back: bool = False
    """True: before a turn is sent the contents of the payload's assistant messages are replaced, in order,
    by what the server answered to the earlier turns."""

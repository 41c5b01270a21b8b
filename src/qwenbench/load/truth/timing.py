"""What a truth server is told to do, and what it says it did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """When the tokens of every stream are due: `ttft_ms` after the request came in, then every `itl_ms`."""

    ttft_ms: float
    itl_ms: float

    def due_ns(self, received_ns: int, token: int) -> int:
        """Absolute deadline of a token; the clock is the one of `received_ns`."""
        return received_ns + round((self.ttft_ms + self.itl_ms * token) * 1e6)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request as the server saw it; CLOCK_REALTIME ns.

    `received_ns` is the kernel's stamp of the request, `sent_ns` when each token was handed to the kernel.
    """

    request_id: str
    received_ns: int
    sent_ns: tuple[int, ...]

    @property
    def ttft_ms(self) -> float:
        """The first token's true latency, the server's own lateness included."""
        return (self.sent_ns[0] - self.received_ns) / 1e6

    def lateness_ms(self, timing: Timing) -> list[float]:
        """How late each token left, against its deadline."""
        due = (timing.due_ns(self.received_ns, token) for token in range(len(self.sent_ns)))
        return [(sent - deadline) / 1e6 for sent, deadline in zip(self.sent_ns, due, strict=True)]

"""A recorded load beside the same load simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwenbench.simulator.blocks import BlockPool
from qwenbench.simulator.replay import Planned, Replayed, closed_loop
from qwenbench.simulator.scheduler import Scheduler, SchedulerLimits
from qwenbench.simulator.steptime import StepModel
from simulator_calibration.loads import Load
from simulator_calibration.measures import Figures, figures

LIMITS = {"itl_p50_ms": 0.15, "tokens_per_s": 0.15, "ttft_p50_ms": 0.35}
"""How far a simulated figure may lie from the recorded one."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One load: recorded, simulated."""

    load: Load
    recorded: Figures
    simulated: Figures
    preemptions: int

    def residual(self, key: str) -> float | None:
        """Simulated / recorded - 1; None where the rule leaves no figure."""
        recorded, simulated = getattr(self.recorded, key), getattr(self.simulated, key)
        if recorded is None or simulated is None:
            return None
        return float(simulated / recorded - 1)

    @property
    def beyond(self) -> list[str]:
        """Keys whose residual is over its limit."""
        return [key for key, limit in LIMITS.items() if abs(self.residual(key) or 0.0) > limit]


def simulate(load: Load, model: StepModel, seed: int = 0) -> tuple[list[Replayed], int]:
    """The load against the simulator's scheduler in virtual time; also the number of preemptions."""
    server = load.server
    limits = SchedulerLimits(
        server.max_num_seqs, server.max_num_batched_tokens, min(server.capture, server.max_num_seqs)
    )
    scheduler = Scheduler(limits, BlockPool(server.num_blocks), model, seed)
    if load.streams is None:
        queue = iter([request.planned for request in load.requests])
        return closed_loop(scheduler, load.concurrency, lambda _: next(queue, None)), scheduler.preemptions
    streams: list[Iterator[Planned]] = [iter(stream) for stream in load.streams]
    return closed_loop(scheduler, load.concurrency, lambda at: next(streams[at], None)), scheduler.preemptions


def compare(load: Load, model: StepModel) -> Comparison:
    """Both figures of one load."""
    simulated, preemptions = simulate(load, model)
    return Comparison(load, figures(load.requests, load.concurrency), figures(simulated, load.concurrency), preemptions)

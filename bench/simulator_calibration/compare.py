"""A recorded load beside the same load simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwenbench.simulator.blocks import BLOCK_TOKENS, STATE_BLOCKS, BlockPool
from qwenbench.simulator.replay import Planned, Replayed, closed_loop
from qwenbench.simulator.scheduler import Scheduler, SchedulerLimits
from qwenbench.simulator.steptime import StepModel
from simulator_calibration.loads import Load
from simulator_calibration.measures import Figures, figures, first_wave_end, one_off_stalls

LIMITS = {"itl_p50_ms": 0.15, "tokens_per_s": 0.20, "ttft_p50_ms": 0.35}
"""How far a simulated figure may lie from the recorded one, on loads that were not fitted to."""


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


def judged(load: Load) -> bool | None:
    """How a load is judged: True from after its first wave, False as a whole, None not at all (one-off stalls)."""
    stalls = one_off_stalls(load.requests)
    if not stalls:
        return False
    if load.concurrency == 1 or max(at for at, _ in stalls) > first_wave_end(load.requests, load.concurrency):
        return None
    return True if len(load.requests) > load.concurrency else None


def simulate(load: Load, model: StepModel, seed: int = 0) -> tuple[list[Replayed], int]:
    """The load against the simulator's scheduler in virtual time; also the number of preemptions."""
    server = load.server
    limits = SchedulerLimits(server.max_num_seqs, server.max_num_batched_tokens, server.settings)
    states = STATE_BLOCKS * (1 + server.settings.drafted)
    pool = BlockPool(server.num_blocks, block_tokens=BLOCK_TOKENS, state_blocks=states)
    scheduler = Scheduler(limits, pool, model, seed)
    if load.streams is None:
        queue = iter([request.planned for request in load.requests])
        return closed_loop(scheduler, load.concurrency, lambda _: next(queue, None)), scheduler.preemptions
    streams: list[Iterator[Planned]] = [iter(stream) for stream in load.streams]
    return closed_loop(scheduler, load.concurrency, lambda at: next(streams[at], None)), scheduler.preemptions


def compare(load: Load, model: StepModel) -> Comparison:
    """Both figures of one load that is `judged`."""
    simulated, preemptions = simulate(load, model)
    after = bool(judged(load))
    return Comparison(
        load,
        figures(load.requests, load.concurrency, after_first_wave=after),
        figures(simulated, load.concurrency, after_first_wave=after),
        preemptions,
    )

"""NVML and /metrics together, for the length of one load point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from qwenbench.observe.metrics import MetricsScraper
from qwenbench.observe.nvml import NvmlSampler
from qwenbench.observe.samples import NVML_SCHEMA
from qwenbench.sweep.environment import Environment


@dataclass(frozen=True)
class Samples:
    """What was watched during a point."""

    metrics: pa.Table
    nvml: pa.Table
    problem: str | None = None


class Watch:
    """Starts both watchers, and stops both."""

    def __init__(self, environment: Environment, base_url: str, own_pids: Sequence[int]) -> None:
        nvml = environment.hardware.nvml
        self.scraper = MetricsScraper(environment.http, base_url, environment.headers)
        self.sampler = None if nvml is None else NvmlSampler(nvml, lambda: own_pids)

    async def start(self) -> Watch:
        """Begins to watch; counters have their start values when this returns."""
        if self.sampler is not None:
            self.sampler.start()
        await self.scraper.start()
        return self

    async def stop(self) -> Samples:
        """Ends both."""
        metrics = await self.scraper.stop()
        if self.sampler is None:
            return Samples(metrics, pa.Table.from_pylist([], schema=NVML_SCHEMA))
        return Samples(metrics, self.sampler.stop(), self.sampler.error)

    def vram_mib(self) -> float | None:
        """Used memory of the fullest card now; the simulator's own figure under the simulator."""
        if self.sampler is not None:
            return self.sampler.latest_used_mib()
        value = self.scraper.latest.get("vram_used_mib")
        return None if value is None else float(value)

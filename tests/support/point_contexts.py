"""What a planted point is of, with as little said as a test needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwenbench.analysis.point import PointContext
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.startup_log import StartupLog
from qwenbench.observe.ledger import MemoryLedger
from qwenbench.observe.nvml import VramPhases
from qwenbench.runfolder.cells import Cell, LoadPoint


def point_context(
    config_id: str = "cap16-seq16",
    *,
    concurrency: int | None = 1,
    rate: float | None = None,
    repeat: int = 1,
    launch: int = 1,
    vary: Mapping[str, str] | None = None,
    max_num_seqs: int | None = None,
    capture_effective_full: int | None = None,
    kv_cache_blocks: int | None = None,
    budget_gib: float | None = None,
    vram: VramPhases | None = None,
    **fields: Any,
) -> PointContext:
    """A point of scenario `math`; what is not given is not known."""
    server = ServerConfig()
    if max_num_seqs is not None:
        server = server.with_flag("max-num-seqs", str(max_num_seqs))
    ledger = MemoryLedger(
        StartupLog(capture_effective_full=capture_effective_full),
        vram or VramPhases(),
        budget_gib=budget_gib,
        kv_cache_blocks=kv_cache_blocks,
    )
    return PointContext(
        cell=Cell(config_id, launch, LoadPoint("math", "instruct-general", concurrency, rate, repeat)),
        configuration=Configuration(config_id, server, vary or {}, None),
        **{"ledger": ledger, **fields},
    )

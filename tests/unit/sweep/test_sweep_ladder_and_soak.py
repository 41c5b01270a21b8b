"""The ladder's rungs and verdicts, and what a soak's samples say."""

from __future__ import annotations

import pyarrow as pa
import pytest

from qwenbench.observe.metrics import METRICS_SCHEMA
from qwenbench.observe.nvml import NVML_SCHEMA
from qwenbench.sweep.endurance import Rung, ladder_lengths, ladder_verdict, soak_growth


@pytest.mark.parametrize(
    ("longest", "lengths"),
    [
        (262_144, [1024, 4096, 16384, 65536, 235929]),
        (32_768, [1024, 4096, 16384, 29491]),
        (4096, [1024, 3686]),
        (600, [540]),
    ],
)
def test_the_rungs_reach_the_longest_prompt(longest: int, lengths: list[int]) -> None:
    assert ladder_lengths(longest) == lengths


def rung(tokens: int, together: int = 1, ok: bool = True, error: str | None = None) -> Rung:
    return Rung(tokens, together, ok, tokens, 10.0, 30_000.0, error)


def test_the_verdict_names_the_length_at_which_it_died() -> None:
    died = [rung(1024), rung(4096), rung(16384, ok=False, error="EngineCore encountered an issue")]
    assert ladder_verdict(died, died=True) == (
        "ladder: prompts up to 4,096 tokens (alone) were answered; at 16,384 tokens, alone, the server died"
    )
    refused = [rung(1024), rung(4096, ok=False, error="too long")]
    assert ladder_verdict(refused, died=False).endswith("at 4,096 tokens, alone, failed (too long)")
    whole = [rung(1024), rung(4096), rung(1024, 2), rung(4096, 2)]
    assert ladder_verdict(whole, died=False) == "ladder: prompts up to 4,096 tokens (two at a time) were answered"
    assert "no prompt passed" in ladder_verdict([rung(1024, ok=False, error="x")], died=True)


def test_a_soak_looks_at_the_servers_own_memory_where_it_is_told() -> None:
    rows = [
        {"t_ns": int(second * 1e9), "gpu": "a", "used_mib": 40_000.0, "own_mib": 20_000.0 + second / 3600 * 900}
        for second in range(600)
    ]
    nvml = pa.Table.from_pylist(rows, schema=NVML_SCHEMA)
    metrics = pa.Table.from_pylist(
        [{"t_ns": int(second * 1e9), "rss_bytes": 2.0**31} for second in range(600)], schema=METRICS_SCHEMA
    )
    vram, host = soak_growth(nvml, metrics, 49_000.0)
    assert vram.name == "VRAM of the server"
    assert vram.grows
    assert vram.hours_left == pytest.approx(10.0, rel=0.01)
    assert (host.name, host.grows) == ("the API server's memory", False)

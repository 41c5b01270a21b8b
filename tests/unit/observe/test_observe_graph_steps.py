"""Steps by graph, as vLLM's --cudagraph-metrics logs them."""

from __future__ import annotations

from typing import Any

import pytest

from qwenbench.analysis.bounds import bounds
from qwenbench.engine.speed_settings import GraphSteps, full_graph_share, graph_steps
from qwenbench.observe.metrics import METRICS_SCHEMA

TABLE = """(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:310] Engine 000: Avg prompt throughput: 5447.8 tokens/s
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] **CUDAGraph Config Settings:**
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344]
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] - Mode: FULL_AND_PIECEWISE
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] | Unpadded Tokens | Padded Tokens | Num Paddings | Runtime Mode | Count |
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] |-----------------|---------------|--------------|--------------|-------|
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] | 63              | 64            | 1            | FULL         | 30    |
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] | 100             | 100           | 0            | NONE         | 10    |
(APIServer pid=1) INFO 11-26 21:06:07 [loggers.py:344] | 1800            | 1800          | 0            | NONE         | 7     |
(APIServer pid=1) INFO 11-26 21:06:17 [loggers.py:344] | 63              | 64            | 1            | FULL         | 20    |
(APIServer pid=1) INFO 11-26 21:06:17 [loggers.py:344] | 90              | 96            | 6            | PIECEWISE    | 40    |
"""  # noqa: E501 - as vLLM prints it


def test_tables_are_added_up() -> None:
    assert graph_steps(TABLE.splitlines()) == [
        GraphSteps(63, "FULL", 50),
        GraphSteps(100, "NONE", 10),
        GraphSteps(1800, "NONE", 7),
        GraphSteps(90, "PIECEWISE", 40),
    ]
    assert graph_steps(["INFO nothing of the kind", "| a | b |"]) == []


def test_only_decode_steps_count_and_unknown_stays_unknown() -> None:
    steps = graph_steps(TABLE.splitlines())
    assert full_graph_share(steps, 128) == pytest.approx(0.5)
    assert full_graph_share(steps, None) is None
    assert full_graph_share(steps, 10) is None
    assert full_graph_share([], 128) is None


def test_what_was_counted_outranks_what_is_inferred() -> None:
    metrics = METRICS_SCHEMA.empty_table()
    known: dict[str, Any] = {"max_num_seqs": 128, "capture_effective_full": 64, "max_num_batched_tokens": 2048}
    found = bounds(metrics, **known, client_saturated=False, full_graph_share=0.3)
    assert "graph-miss" in found.all
    assert found.evidence["graph-miss"] == "measured: 70% of decode steps ran outside of a full graph"
    assert "graph-miss" not in bounds(metrics, **known, client_saturated=False, full_graph_share=0.8).all

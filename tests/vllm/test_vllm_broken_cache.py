"""A cache that was broken on purpose is caught by the real vLLM's own answers, and the same cache intact is not.

The model is SmolLM2 135M (tests/vllm/setup.sh): its answers mean something.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from real_vllm import Vllm, sweep

SCALES = Path(__file__).resolve().parents[1] / "recipe" / "kv_scales.py"


def _swept(vllm: Vllm, folder: Path, scale: float) -> str | None:
    """Why the load point of a server with an FP8 cache at this static scale is invalid; None when it is valid."""
    model = folder / f"scale-{scale}"
    subprocess.run([sys.executable, SCALES, vllm.model("smollm2"), model, str(scale)], check=True)
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

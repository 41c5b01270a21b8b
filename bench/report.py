"""How long a report over 1,000 points and 1,000,000 requests takes, and how much memory. Figures: docs/report.md.

    .venv/bin/python bench/report.py [--points 1000] [--requests 1000] [--keep FOLDER]

Plants a run folder of synthetic values (20 configurations x 5 scenarios x 10 loads, with samples and request
tables), then runs `qwenbench report` on it in a process of its own. Everything it prints is of made-up runs.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from report_runs import Recipe, plant

CAPTURES = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SCENARIOS = ("conversation", "math", "code", "multilingual", "synthetic")
LOADS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128)


def main() -> None:
    """Plants, builds, prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1000, help="load points, in hundreds")
    parser.add_argument("--requests", type=int, default=1000, help="request records per point")
    parser.add_argument("--keep", type=Path, help="plant here, and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = options.keep or Path(folder) / "run"
        if not (run / "run.json").exists():
            plant(run, _recipe(options.points, options.requests))
        seconds, cpu, peak = _build(run)
        size = (run / "report.html").stat().st_size / 1e6
    points, requests = options.points, options.points * options.requests
    print(
        f"{points} points, {requests:,} requests: {seconds:.1f} s ({cpu:.1f} s CPU), {peak:.2f} GB peak, {size:.1f} MB"
    )
    print(f"load average of the machine meanwhile: {os.getloadavg()[0]:.1f}")


def _recipe(points: int, requests: int) -> Recipe:
    configurations = max(2, points // (len(SCENARIOS) * len(LOADS)))
    utilizations = (0.9, 0.95) if configurations > len(CAPTURES) else (0.95,)
    captures = CAPTURES[: max(1, configurations // len(utilizations))]
    return Recipe(
        captures=captures,
        scenarios=SCENARIOS,
        concurrencies=LOADS,
        utilizations=utilizations,
        requests_per_cell=requests,
    )


def _build(run: Path) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory (GB) of `qwenbench report`."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "qwenbench", "report", str(run)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()

"""compare over two runs of 1,000,000 requests each: seconds and memory of the command as a user calls it.

    .venv/bin/python bench/compare.py [--load-points 334] [--repeats 3] [--requests 1000]

Plants both runs in a temporary folder first (about 2 x 260 MB; that time is not counted), then prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from planted import plant_run


def main() -> None:
    """Plants two runs, the second 5 % slower, and compares them in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--load-points", type=int, default=334)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / name for name in ("before", "after")]
        for seed, run in enumerate(runs):
            plant_run(
                run,
                load_points=options.load_points,
                repeats=options.repeats,
                requests=options.requests,
                seed=seed,
                slower=1.05 if seed else 1.0,
            )
        wall = time.perf_counter()
        command = [sys.executable, "-m", "qwenbench", "compare", *map(str, runs), "--json"]
        printed = subprocess.run(command, capture_output=True, check=True, text=True)
        wall = time.perf_counter() - wall
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = json.loads(printed.stdout)["rows"]
    verdicts = [row["verdict"] for row in rows if row["metric"] == "tpot_mean"]
    print(
        json.dumps(
            {
                "requests_per_run": options.load_points * options.repeats * options.requests,
                "rows": len(rows),
                "wall_s": round(wall, 2),
                "cpu_s": round(used.ru_utime + used.ru_stime, 2),
                "peak_mib": round(used.ru_maxrss / 1024),
                "tpot_mean_called_worse": f"{verdicts.count('worse')} of {len(verdicts)} (planted: 5 % slower)",
            }
        )
    )


if __name__ == "__main__":
    main()

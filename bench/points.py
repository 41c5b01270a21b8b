"""1,000,000 request records to points: seconds and memory.

    .venv/bin/python bench/points.py [--points 1000] [--requests 1000] [--gaps 64]

Prints one JSON object. Wall time is what a user waits; CPU time tells more on a machine that is busy.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

from planted import context_of, request_table
from qwenbench.analysis.point import summarise_point


def main() -> None:
    """Summarises the same few tables over and over, as many as were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--gaps", type=int, default=64)
    options = parser.parse_args()
    distinct = min(8, options.points)
    tables = [request_table(options.requests, 64, seed, gaps=options.gaps) for seed in range(distinct)]
    context = context_of("cap64-seq64", 64, slo={"ttft": 1000.0, "tpot": 25.0})
    before_mib = _peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(options.points):
        row = summarise_point(tables[number % distinct], None, None, context)
        assert row["valid"]
    print(
        json.dumps(
            {
                "points": options.points,
                "requests": options.points * options.requests,
                "gaps_per_request": options.gaps,
                "wall_s": round(time.perf_counter() - wall, 2),
                "cpu_s": round(time.process_time() - cpu, 2),
                "peak_mib": round(_peak_mib()),
                "peak_mib_of_tables": round(before_mib),
            }
        )
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()

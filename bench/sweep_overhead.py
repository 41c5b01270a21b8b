"""What a sweep costs beside servers and load: wall time minus server start, stop, warm-up and load.

    .venv/bin/python bench/sweep_overhead.py RUN              of a run that is there
    .venv/bin/python bench/sweep_overhead.py sweep ARGUMENT.. runs that first (make bench: what `make demo` runs)

The client's check of itself and the wait for VRAM count as overhead here. Prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOT_OVERHEAD = ("start", "stop", "warm_up", "load")


def main() -> None:
    """Reads the timings of a run, or of one made for it."""
    arguments = sys.argv[1:]
    if arguments[:1] != ["sweep"]:
        print(json.dumps(_overhead(Path(arguments[0]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qwenbench", *arguments, "--out", folder, "--run-id", "bench"]
        began = time.perf_counter()
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"the sweep ended with status {done.returncode}:\n{done.stderr}")
        seconds = time.perf_counter() - began
        print(json.dumps({"command_s": round(seconds, 1), **_overhead(Path(folder) / "bench")}))


def _overhead(run: Path) -> dict[str, Any]:
    meta = json.loads((run / "run.json").read_text())
    spans = meta["timings"]
    phases = {name: round(sum(span.get(name, 0.0) for span in spans), 2) for name in sorted({*spans[0]} - {"overhead"})}
    beside = phases["wall"] - sum(phases.get(name, 0.0) for name in NOT_OVERHEAD)
    return {
        **phases,
        "overhead": round(beside, 2),
        "overhead_percent": round(100 * beside / phases["wall"], 2),
        "overhead_per_configuration_s": round(beside / len(meta["configurations"]), 2),
    }


if __name__ == "__main__":
    main()

"""What placing launches on a Ray cluster costs, and what more slots bring: wall times of one plan, simulated cards.

    tests/cluster/setup.sh ~/.cache/qwenbench/test-cluster
    PYTHONPATH=src ~/.cache/qwenbench/test-cluster/bin/python bench/cluster_overhead.py [--start 120]

Four configurations, each with a start of so many seconds (a real one takes 130 to 220 s): on this host with --devices
0,1,2,3, over four nodes of a cluster on this host, and over one of them. Prints one JSON object: wall seconds of the
runs, and (`command_`) of whole commands, in which the nodes are looked at as well. SIMULATED: shows what placement
costs, not how fast a card is. The aims: under 3 % more than --devices, four slots 3.6 times as fast as one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

SWEEP = (
    "sweep --launcher sim --card rtx-5090 --capture 8,16,32,64 --scenario math --concurrency 4 --requests 16 "
    "--output-tokens 32-64 --order listed --no-report --port 18200"
).split()


def seconds(folder: Path, start_s: float, *where: str) -> tuple[float, float]:
    """Wall seconds of the sweep's run, interpreter start and looking at the nodes left out; and of the command."""
    began = time.monotonic()
    words = [*SWEEP, f"--vllm-arg=--sim-startup-s={start_s:g}", "--out", str(folder.parent), "--run-id", folder.name]
    subprocess.run([sys.executable, "-m", "qwenbench", *words, *where], check=False, stdout=subprocess.DEVNULL)
    command_s = time.monotonic() - began
    run = json.loads((folder / "run.json").read_text())
    assert run["finished"], run
    return float(run["timings"][-1]["wall"]), round(command_s, 3)


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", type=float, default=120.0, help="seconds that a server's start takes")
    start_s = parser.parse_args().start
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for kind in ("four", "four", "four", "four", "one"):
        cluster.add_node(num_cpus=1, resources={kind: 1})
    try:
        with tempfile.TemporaryDirectory() as name:
            folder, address = Path(name), str(cluster.address)
            seconds(folder / "warm", 0.1)  # the client's check of itself
            host, host_command = seconds(folder / "host", start_s, "--devices", "0,1,2,3")
            four, four_command = seconds(folder / "four", start_s, "--cluster", address, "--on", "four")
            one, _ = seconds(folder / "one", start_s, "--cluster", address, "--on", "one")
    finally:
        cluster.shutdown()
    found = {"start_s": start_s, "devices_s": host, "four_slots_s": four, "one_slot_s": one}
    found |= {"command_devices_s": host_command, "command_four_slots_s": four_command}
    print(json.dumps(found | {"overhead": round(four / host - 1, 4), "speedup": round(one / four, 2)}))


if __name__ == "__main__":
    main()

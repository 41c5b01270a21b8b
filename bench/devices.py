"""Two cards side by side against one: wall time of the same sweep, simulated cards.

    .venv/bin/python bench/devices.py

Four configurations on one card, then on two, in one run each; prints one JSON object. SIMULATED: shows that the sweep
keeps both cards busy, not how fast a card is. The aim is a ratio of at most 0.6.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SWEEP = (
    "sweep --launcher sim --capture 8,16,32,64 --scenario math,code --concurrency 8 --requests 32 "
    "--output-tokens 32-64 --order listed --no-report --port 18100"
).split()


def wall_s(devices: str, folder: str) -> float:
    """Wall seconds of the sweep's run on these cards, interpreter start left out."""
    name = f"on-{devices.replace(',', '-')}"
    command = [sys.executable, "-m", "qwenbench", *SWEEP, "--devices", devices, "--out", folder, "--run-id", name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    timings = json.loads((Path(folder) / name / "run.json").read_text())["timings"]
    return float(timings[-1]["wall"])


def main() -> None:
    """Runs and prints."""
    with tempfile.TemporaryDirectory() as folder:
        wall_s("0", folder + "/warm")  # the client's check of itself, once per concurrency
        one, two = wall_s("0", folder), wall_s("0,1", folder)
    print(json.dumps({"one_card_s": round(one, 2), "two_cards_s": round(two, 2), "ratio": round(two / one, 3)}))


if __name__ == "__main__":
    main()

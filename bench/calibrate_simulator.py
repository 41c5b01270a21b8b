"""Fits the simulator's step model to recorded servers and says how far it is off.

    python bench/calibrate_simulator.py RECORDED [--results results] [--held-out] [--write]

RECORDED is a folder with results.json, NAME.log, NAME.metrics1.txt and NAME.cC.requests.json[.gz] per server. Run
folders under --results that were measured (not simulated) and still hold their request records are compared as
well, and fitted to with --fit-results. --write renews src/qwenbench/simulator/calibration.json and the tables of
docs/simulator.md. Exit status 1 when a figure is beyond its limit.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from qwenbench.simulator.steptime import CALIBRATION_FILE  # noqa: E402
from simulator_calibration import report  # noqa: E402 - the folder of this script is put on the path first
from simulator_calibration.compare import Comparison, compare  # noqa: E402
from simulator_calibration.fit import fit  # noqa: E402
from simulator_calibration.loads import Load, read_recorded, read_run_folder  # noqa: E402
from simulator_calibration.startup import read_starts, typical  # noqa: E402

PAGE = ROOT / "docs" / "simulator.md"


def main() -> int:
    """Reads, fits, compares, writes."""
    arguments = _arguments()
    recorded = read_recorded(arguments.recorded)
    runs = _run_loads(arguments.results)
    model = fit(recorded + runs if arguments.fit_results else recorded)
    starts = read_starts(arguments.recorded)
    comparisons = [compare(load, model) for load in recorded + runs]
    held_out = [
        compare(load, fit([other for other in recorded if other is not load]))
        for load in (recorded if arguments.held_out else [])
    ]
    tables = {
        "residuals": report.residual_table(comparisons, held_out),
        "stalls": report.stall_table(comparisons, model),
        "startup": report.startup_table(starts, typical(starts)),
    }
    print("\n\n".join(tables.values()))
    values: dict[str, Any] = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
    values["provenance"] = _provenance(arguments.recorded, recorded, runs, fitted=arguments.fit_results)
    values["step_model"] = asdict(model)
    values["startup"] = typical(starts)
    print(json.dumps(values["step_model"]))
    if arguments.write:
        CALIBRATION_FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        for name, text in tables.items():
            report.put_between_markers(PAGE, name, text)
    return _verdict(comparisons)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recorded", type=Path, help="folder of recorded loads")
    parser.add_argument("--results", type=Path, help="folder of run folders to compare with as well")
    parser.add_argument("--fit-results", action="store_true", help="fit to those runs, too")
    parser.add_argument(
        "--held-out", action="store_true", help="also judge each load by a fit to all the others (takes a minute)"
    )
    parser.add_argument("--write", action="store_true", help="renew calibration.json and docs/simulator.md")
    return parser.parse_args()


def _run_loads(results: Path | None) -> list[Load]:
    if results is None:
        return []
    return [load for run in sorted(results.iterdir()) if (run / "run.json").exists() for load in read_run_folder(run)]


def _provenance(folder: Path, recorded: list[Load], runs: list[Load], *, fitted: bool) -> dict[str, Any]:
    return {
        "script": "bench/calibrate_simulator.py",
        "card": "NVIDIA H200, memory budget of an RTX 5090, vLLM 0.20.2, Qwen3.5-9B-NVFP4's shapes, dummy weights",
        "folder": folder.name,
        "fitted_to": [load.name for load in (recorded + runs if fitted else recorded)],
        "compared_with": [] if fitted else [load.name for load in runs],
        "stated_not_fitted": "captured step at 128 sequences unless a load shows it; all beyond it extrapolated",
    }


def _verdict(comparisons: list[Comparison]) -> int:
    beyond = [f"{item.load.name}: {', '.join(item.beyond)}" for item in comparisons if item.beyond]
    for line in beyond:
        print(f"beyond its limit: {line}", file=sys.stderr)
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())

"""Fits the simulator's step times to recorded servers and says how far it is off.

    python bench/calibrate_simulator.py FOLDER... [--fit] [--fit-host MACHINE...] [--leave-one-out]
                                        [--against FOLDER...] [--write]

FOLDER: what a recorder left (results.json with NAME.log, NAME.metrics1.txt and request files), a measured run folder
that still has its request records, or a folder of these; simulated runs are passed over. Without --fit the shipped
calibration is judged. --against: loads that are never fitted to, judged at the end, each by its own machine where it
is known and by the typical one. --write renews calibration.json and the tables of docs/simulator.md. Exit status 1
when a figure of an --against load (without one: of any load) is beyond its aim.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

from qwenbench.simulator.recorded import Comparison, Load, compare, judged  # noqa: E402
from qwenbench.simulator.steptime import CALIBRATION_FILE  # noqa: E402
from simulator_calibration import report  # noqa: E402 - the folder of this script is put on the path first
from simulator_calibration.fit import STEPS, fit, fit_host, model_for, rounded  # noqa: E402
from simulator_calibration.loads import read_folder  # noqa: E402
from simulator_calibration.startup import read_starts, typical  # noqa: E402
from simulator_calibration.transfer import elsewhere, uncertainty, with_typical_host  # noqa: E402

PAGE = ROOT / "docs" / "simulator.md"
STATED = (
    "cards: decode steps of 128 and 256 rows, fixed_ms, prefill_first_ms and prefill_token_ms (a trace), "
    "prefill_context_ms, context_token_ms, filter_few_row_ms, flashinfer_row_ms, jitter; hosts: jitter, point_spread, "
    "launch_spread; memory and power as a whole (fit.py, docs/simulator.md)"
)


def main() -> int:
    """Reads, fits, compares, writes."""
    arguments = _arguments()
    loads = [load for folder in arguments.folders for load in read_folder(folder)]
    against = [load for folder in arguments.against for load in read_folder(folder)]
    values: dict[str, Any] = json.loads(CALIBRATION_FILE.read_text(encoding="utf-8"))
    if arguments.fit or arguments.refine:
        begin = {name: values[name] for name in ("cards", "versions", "hosts")} if arguments.refine else None
        values |= rounded(fit(loads, begin, steps=STEPS[-2:] if arguments.refine else STEPS))
        values["provenance"] = _provenance(arguments.folders, loads)
    for machine in arguments.fit_host:
        values["hosts"][machine] = rounded(fit_host(values, loads, machine))
        values["provenance"]["made_by"][f"hosts {machine}"] = "--fit-host, from the middle values of fit.py"
        print(f"{machine}: {values['hosts'][machine]['times']}", file=sys.stderr)
    values = with_typical_host(values)
    judged_by: list[tuple[str, list[Comparison]]] = [("the fit to all of these loads", _compare(values, loads))]
    if arguments.leave_one_out:
        judged_by.append(("a host fitted without the load's own run", _leave_one_out(values, loads)))
    transferred = elsewhere(values, loads)
    judged_by += [(f"{name}", comparisons) for name, comparisons in transferred.items()]
    values["uncertainty"] = uncertainty(judged_by)
    if against:
        judged_by.append(("loads that were never fitted to", _compare(values, against)))
    tables = {
        "residuals": report.residual_table(
            judged_by[arguments.leave_one_out][1] + (judged_by[-1][1] if against else [])
        ),
        "summary": report.summary_table(judged_by),
        "left-out": report.left_out_table(loads + against),
        "hosts": report.times_table(values),
    }
    for text in tables.values():
        print(text, end="\n\n")
    if arguments.write:
        starts = [start for folder in arguments.folders for start in read_starts(folder)]
        if starts:
            values["startup"] = typical(starts)
            tables["startup"] = report.startup_table(starts, values["startup"])
        values["hosts"].pop("typical", None)
        CALIBRATION_FILE.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        for name, text in tables.items():
            report.put_between_markers(PAGE, name, text)
    return _verdict(judged_by[-1][1] if against else judged_by[0][1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="recorded loads")
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="FOLDER", help="judged, never fitted to")
    parser.add_argument(
        "--fit", action="store_true", help="fit to the loads (some minutes); else judge what is shipped"
    )
    parser.add_argument(
        "--fit-host",
        nargs="+",
        default=[],
        metavar="MACHINE",
        help="fit these machines; all else keeps its numbers",
    )
    parser.add_argument("--refine", action="store_true", help="the same, beginning at the shipped calibration")
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="also judge each run by a host fitted to the machine's others (minutes)",
    )
    parser.add_argument("--write", action="store_true", help="renew calibration.json and docs/simulator.md")
    return parser.parse_args()


def _compare(calibration: dict[str, Any], loads: list[Load]) -> list[Comparison]:
    found = []
    for load in loads:
        if judged(load) is not None:
            machine = load.server.machine if load.server.machine in calibration["hosts"] else "typical"
            found.append(compare(load, model_for(calibration, load, machine)))
    return found


def _leave_one_out(calibration: dict[str, Any], loads: list[Load]) -> list[Comparison]:
    """Each run judged by a host fitted to the machine's other runs, from the other machines' mean on.

    The cards' numbers stay those of the fit to all: they rest on traces and on many loads each.
    """
    found = []
    for name in sorted({load.server.name for load in loads}):
        mine = [load for load in loads if load.server.name == name]
        machine = mine[0].server.machine
        values = copy.deepcopy(calibration)
        values["hosts"].pop(machine)
        values["hosts"][machine] = with_typical_host(values)["hosts"]["typical"]
        others = [load for load in loads if load.server.machine == machine and load.server.name != name]
        if others:
            values = fit(others, values, steps=STEPS[1:2], hosts_only=True)
        found += _compare(values, mine)
        print(f"left out {name}", file=sys.stderr)
    return found


def _provenance(folders: list[Path], loads: list[Load]) -> dict[str, Any]:
    return {
        "script": "bench/calibrate_simulator.py",
        "model": "Qwen3.5-9B-NVFP4's shapes, dummy weights, memory budget of an RTX 5090; Marlin kernels (Hopper)",
        "folders": [folder.name for folder in folders],
        "fitted_to": sorted({load.server.name for load in loads if judged(load) is not None}),
        "made_by": {"cards, versions, hosts": "--fit to all of these loads, but for what is stated"},
        "stated_not_fitted": STATED,
    }


def _verdict(comparisons: list[Comparison]) -> int:
    beyond = [f"{item.load.name}: {', '.join(item.beyond)}" for item in comparisons if item.beyond]
    for line in beyond:
        print(f"beyond its aim: {line}", file=sys.stderr)
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())

"""run.json: the conditions of a run, so that it can be repeated and compared."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qwenbench import __version__
from qwenbench.errors import UsageError
from qwenbench.masking import Masker, masked
from qwenbench.runfolder.files import read_json, write_json
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.workload.profiles import PROFILES

SCHEMA_VERSION = 1


def describe(
    plan: Plan, run_id: str, command_line: Sequence[str], hardware: Hardware, simulated: bool, masker: Masker
) -> dict[str, Any]:
    """What is known when the run begins."""
    profiles = {point.profile for point in plan.points}
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "simulated": simulated,
        "notice": "SIMULATED: made by qwenbench's simulator, not measured on a GPU." if simulated else None,
        "command_line": [masker(word) for word in command_line],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "finished": None,
        "versions": {
            "qwenbench": __version__,
            "python": platform.python_version(),
            "vllm": None,
            "driver": hardware.gpus[0].driver if hardware.gpus else None,
        },
        "hardware": hardware.to_json(),
        "seed": plan.options.seed,
        "order": [point.point_id for point in plan.points],
        "scenarios": {
            name: {
                "sha256": loaded.file.sha256,
                "prompts_sha256": loaded.prompts_sha256,
                "text": loaded.file.text,
                "effective": loaded.file.scenario.model_dump(mode="json"),
            }
            for name, loaded in plan.scenarios.items()
        },
        "profiles": {name: PROFILES[name].request_fields() for name in sorted(profiles)},
        "configurations": {
            c.config_id: {
                "flags": masked(c.server.flags, masker),
                "vary": masked(c.vary, masker),
                "utilization": c.utilization,
            }
            for c in plan.configurations
        },
        "options": masked(plan.options.model_dump(mode="json"), masker),
        "plan": plan.fingerprint(),
        "timings": None,
        "notes": [],
    }


def begin(paths: RunPaths, description: Mapping[str, Any]) -> dict[str, Any]:
    """Writes run.json for a new run, or checks a resumed one against it.

    Raises UsageError when the plan of a resumed run differs, with the parts that do.
    """
    if not paths.run_json.exists():
        write_json(paths.run_json, description)
        return dict(description)
    known = read_json(paths.run_json)
    if known.get("schema_version") != SCHEMA_VERSION:
        raise UsageError(
            f"{paths.root}: written with schema version {known.get('schema_version')}, this is {SCHEMA_VERSION}. "
            "Finish it with the qwenbench that began it."
        )
    if known["simulated"] != description["simulated"]:
        raise UsageError(f"--resume {paths.root}: simulated and measured points do not go into one run.")
    changed = [part for part, value in description["plan"].items() if known["plan"].get(part) != value]
    if changed:
        raise UsageError(
            f"--resume {paths.root}: the plan has changed ({', '.join(changed)}). Resume with the options that the run "
            "was begun with (or none: they are kept in run.json), or start a new run."
        )
    return known


def stored_options(run: Path) -> SweepOptions:
    """The options that a run was begun with. Raises UsageError when there is no run."""
    paths = RunPaths(run)
    if not paths.run_json.exists():
        raise UsageError(f"--resume {run}: no run there (run.json is missing).")
    try:
        return SweepOptions.model_validate(read_json(paths.run_json)["options"])
    except (ValidationError, KeyError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("options",), "msg": "missing"}
        where = ".".join(map(str, problem["loc"]))
        raise UsageError(
            f"--resume {run}: the options kept in run.json cannot be read ({where}: {problem['msg']})."
        ) from None


def finish(paths: RunPaths, meta: dict[str, Any], **values: Any) -> None:
    """Adds what is known at the end."""
    meta.update(values)
    write_json(paths.run_json, meta)

"""Sweeps that files tell: a campaign's, and a run that goes on (--resume may add more of the same, never another
meaning of what was measured).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qwenbench.errors import UsageError
from qwenbench.runfolder.damage import read_run_json
from qwenbench.runfolder.names import RunPaths, check_name
from qwenbench.sweep.options import SweepOptions
from qwenbench.workload.scenario import scenario_folder
from qwenbench.yaml_reader import named_file, parse_yaml_model, read_yaml_text

ADDED_TO = ("capture", "max_num_seqs", "gpu_memory_utilization", "scenario", "profile", "concurrency", "rate")
"""Options whose values --resume adds to those of the run."""
NEVER_FEWER = ("repeats", "relaunch_repeats")


def stored_options(run: Path) -> SweepOptions:
    """The options that a run was begun or last gone on with. Raises UsageError when there is no run."""
    kept = read_run_json(RunPaths(run).run_json)
    try:
        return SweepOptions.model_validate(kept["options"])
    except (ValidationError, KeyError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("options",), "msg": "missing"}
        where = ".".join(map(str, problem["loc"]))
        raise UsageError(
            f"--resume {run}: the options kept in run.json cannot be read ({where}: {problem['msg']})."
        ) from None


def extended_fields(run: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SweepOptions with which a run goes on: its own, and what was given now added to them.

    Lists grow, repeats never become fewer; any other option replaces the run's, and `changed_parts` says whether that
    would change what was measured. Raises UsageError when there is no run.
    """
    return grown(stored_options(run), given)


def grown(stored: SweepOptions, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of these options with what was given added: lists grow, repeats never become fewer."""
    # without what was left at its default then: given and default values are told apart again
    fields = stored.model_dump(exclude_defaults=True)
    for name, value in given.items():
        before = getattr(stored, name)
        if name in ADDED_TO and isinstance(before, tuple) and isinstance(value, tuple):
            fields[name] = tuple(dict.fromkeys((*before, *value)))
        elif name in NEVER_FEWER:
            fields[name] = max(before, value)
        elif name == "vary":
            flags = dict.fromkeys((*before, *value))
            fields[name] = {flag: tuple(dict.fromkeys((*before.get(flag, ()), *value.get(flag, ())))) for flag in flags}
        else:
            fields[name] = value
    return fields


def known_configurations(run: Path) -> dict[str, str]:
    """Hash of a configuration -> the name that the run gave it: in a larger plan it would get another."""
    kept = (read_run_json(RunPaths(run).run_json).get("plan") or {}).get("configurations")
    return {value: name for name, value in kept.items()} if isinstance(kept, dict) else {}


def changed_parts(known: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """What a run measured and the plan lacks or means otherwise, in words; empty when the plan only adds.

    Both are `Plan.fingerprint()`: part -> name -> hash.
    """
    changed = []
    for part, mine in known.items():
        others = plan.get(part, {})
        if not isinstance(mine, Mapping):
            changed.append(f"{part}: kept in an older form")
            continue
        names = [name for name, value in mine.items() if others.get(name) != value]
        if names:
            changed.append(f"{part}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
    return changed


class NamedSweep(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Ends the run's name.")
    options: SweepOptions = Field(description="As on the command line, with underscores.")


class Campaign(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    sweeps: tuple[NamedSweep, ...] = Field(min_length=1)


def campaign_folder() -> Path:
    """Where the campaigns lie that come with qwenbench."""
    return scenario_folder() / "campaigns"


def find_campaign(named: str) -> Path:
    """A campaign's file: a path, or the name of one that comes with qwenbench. Raises UsageError with a near miss."""
    return Path(named) if Path(named).exists() else named_file(named, campaign_folder(), "--campaign")


def load_campaign(path: Path) -> dict[str, dict[str, Any]]:
    """Sweep name -> the option fields that the file sets. Raises UsageError with file, line and field."""
    text = read_yaml_text(path, "--campaign")
    campaign = parse_yaml_model(Campaign, text, f"--campaign {path}")
    sweeps: dict[str, dict[str, Any]] = {}
    for sweep in campaign.sweeps:
        check_name(sweep.name, f"--campaign {path}, sweep")
        if sweep.name in sweeps:
            raise UsageError(f"--campaign {path}: two sweeps are named {sweep.name!r}.")
        sweeps[sweep.name] = sweep.options.model_dump(exclude_unset=True)
    return sweeps

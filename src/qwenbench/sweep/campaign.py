"""Campaign files: one or several sweeps as YAML, in the fields of SweepOptions."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from qwenbench.errors import UsageError
from qwenbench.runfolder.names import check_name
from qwenbench.sweep.options import SweepOptions
from qwenbench.workload.scenario import scenario_folder
from qwenbench.yaml_reader import parse_yaml_model, read_yaml_text


class NamedSweep(BaseModel):
    """One sweep of a campaign."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="Ends the run's name.")
    options: SweepOptions = Field(description="As on the command line, with underscores.")


class Campaign(BaseModel):
    """A campaign file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    sweeps: tuple[NamedSweep, ...] = Field(min_length=1)


def campaign_folder() -> Path:
    """Where the campaigns lie that come with qwenbench."""
    return scenario_folder() / "campaigns"


def find_campaign(named: str) -> Path:
    """A campaign's file: a path, or the name of one that comes with qwenbench. Raises UsageError with a near miss."""
    path = Path(named)
    if path.exists() or path.suffix in (".yaml", ".yml") or "/" in named:
        return path
    shipped = {file.stem: file for file in sorted(campaign_folder().glob("*.yaml"))}
    if named in shipped:
        return shipped[named]
    close = difflib.get_close_matches(named, shipped, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"--campaign {named!r}: unknown.{hint} Known: {', '.join(shipped)}, or a .yaml path.")


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

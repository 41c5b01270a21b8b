"""launch.json: written beside a server's log, and read back to recognise a leftover."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

from qwenbench.engine.server import LaunchRecord
from qwenbench.masking import Masker
from qwenbench.runfolder.files import read_json, write_json

NAME = "launch.json"


def write_launch_record(folder: Path, record: LaunchRecord) -> None:
    """Writes folder/launch.json durably, secrets masked."""
    mask = Masker.from_environment(record.env_names)
    value = asdict(record)
    for key in ("argv", "shown_argv"):
        value[key] = [mask(word) for word in value[key]]
    value["env"] = {name: mask(text) for name, text in value["env"].items()}
    write_json(folder / NAME, value)


def read_launch_record(path: Path) -> LaunchRecord:
    """Reads a launch.json; unknown keys are passed over, so that a newer version's file can be read.

    Raises OSError and ValueError.
    """
    value = read_json(path)
    known = {field.name: value[field.name] for field in fields(LaunchRecord) if field.name in value}
    for key in ("argv", "shown_argv", "env_names"):
        known[key] = tuple(known.get(key) or ())
    try:
        return LaunchRecord(**known)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from error

"""launch.json and the marks on a server: what was launched, and whose it is.

A leftover is recognised by three things: launch.json in its run's folder, a variable in its environment (its children
inherit it, whatever group or session they have moved to), and labels on a container.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from qwenbench.engine.config import ServerConfig
from qwenbench.masking import Masker, masked
from qwenbench.processes import ProcessIdentity, boot_id, user_name
from qwenbench.runfolder.files import read_json, write_json

FILE = "launch.json"
VARIABLE = "QWENBENCH_LAUNCH"
"""In a server's environment: which qwenbench process started it."""

RUN_LABEL = "qwenbench.run"
OWNER_LABEL = "qwenbench.owner"
LAUNCH_LABEL = "qwenbench.launch"
"""Unique to one launch: a name can be somebody else's container, this cannot."""
_HOST, _BOOT, _PID, _START = (f"qwenbench.{name}" for name in ("host", "boot-id", "owner-pid", "owner-start-time"))


@dataclass(frozen=True, slots=True)
class LaunchRecord:
    """What servers/CONFIG/launch.json holds: enough to repeat the launch and to recognise a leftover."""

    launcher: str
    argv: tuple[str, ...]
    """What was run."""
    shown_argv: tuple[str, ...]
    """The line for the user (docker: the seed's line)."""
    env_names: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    image_digest: str | None = None
    container: str | None = None
    pid: int | None = None
    start_time: float | None = None
    """Process start time in clock ticks since boot."""
    boot_id: str | None = None
    host: str | None = None
    owner: str | None = None
    owner_pid: int | None = None
    owner_start_time: float | None = None
    run_id: str | None = None
    server: Mapping[str, Any] = field(default_factory=dict)
    """The description that it was launched from."""
    simulated: bool = False
    requested: Mapping[str, Any] = field(default_factory=dict)
    """The flags that were asked for, where a smaller card's budget changed them."""
    card: str | None = None
    """The card whose budget counts."""
    started_ns: int | None = None
    """When the launch began, CLOCK_REALTIME."""
    machine: str | None = None
    """What figures of unlike machines are told apart by (analysis/machines.py)."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    """The server's own cards and the host, as run.json has them of the whole machine."""
    versions: Mapping[str, Any] = field(default_factory=dict)
    """qwenbench and Python that launched it, and the cards' driver."""

    @classmethod
    def of(cls, launcher: str, config: ServerConfig, **given: Any) -> LaunchRecord:
        owner = ProcessIdentity.current()
        names = tuple(name for name in config.env_names if name in os.environ)
        return cls(
            launcher=launcher,
            env_names=names,
            boot_id=owner.boot_id,
            host=owner.host,
            owner=user_name(),
            owner_pid=owner.pid,
            owner_start_time=owner.start_time,
            server=described(config),
            **given,
        )

    def owner_process(self) -> ProcessIdentity:
        return ProcessIdentity(self.host or "", self.boot_id, self.owner_pid or 0, self.owner_start_time)


def described(config: ServerConfig) -> dict[str, Any]:
    """A server's description as launch.json holds it (analysis reads it back to deploy the same)."""
    return {name: value for name, value in asdict(config).items() if name not in ("host", "max_model_len")}


def write_launch_record(folder: Path, record: LaunchRecord, secret_names: Iterable[str] = ()) -> None:
    """Writes folder/launch.json durably; what the server's variables and the named ones hold is masked."""
    names = [*record.env_names, *record.server.get("env_names", ()), *secret_names]
    write_json(folder / FILE, masked(asdict(record), Masker.from_environment(names)))


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


def new_mark() -> str:
    """VARIABLE's value for one launch by this process: PID/START/HOST/UNIQUE."""
    owner = ProcessIdentity.current()
    start = "" if owner.start_time is None else f"{owner.start_time:.0f}"
    return f"{owner.pid}/{start}/{owner.host}/{uuid.uuid4().hex}"


def owner_of_mark(mark: str) -> ProcessIdentity | None:
    """The process that a mark names; None when it is none of ours. A process never outlives its boot."""
    try:
        pid, start, host, _ = mark.split("/")
        return ProcessIdentity(host, boot_id(), int(pid), float(start) if start else None)
    except ValueError:
        return None


def new_labels(run_id: str) -> dict[str, str]:
    """Labels of a container that this process starts."""
    owner = ProcessIdentity.current()
    return {
        LAUNCH_LABEL: uuid.uuid4().hex,
        RUN_LABEL: run_id,
        OWNER_LABEL: user_name(),
        _HOST: owner.host,
        _BOOT: owner.boot_id or "",
        _PID: str(owner.pid),
        _START: "" if owner.start_time is None else f"{owner.start_time:.0f}",
    }


def owner_of_labels(labels: Mapping[str, str]) -> ProcessIdentity | None:
    """The process that started the container; None when the labels do not say."""
    try:
        start = float(labels[_START]) if labels.get(_START) else None
        return ProcessIdentity(labels[_HOST], labels.get(_BOOT) or None, int(labels[_PID]), start)
    except (KeyError, ValueError):
        return None

"""What a launcher gives back: a server that was started, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qwenbench.engine.config import ServerConfig


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a server failed: failure.json."""

    kind: str
    """A class of failure, e.g. `oom_graph_capture`, `port_taken`, `unknown`."""
    evidence: str
    """The line of the log or the message that says so, as printed (secrets masked)."""
    advice: str
    """What to do about it; empty when the text is unknown: it is shown, not guessed at."""
    exit_code: int | None = None
    phase: str = "start"
    """`start`, `load` or `stop`."""

    def to_json(self) -> dict[str, Any]:
        """The object that failure.json holds."""
        return {
            "class": self.kind,
            "evidence": self.evidence,
            "advice": self.advice,
            "exit_code": self.exit_code,
            "phase": self.phase,
        }


class LaunchError(Exception):
    """A server did not start, or did not get ready."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.evidence}" + (f" ({failure.advice})" if failure.advice else ""))
        self.failure = failure


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
    """Process start time in clock ticks since boot (/proc/PID/stat field 22)."""
    boot_id: str | None = None
    host: str | None = None
    owner: str | None = None
    owner_pid: int | None = None
    owner_start_time: float | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a stop went."""

    exit_code: int | None
    seconds: float
    killed: bool
    """True when SIGKILL was needed."""
    log_tail: tuple[str, ...] = ()


class Server(Protocol):
    """A started server."""

    base_url: str
    log_path: Path
    record: LaunchRecord

    async def wait_ready(self, timeout_s: float) -> float:
        """Seconds from launch until the launched process itself answers. Raises LaunchError."""

    def alive(self) -> bool:
        """Whether the process (container) still runs."""

    def gpu_pids(self) -> Sequence[int]:
        """Process ids on this host that belong to the server (for telling apart others on the card)."""

    async def failure(self, phase: str) -> Failure:
        """Why it died, from its exit state and log."""

    async def stop(self, grace_s: float = 30.0) -> StopReport:
        """SIGTERM, wait, SIGKILL; returns when nothing of it is left. Safe to call twice."""


class Launcher(Protocol):
    """Starts servers of one kind."""

    name: str
    simulated: bool

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The argv that is shown to the user for this configuration."""

    async def check(self, config: ServerConfig) -> None:
        """Raises UsageError for what can be known to be impossible before anything is started."""

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> Server:
        """Starts a server whose output goes to folder/server.log. Raises LaunchError."""

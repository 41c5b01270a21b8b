"""A server that can be measured: one life for all kinds - ready, alive, why it died, stopped.

A kind adds what is its own: a process of this machine (process.py), a container (docker/launcher.py), a server that
somebody else runs (attached.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from qwenbench.bounded_http import WaitLimit
from qwenbench.engine import failures, readiness
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.failures import DeathWatch, Failure, LaunchError
from qwenbench.engine.launch_record import LaunchRecord, write_launch_record
from qwenbench.engine.log_lines import LogReader, tail
from qwenbench.engine.supervised import RefusedError, SupervisedProcess
from qwenbench.errors import UsageError
from qwenbench.masking import refuse_secret_arguments

DYING_S = 5.0
"""A server that prints its own death gets these seconds to print the rest of the reason and to exit."""
STOP_GRACE_S = 30.0
"""Time for a server to end in order."""
_TAIL_LINES = 40
LOG = "server.log"
"""A launch's output, in its folder."""


@dataclass(frozen=True, slots=True)
class StopReport:
    exit_code: int | None
    seconds: float
    killed: bool
    """True when SIGKILL was needed."""
    log_tail: tuple[str, ...] = ()


class Server(ABC):
    def __init__(self, base_url: str, log_path: Path, record: LaunchRecord, model: str | None, began: float) -> None:
        self.base_url = base_url
        self.log_path = log_path
        self.record = record
        self.limit = WaitLimit(0.0)
        """How long it may keep us waiting, from its start on."""
        self._model = model
        self._began = began

    async def wait_ready(self, timeout_s: float) -> float:
        """Seconds from launch until it answers and serves its model. Raises LaunchError."""
        self.limit.restart(timeout_s)
        try:
            models = await readiness.poll_ready(self.base_url, self.limit, self._check_alive)
        except readiness.DiedError:
            raise LaunchError(await self.failure("start")) from None
        except readiness.NotReadyError as error:
            raise LaunchError(failures.never_healthy(timeout_s, str(error), tail(self.log_path))) from None
        if self._model is not None and models and self._model not in models:
            raise LaunchError(failures.wrong_model(self._model, models))
        seconds = time.monotonic() - self._began
        await self._look_when_ready()
        return seconds

    @abstractmethod
    def alive(self) -> bool:
        """Whether it still runs and has not reported its death."""

    @abstractmethod
    def gpu_pids(self) -> Sequence[int]:
        """Process ids on this host that belong to the server (for telling apart others on the card)."""

    @abstractmethod
    async def failure(self, phase: str, said: Sequence[str] = ()) -> Failure:
        """Why it died, from its exit state and log; `said` is what it answered to requests that failed, the most
        frequent first."""

    @abstractmethod
    async def stop(self, grace_s: float = STOP_GRACE_S) -> StopReport:
        """SIGTERM, wait, SIGKILL; returns when nothing of it is left. Safe to call twice."""

    def _check_alive(self) -> None:
        """Raises readiness.DiedError when waiting any longer makes no sense."""
        if not self.alive():
            raise readiness.DiedError

    async def _look_when_ready(self) -> None:  # noqa: B027 - most kinds have nothing to do here
        """What a kind does as soon as the server answers. Raises LaunchError."""


@dataclass(frozen=True, slots=True)
class EndState:
    """How a server's first process ended, as far as it is known."""

    exit_code: int | None
    oom_killed: bool = False
    """Killed for lack of the host's memory."""
    engine_said: str = ""
    """What the container engine said instead of an answer."""


class LaunchedServer(Server):
    """A server whose first process - vLLM itself, or the `docker run` that is attached to it - is supervised."""

    def __init__(
        self, process: SupervisedProcess, folder: Path, record: LaunchRecord, config: ServerConfig, began: float
    ) -> None:
        url = readiness.base_url(config.host, config.port)
        super().__init__(url, folder / LOG, record, config.served_model_name, began)
        self._process = process
        self._watch = DeathWatch(LogReader(self.log_path))
        self._dying_since: float | None = None
        self._stopped: StopReport | None = None

    def alive(self) -> bool:
        """Whether it still runs and its engine has not reported its death in the log."""
        return self._process.alive() and not self._watch.died()

    def _check_alive(self) -> None:
        if not self._process.alive():
            raise readiness.DiedError
        if self._watch.died():
            self._dying_since = self._dying_since or time.monotonic()
            if time.monotonic() - self._dying_since > DYING_S:
                raise readiness.DiedError

    async def failure(self, phase: str, said: Sequence[str] = ()) -> Failure:
        """Why it died, from its end state and its log; waits a moment for the end of both."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.gone(), DYING_S)
        end = await self._end_state()
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        failure = failures.explain(text, end.exit_code, oom_killed=end.oom_killed, phase=phase, log_path=self.log_path)
        if end.engine_said and failure.kind in ("unknown", "silent_exit", "killed", "crashed", "terminated"):
            return failures.explain(end.engine_said, end.exit_code, phase=phase)
        return failure

    async def stop(self, grace_s: float = STOP_GRACE_S) -> StopReport:
        """SIGTERM, wait, SIGKILL; returns when nothing of it is left. Safe to call twice."""
        if self._stopped is None:
            began = time.monotonic()
            exit_code, killed = await self._end(grace_s)
            seconds = time.monotonic() - began
            self._stopped = StopReport(exit_code, seconds, killed, tuple(tail(self.log_path, _TAIL_LINES)))
        return self._stopped

    @abstractmethod
    async def _end_state(self) -> EndState:
        """How it ended."""

    @abstractmethod
    async def _end(self, grace_s: float) -> tuple[int | None, bool]:
        """Ends it; its exit code, and whether it had to be killed."""


async def start_supervised(
    folder: Path, record: LaunchRecord, config: ServerConfig, env: Mapping[str, str]
) -> tuple[SupervisedProcess, LaunchRecord]:
    """Runs the record's argv, its output into the folder's server.log; the record with the process in it, which is
    launch.json then. Raises LaunchError."""
    try:
        process = await SupervisedProcess.start(record.argv, folder / LOG, env, config.env_names)
    except RefusedError as error:
        raise LaunchError(failures.explain(str(error), 127)) from error
    record = replace(record, pid=process.pid, start_time=process.start_time)
    write_launch_record(folder, record)
    return process, record


def check_launch(config: ServerConfig, argv: Sequence[str], what: str) -> None:
    """Raises UsageError: a secret among the arguments (of `what`, in words), the port in use."""
    refuse_secret_arguments(argv, what)
    if readiness.port_in_use(config.host, config.port):
        taken = failures.port_taken(config.port)
        raise UsageError(f"{taken.evidence} {taken.advice}")


class Launcher(Protocol):
    name: str
    simulated: bool
    starts_servers: bool
    """False: what it gives runs already, and is neither stopped nor waited for."""

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The argv that is shown to the user for this configuration."""

    async def check(self, config: ServerConfig) -> None:
        """Raises UsageError for what can be known to be impossible before anything is started."""

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> Server:
        """Starts a server whose output goes to folder/server.log. Raises LaunchError."""

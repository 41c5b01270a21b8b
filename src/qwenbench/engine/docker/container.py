"""A server that runs as a container: ready, alive, why it died, stopped and really gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwenbench.engine import failures, launching, readiness
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.docker.command import QUICK_S, EngineError, docker, inspect_container
from qwenbench.engine.docker.labels import LAUNCH
from qwenbench.engine.log_sink import LogReader, tail
from qwenbench.engine.process_tree import descendants
from qwenbench.engine.server import Failure, LaunchError, LaunchRecord, StopReport
from qwenbench.engine.supervised import SupervisedProcess

_GONE_POLL_S = 0.03
_GONE_LIMIT_S = 30.0
_CLIENT_GRACE_S = 2.0
_TAIL_LINES = 40


class ContainerServer:
    """A container whose attached `docker run` is the process that the supervisor owns."""

    def __init__(
        self,
        process: SupervisedProcess,
        record: LaunchRecord,
        launch: str,
        log_path: Path,
        config: ServerConfig,
        began: float,
    ) -> None:
        assert record.container is not None
        self.base_url = readiness.base_url("127.0.0.1", config.port)
        self.log_path = log_path
        self.record = record
        self._name = record.container
        self._launch = launch
        self._id: str | None = None
        self._process = process
        self._config = config
        self._began = began
        self._watch = failures.DeathWatch(LogReader(log_path))
        self._host_pid: int | None = None
        self._state: dict[str, Any] = {}
        self._stopped: StopReport | None = None

    async def wait_ready(self, timeout_s: float) -> float:
        """Seconds from launch until the container answers. Raises LaunchError."""
        try:
            await launching.wait_ready(
                self.base_url, self._config.served_model_name, timeout_s, self._process, self._watch, self.log_path
            )
        except launching.DiedError:
            raise LaunchError(await self.failure("start")) from None
        seconds = time.monotonic() - self._began
        await self._look()
        self._host_pid = self._state.get("Pid") or None
        return seconds

    def alive(self) -> bool:
        """Whether the container still runs and its engine has not reported its death in the log."""
        return self._process.alive() and not self._watch.died()

    def gpu_pids(self) -> Sequence[int]:
        """The container's processes as this host numbers them; empty where the engine runs elsewhere (WSL, ssh)."""
        if self._host_pid is None:
            return ()
        return (self._host_pid, *descendants(self._host_pid))

    async def failure(self, phase: str) -> Failure:
        """Why it died: from the container's end state, what docker said, and the log."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.gone(), launching.DYING_S)
        engine_said = await self._look()
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        code = self._state.get("ExitCode") if self._state.get("Status") in ("exited", "dead") else None
        if code is None:
            code = self._process.exit_code
        failure = failures.explain(text, code, oom_killed=bool(self._state.get("OOMKilled")), phase=phase)
        if engine_said and failure.kind in ("unknown", "silent_exit", "killed"):
            return failures.explain(engine_said, code, phase=phase)
        return failure

    async def stop(self, grace_s: float = 30.0) -> StopReport:
        """SIGTERM, wait, SIGKILL; removes the container and returns when it is really gone. Safe to call twice."""
        if self._stopped is None:
            began = time.monotonic()
            if self._id is None:
                await self._look()
            if self._id is not None:
                await docker("stop", "-t", f"{grace_s:.0f}", self._id, limit_s=grace_s + QUICK_S)
            stop_s = time.monotonic() - began
            await self._process.stop(_CLIENT_GRACE_S)
            await self._look()  # it may have been created only after the first look
            if self._id is not None:
                await remove(self._id)
            code = self._state.get("ExitCode", self._process.exit_code)
            self._stopped = StopReport(
                exit_code=code,
                seconds=time.monotonic() - began,
                killed=code == 137 and stop_s >= grace_s,
                log_tail=tuple(tail(self.log_path, _TAIL_LINES)),
            )
        return self._stopped

    async def _look(self) -> str:
        """Reads the container's state; what the engine said instead when it could not tell."""
        try:
            found = await inspect_container(self._name)
        except (EngineError, LaunchError) as error:
            return str(error)
        # a container of the same name that another launch made is none of our business
        if found is not None and (found["Config"]["Labels"] or {}).get(LAUNCH) == self._launch:
            self._id = found["Id"]
            self._state = found["State"]
        return ""


async def remove(name: str) -> bool:
    """Removes a container and waits until it is really gone (docker returns before its name is free).

    False when it is still there, or the engine does not answer: then it is found as a leftover later.
    """
    deadline = time.monotonic() + _GONE_LIMIT_S
    said = await docker("rm", "--force", "--volumes", name)
    if not (said.ok or said.missing or "already in progress" in said.err):
        return False
    while time.monotonic() < deadline:
        try:
            if await inspect_container(name) is None:
                return True
        except EngineError:
            return False
        await asyncio.sleep(_GONE_POLL_S)
    return False

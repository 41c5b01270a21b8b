"""Servers as containers: `docker run`, attached, under the supervisor that also serves plain processes."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qwenbench.engine import failures, readiness
from qwenbench.engine.caches import Caches, fresh, kept_by_container
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.docker import command
from qwenbench.engine.docker.command import QUICK_S, EngineError, docker, ensure_image, inspect_container
from qwenbench.engine.docker.line import run_argv, shown_argv
from qwenbench.engine.failures import LaunchError
from qwenbench.engine.launch_record import LAUNCH_LABEL, LaunchRecord, new_labels, write_launch_record
from qwenbench.engine.server import EndState, LaunchedServer, check_launch, start_supervised
from qwenbench.engine.supervised import SupervisedProcess
from qwenbench.errors import UsageError
from qwenbench.processes import descendants

_GONE_POLL_S = 0.03
_GONE_LIMIT_S = 30.0
_CLIENT_GRACE_S = 2.0


def tell_on_stderr(text: str) -> None:
    """Shows progress (image pulls) to the user."""
    print(text, file=sys.stderr, flush=True)


class DockerLauncher:
    """Starts containers as the model card's `docker run` lines do; see docker/line.py for the differences."""

    name = "docker"
    simulated = False
    starts_servers = True

    def __init__(self, tell: Callable[[str], None] = tell_on_stderr, caches: Caches = "kept") -> None:
        self._tell = tell
        self._caches = caches
        self._digests: dict[str, str | None] = {}

    def shown_line(self, config: ServerConfig) -> list[str]:
        return shown_argv(config)

    async def check(self, config: ServerConfig) -> None:
        """Raises UsageError: no docker, no engine, a secret among the arguments, the port in use."""
        check_launch(config, shown_argv(config), "the docker line")
        try:
            said = await command.docker("version", "--format", "{{.Server.Version}}")
        except LaunchError as error:
            raise UsageError(f"{error.failure.evidence}. {error.failure.advice}") from None
        if not said.ok:
            failure = failures.explain(said.err, said.code)
            raise UsageError(f"{failure.evidence} {failure.advice}".strip())

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> ContainerServer:
        """Pulls the image where needed and starts the container; its output goes to folder/server.log.

        Raises LaunchError.
        """
        readiness.refuse_taken_port(config.host, config.port)
        image = config.docker.image
        if image not in self._digests:  # once a run: --pull=never keeps it from changing meanwhile
            self._digests[image] = await ensure_image(image, self._tell)
        began = time.monotonic()
        name = _unique_name(run_id)
        labels = new_labels(run_id)
        # within the container: gone with it
        caching = kept_by_container(config) if self._caches == "kept" else fresh("/tmp/qwenbench-caches")
        argv = tuple(run_argv(config, name, labels, caching, command.PROGRAM))
        record = LaunchRecord.of(
            self.name,
            config,
            argv=argv,
            shown_argv=tuple(shown_argv(config)),
            env={**caching, **config.env},
            image_digest=self._digests[image],
            container=name,
            run_id=run_id,
        )
        # written before the start: a leftover is found by it even when we are killed in between
        write_launch_record(folder, record)
        process, record = await start_supervised(folder, record, config, {})
        return ContainerServer(process, folder, record, config, began, labels[LAUNCH_LABEL])


class ContainerServer(LaunchedServer):
    """A container whose attached `docker run` is the process that the supervisor owns."""

    def __init__(
        self,
        process: SupervisedProcess,
        folder: Path,
        record: LaunchRecord,
        config: ServerConfig,
        began: float,
        launch: str,
    ) -> None:
        assert record.container is not None
        super().__init__(process, folder, record, config, began)
        self._name = record.container
        self._launch = launch
        self._id: str | None = None
        self._state: dict[str, Any] = {}
        self._host_pid: int | None = None

    def gpu_pids(self) -> Sequence[int]:
        """The container's processes as this host numbers them; empty where the engine runs elsewhere (WSL, ssh)."""
        if self._host_pid is None:
            return ()
        return (self._host_pid, *descendants(self._host_pid))

    async def _look_when_ready(self) -> None:
        await self._look()
        self._host_pid = self._state.get("Pid") or None

    async def _end_state(self) -> EndState:
        engine_said = await self._look()
        code = self._state.get("ExitCode") if self._state.get("Status") in ("exited", "dead") else None
        if code is None:
            code = self._process.exit_code
        return EndState(code, bool(self._state.get("OOMKilled")), engine_said)

    async def _end(self, grace_s: float) -> tuple[int | None, bool]:
        """Stops and removes the container, and returns when it is really gone."""
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
        return code, code == 137 and stop_s >= grace_s

    async def _look(self) -> str:
        """Reads the container's state; what the engine said instead when it could not tell."""
        try:
            found = await inspect_container(self._name)
        except (EngineError, LaunchError) as error:
            return str(error)
        # a container of the same name that another launch made is none of our business
        if found is not None and (found["Config"]["Labels"] or {}).get(LAUNCH_LABEL) == self._launch:
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


def _unique_name(run_id: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]", "-", run_id)[:40]
    return f"qwenbench-{readable}-{uuid.uuid4().hex[:8]}"

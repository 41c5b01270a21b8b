"""Servers as containers: `docker run`, attached, under the supervisor that also serves plain processes."""

from __future__ import annotations

import os
import re
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qwenbench.engine import failures, launching, readiness
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.docker import command
from qwenbench.engine.docker.container import ContainerServer
from qwenbench.engine.docker.images import ensure_image
from qwenbench.engine.docker.labels import LAUNCH, labels_for
from qwenbench.engine.docker.line import run_argv, shown_argv
from qwenbench.engine.launch_file import write_launch_record
from qwenbench.engine.server import LaunchError, LaunchRecord
from qwenbench.engine.supervised import RefusedError, SupervisedProcess
from qwenbench.errors import UsageError
from qwenbench.masking import refuse_secret_arguments
from qwenbench.process_identity import ProcessIdentity, user_name

LOOPBACK = "127.0.0.1"


def tell_on_stderr(text: str) -> None:
    """Shows progress (image pulls) to the user."""
    print(text, file=sys.stderr, flush=True)


class DockerLauncher:
    """Starts containers as the model card's `docker run` lines do; see docker/line.py for the differences."""

    name = "docker"
    simulated = False

    def __init__(self, tell: Callable[[str], None] = tell_on_stderr) -> None:
        self._tell = tell
        self._digests: dict[str, str | None] = {}

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The line for the user, as in the model card."""
        return shown_argv(config)

    async def check(self, config: ServerConfig) -> None:
        """Raises UsageError: no docker, no engine, a secret among the arguments, the port in use."""
        refuse_secret_arguments(shown_argv(config), "the docker line")
        if config.host not in (LOOPBACK, "localhost"):
            raise UsageError(f"--launcher docker binds to loopback only, not to {config.host}.")
        try:
            said = await command.docker("version", "--format", "{{.Server.Version}}")
        except LaunchError as error:
            raise UsageError(f"{error.failure.evidence}. {error.failure.advice}") from None
        if not said.ok:
            failure = failures.explain(said.err, said.code)
            raise UsageError(f"{failure.evidence} {failure.advice}".strip())
        if readiness.port_in_use(LOOPBACK, config.port):
            raise UsageError(launching.port_text(config.port) + " Stop what runs there or choose another with --port.")

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> ContainerServer:
        """Pulls the image where needed and starts the container; its output goes to folder/server.log.

        Raises LaunchError.
        """
        launching.refuse_taken_port(LOOPBACK, config.port)
        image = config.docker.image
        if image not in self._digests:  # once a run: --pull=never keeps it from changing meanwhile
            self._digests[image] = await ensure_image(image, self._tell)
        began = time.monotonic()
        name = _unique_name(run_id)
        labels = labels_for(run_id)
        argv = run_argv(config, name, labels, command.PROGRAM)
        owner = ProcessIdentity.current()
        record = LaunchRecord(
            launcher=self.name,
            argv=tuple(argv),
            shown_argv=tuple(shown_argv(config)),
            env_names=tuple(variable for variable in config.env_names if variable in os.environ),
            env=config.env,
            image_digest=self._digests[image],
            container=name,
            boot_id=owner.boot_id,
            host=owner.host,
            owner=user_name(),
            owner_pid=owner.pid,
            owner_start_time=owner.start_time,
            run_id=run_id,
        )
        # written before the start: a leftover is found by it even when we are killed in between
        write_launch_record(folder, record)
        log_path = folder / "server.log"
        try:
            process = await SupervisedProcess.start(argv, log_path, {}, config.env_names)
        except RefusedError as error:
            raise LaunchError(failures.explain(str(error), 127)) from error
        record = replace(record, pid=process.pid, start_time=process.start_time)
        write_launch_record(folder, record)
        return ContainerServer(process, record, labels[LAUNCH], log_path, config, began)


def _unique_name(run_id: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_.-]", "-", run_id)[:40]
    return f"qwenbench-{readable}-{uuid.uuid4().hex[:8]}"

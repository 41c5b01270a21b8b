"""Servers as processes of this machine: `vllm serve`, any other command line, or the simulator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qwenbench.engine import failures, launching, readiness
from qwenbench.engine.cards import cuda_environment
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.launch_file import write_launch_record
from qwenbench.engine.launch_mark import VARIABLE, new_mark
from qwenbench.engine.log_sink import LogReader, tail
from qwenbench.engine.server import Failure, LaunchError, LaunchRecord, StopReport
from qwenbench.engine.supervised import Ended, RefusedError, SupervisedProcess
from qwenbench.errors import UsageError
from qwenbench.masking import refuse_secret_arguments
from qwenbench.process_identity import ProcessIdentity, user_name

_TAIL_LINES = 40


class ProcessLauncher:
    """Starts `COMMAND MODEL flags --host H --port P` under a supervisor. No shell is involved."""

    def __init__(self, command: Sequence[str], *, name: str = "process", simulated: bool = False) -> None:
        self.name = name
        self.simulated = simulated
        self._command = tuple(command)

    @classmethod
    def of_command_line(cls, vllm_command: str) -> ProcessLauncher:
        """From --vllm-command. Raises UsageError when it cannot be split into words."""
        try:
            command = shlex.split(vllm_command)
        except ValueError as error:
            raise UsageError(f"--vllm-command {vllm_command!r}: {error}") from error
        if not command:
            raise UsageError("--vllm-command is empty: give what to run, e.g. 'vllm serve'.")
        return cls(command)

    def argv(self, config: ServerConfig) -> list[str]:
        """What is run for this configuration."""
        address = ["--host", config.host, "--port", str(config.port)]
        own = replace(config, extra_args=())
        return [*self._command, config.model, *own.vllm_args(), *address, *config.extra_args]

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The line for the user: what is run."""
        return self.argv(config)

    async def check(self, config: ServerConfig) -> None:
        """Raises UsageError: no such command, a secret among the arguments, the port in use."""
        refuse_secret_arguments(self.argv(config), "the server's command line")
        program = self._command[0]
        if shutil.which(program) is None:
            raise UsageError(
                f"--vllm-command: {program!r} is no program that can be run here. "
                "Give its path, e.g. --vllm-command '/opt/vllm/bin/vllm serve', or use --launcher docker or sim."
            )
        if readiness.port_in_use(config.host, config.port):
            raise UsageError(launching.port_text(config.port) + " Stop what runs there or choose another with --port.")

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> ProcessServer:
        """Starts the server; its output goes to folder/server.log. Raises LaunchError."""
        launching.refuse_taken_port(config.host, config.port)
        argv = self.argv(config)
        owner = ProcessIdentity.current()
        # unbuffered, or Python servers keep their last words to themselves when they are killed
        env = {"PYTHONUNBUFFERED": "1", **cuda_environment(config), **config.env, VARIABLE: new_mark(owner)}
        record = LaunchRecord(
            launcher=self.name,
            argv=tuple(argv),
            shown_argv=tuple(argv),
            env_names=tuple(name for name in config.env_names if name in os.environ),
            env=env,
            boot_id=owner.boot_id,
            host=owner.host,
            owner=user_name(),
            owner_pid=owner.pid,
            owner_start_time=owner.start_time,
            run_id=run_id,
        )
        log_path = folder / "server.log"
        began = time.monotonic()
        try:
            process = await SupervisedProcess.start(argv, log_path, env, config.env_names)
        except RefusedError as error:
            raise LaunchError(failures.explain(str(error), 127)) from error
        record = replace(record, pid=process.pid, start_time=process.start_time)
        write_launch_record(folder, record)
        return ProcessServer(process, record, log_path, config, began)


class ProcessServer:
    """A server that runs as a process of this machine."""

    def __init__(
        self, process: SupervisedProcess, record: LaunchRecord, log_path: Path, config: ServerConfig, began: float
    ) -> None:
        self.base_url = readiness.base_url(config.host, config.port)
        self.log_path = log_path
        self.record = record
        self._process = process
        self._config = config
        self._began = began
        self._watch = failures.DeathWatch(LogReader(log_path))
        self._oom_kills_before = oom_kills()
        self._stopped: StopReport | None = None

    async def wait_ready(self, timeout_s: float) -> float:
        """Seconds from launch until the launched process itself answers. Raises LaunchError."""
        try:
            await launching.wait_ready(
                self.base_url, self._config.served_model_name, timeout_s, self._process, self._watch, self.log_path
            )
        except launching.DiedError:
            raise LaunchError(await self.failure("start")) from None
        stranger = readiness.foreign_listener(self._config.port, self._process.pids(), self.record.start_time)
        if stranger is not None:
            raise LaunchError(
                failures.port_taken(f"{launching.port_text(self._config.port)} It belongs to pid {stranger}.")
            )
        return time.monotonic() - self._began

    def alive(self) -> bool:
        """Whether the process still runs and its engine has not reported its death in the log."""
        return self._process.alive() and not self._watch.died()

    def gpu_pids(self) -> Sequence[int]:
        """The server's processes on this host."""
        return self._process.pids()

    async def failure(self, phase: str) -> Failure:
        """Why it died, from its exit code and its log; waits a moment for the end of both."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.gone(), launching.DYING_S)
        return failures.explain(
            self.log_path.read_text(errors="replace") if self.log_path.exists() else "",
            self._process.exit_code,
            oom_killed=oom_kills() > self._oom_kills_before,
            phase=phase,
        )

    async def stop(self, grace_s: float = 30.0) -> StopReport:
        """SIGTERM to the group, wait, SIGKILL; returns when nothing of it is left. Safe to call twice."""
        if self._stopped is None:
            began = time.monotonic()
            ended: Ended = await self._process.stop(grace_s)
            self._stopped = StopReport(
                exit_code=ended.exit_code,
                seconds=time.monotonic() - began,
                killed=ended.killed,
                log_tail=tuple(tail(self.log_path, _TAIL_LINES)),
            )
        return self._stopped


def oom_kills() -> int:
    """How many processes this host's kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        rows = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("oom_kill ")), 0)

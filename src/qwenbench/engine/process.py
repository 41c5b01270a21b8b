"""Servers as processes of this machine: `vllm serve`, any other command line, or the simulator."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from qwenbench.engine import caches, failures, readiness
from qwenbench.engine.caches import Caches, kept_by_process
from qwenbench.engine.cards import cuda_environment
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.failures import LaunchError
from qwenbench.engine.launch_record import VARIABLE, LaunchRecord, new_mark
from qwenbench.engine.server import EndState, LaunchedServer, check_launch, start_supervised
from qwenbench.engine.supervised import SupervisedProcess
from qwenbench.errors import UsageError
from qwenbench.processes import oom_kills, own_folder, remove_abandoned, remove_unused_shared_memory, shared_memory_of

_FRESH = "qwenbench-caches-"


class ProcessLauncher:
    """Starts `COMMAND MODEL flags --host H --port P` under a supervisor. No shell is involved."""

    starts_servers = True

    def __init__(
        self, command: Sequence[str], *, name: str = "process", simulated: bool = False, caches: Caches = "kept"
    ) -> None:
        self.name = name
        self.simulated = simulated
        self._caches = caches
        self._command = tuple(command)

    @classmethod
    def of_command_line(cls, vllm_command: str, caches: Caches = "kept") -> ProcessLauncher:
        """From --vllm-command. Raises UsageError when it cannot be split into words."""
        try:
            command = shlex.split(vllm_command)
        except ValueError as error:
            raise UsageError(f"--vllm-command {vllm_command!r}: {error}") from error
        if not command:
            raise UsageError("--vllm-command is empty: give what to run, e.g. 'vllm serve'.")
        return cls(command, caches=caches)

    def argv(self, config: ServerConfig) -> list[str]:
        address = ["--host", config.host, "--port", str(config.port)]
        own = replace(config, extra_args=())
        return [*self._command, config.model, *own.vllm_args(), *address, *config.extra_args]

    def shown_line(self, config: ServerConfig) -> list[str]:
        return self.argv(config)

    async def check(self, config: ServerConfig) -> None:
        """Raises UsageError: no such command, a secret among the arguments, the port in use."""
        check_launch(config, self.argv(config), "the server's command line")
        program = self._command[0]
        if shutil.which(program) is None:
            raise UsageError(
                f"--vllm-command: {program!r} is no program that can be run here. "
                "Give its path, e.g. --vllm-command '/opt/vllm/bin/vllm serve', or use --launcher docker or sim."
            )

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> ProcessServer:
        """Starts the server; its output goes to folder/server.log. Raises LaunchError."""
        readiness.refuse_taken_port(config.host, config.port)
        argv = tuple(self.argv(config))
        fresh = None
        if self._caches == "fresh":
            remove_abandoned(_FRESH, Path(gettempdir()))
            fresh = own_folder(_FRESH, Path(gettempdir()))
        caching = kept_by_process(config) if fresh is None else caches.fresh(fresh.name)
        # unbuffered, or Python servers keep their last words to themselves when they are killed
        env = {"PYTHONUNBUFFERED": "1", **caching, **cuda_environment(config), **config.env, VARIABLE: new_mark()}
        record = LaunchRecord.of(
            self.name, config, argv=argv, shown_argv=argv, env=env, run_id=run_id, simulated=self.simulated
        )
        began = time.monotonic()
        try:
            process, record = await start_supervised(folder, record, config, env)
        except LaunchError:
            if fresh is not None:
                fresh.cleanup()
            raise
        return ProcessServer(process, folder, record, config, began, fresh)


class ProcessServer(LaunchedServer):
    def __init__(
        self,
        process: SupervisedProcess,
        folder: Path,
        record: LaunchRecord,
        config: ServerConfig,
        began: float,
        fresh_caches: TemporaryDirectory[str] | None = None,
    ) -> None:
        super().__init__(process, folder, record, config, began)
        self._port = config.port
        self._oom_kills_before = oom_kills()
        self._fresh_caches = fresh_caches
        self._shared_memory: set[str] = set()

    def gpu_pids(self) -> Sequence[int]:
        return self._process.pids()

    async def _look_when_ready(self) -> None:
        """Raises LaunchError when the answer came from somebody else's server on the same port."""
        stranger = readiness.foreign_listener(self._port, self._process.pids(), self.record.start_time)
        self._shared_memory |= shared_memory_of(self._process.pids())
        if stranger is not None:
            raise LaunchError(failures.port_taken(self._port, by=stranger))

    async def _end_state(self) -> EndState:
        return EndState(self._process.exit_code, oom_killed=oom_kills() > self._oom_kills_before)

    async def _end(self, grace_s: float) -> tuple[int | None, bool]:
        """SIGTERM to the group, SIGKILL after the grace to whatever is left."""
        self._shared_memory |= shared_memory_of(self._process.pids())
        ended = await self._process.stop(grace_s)
        await asyncio.to_thread(remove_unused_shared_memory, self._shared_memory)
        if self._fresh_caches is not None:
            await asyncio.to_thread(self._fresh_caches.cleanup)
        return ended.exit_code, ended.killed

"""A server that runs already (`bench --url`): nothing is started, nothing is stopped, nothing of it is ours."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from qwenbench.bounded_http import WaitLimit, server_base
from qwenbench.engine import failures, readiness
from qwenbench.engine.config import ATTACHED, ServerConfig
from qwenbench.engine.docker import command
from qwenbench.engine.failures import Failure, LaunchError
from qwenbench.engine.launch_record import LaunchRecord, described, write_launch_record
from qwenbench.engine.log_lines import LogSink
from qwenbench.engine.server import STOP_GRACE_S, Server, StopReport
from qwenbench.errors import UsageError
from qwenbench.input_files import GIB, read_input
from qwenbench.masking import Masker
from qwenbench.processes import descendants, listener_pid

_FORWARDERS = ("docker-proxy", "rootlesskit", "rootlessport", "slirp4netns", "pasta", "conmon")
"""Programs that listen for a container: the server is not among their children."""
_TUNNELS = ("ssh", "sshd", "kubectl", "socat", "nginx", "haproxy", "caddy", "envoy")
"""Programs behind which the server may be on any machine."""
_MOST_LOG_BYTES = GIB
_HALF_READ_S = 60.0
_LAST_LOOK_S = 1.0
START_S = 60.0
"""A server that is already there has so long to answer, unless --startup-timeout says otherwise: time for one that
loads its model at the first request."""


def is_local(url: str) -> bool:
    host = (urlsplit(url).hostname or "").lower()
    if host in ("localhost", socket.gethostname().lower()) or host.startswith("127.") or host == "::1":
        return True
    try:
        own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    except (psutil.Error, OSError):
        return False
    return host in own


async def processes_behind(url: str) -> tuple[tuple[int, ...], ...]:
    """The processes of the server under a local address, as nested guesses: the port's owner and what it started,
    then its parent's. Empty when they cannot be told (another user's, another machine's behind a tunnel)."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    owner = await asyncio.to_thread(listener_pid, port)
    name = _name_of(owner)
    if owner is None or name in _FORWARDERS:
        container = await _container_on(port)
        return () if container is None else ((container, *descendants(container)),)
    if name in _TUNNELS:
        return ()
    parent = psutil.Process(owner).ppid()
    guesses = [(owner, *descendants(owner))]
    if _name_of(parent) == name:  # several API servers and the engine are children of one process
        guesses.append((parent, *descendants(parent)))
    return tuple(guesses)


def _name_of(pid: int | None) -> str | None:
    try:
        return None if pid is None or pid <= 1 else psutil.Process(pid).name()
    except psutil.Error:
        return None


async def _container_on(port: int) -> int | None:
    """The first process of the container that publishes a port; None when there is none, or it is not seen here."""
    if not command.available():
        return None
    try:
        found = await command.docker("ps", "--quiet", "--no-trunc", "--filter", f"publish={port}")
        ids = found.out.split() if found.ok else []
        state = await command.inspect_container(ids[0]) if len(ids) == 1 else None
    except (LaunchError, command.EngineError):
        return None
    pid = (state or {}).get("State", {}).get("Pid")
    return int(pid) if pid and psutil.pid_exists(int(pid)) else None


class ServerLog:
    """The log of a server that somebody else runs: a file, or what `docker logs NAME` says."""

    def __init__(self, source: str) -> None:
        """Raises UsageError when there is neither a file of that name nor, as far as it can be told, a container."""
        self._file = Path(source).expanduser()
        self._name = source
        self._is_file = self._file.exists()
        if not self._is_file and not command.available():
            raise UsageError(f"--server-log {source}: there is no such file (and no docker to ask for a container).")

    async def copy_to(self, path: Path) -> None:
        """Writes what it holds now to a file, secrets masked. Raises UsageError when it cannot be had."""
        data = await self._read()
        sink = LogSink(path, Masker.from_environment())
        sink.feed(data)
        sink.close()

    async def _read(self) -> bytes:
        if self._is_file:
            return read_input(self._file, "--server-log", _MOST_LOG_BYTES)
        try:
            said = await command.docker("logs", self._name, limit_s=_HALF_READ_S)
        except LaunchError as error:
            raise UsageError(f"--server-log {self._name}: {error.failure.evidence}") from error
        if not said.ok:
            text = " ".join(said.err.split()) or "docker gave no answer"
            raise UsageError(f"--server-log {self._name}: neither a file nor a container: {text}")
        return (said.out + said.err).encode()  # vLLM logs to stderr, its HTTP server to stdout


class AttachedServer(Server):
    def __init__(
        self,
        url: str,
        folder: Path,
        record: LaunchRecord,
        model: str,
        pids: Sequence[int],
        log: ServerLog | None,
        limit: WaitLimit,
    ) -> None:
        super().__init__(url, folder / "server.log", record, model, time.monotonic())
        self.limit = limit
        self._pids = tuple(pids)
        self._log = log

    async def wait_ready(self, timeout_s: float) -> float:
        """At once: `bench` has waited for its first answer before it planned anything. Reads its log, where that is
        named."""
        if self._log is not None:
            await self._log.copy_to(self.log_path)
        return time.monotonic() - self._began

    def alive(self) -> bool:
        """True: only its answers can tell."""
        return True

    def gpu_pids(self) -> Sequence[int]:
        return self._pids

    async def failure(self, phase: str, said: Sequence[str] = ()) -> Failure:
        """Why it stopped serving: from its log where that was named, else from its own words and whether it answers."""
        if self._log is not None:
            await self._log.copy_to(self.log_path)
            known = failures.explain(self.log_path.read_text(errors="replace"), None, phase=phase)
            if known.kind not in ("unknown", "silent_exit"):
                return known
        try:
            await readiness.poll_ready(self.base_url, WaitLimit(_LAST_LOOK_S), lambda: None)
        except readiness.NotReadyError as error:
            seen = str(error)
        else:
            return Failure("unknown", f"{self.base_url} answers; its log is not known here", "", phase=phase)
        advice = "The server's own log tells why: name it with --server-log FILE (or a container's name)."
        if said:
            kind = "engine_died" if any("EngineCore" in text or "engine" in text for text in said) else "server_failed"
            return Failure(kind, f"{said[0]} (then {seen})", advice, phase=phase)
        return Failure("unreachable", f"{self.base_url}: {seen}", advice, phase=phase)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> StopReport:
        """Does nothing: it is not ours."""
        return StopReport(exit_code=None, seconds=0.0, killed=False)


class AttachedLauncher:
    """`bench --url` as a launcher: what is "launched" runs already and is left running."""

    name = ATTACHED
    starts_servers = False

    def __init__(self, url: str, log: str | None = None) -> None:
        """`log` is a file or a container's name. Raises UsageError for an address that is none."""
        parts = urlsplit(url)
        try:
            readable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            readable = False
        if not readable:
            raise UsageError(f"--url {url!r}: give the server's address, e.g. http://127.0.0.1:8000")
        if parts.username or parts.password:
            raise UsageError("--url: leave the user name and password out and use --api-key-env or --header-env.")
        if parts.query or parts.fragment:
            raise UsageError("--url: leave out what follows the path (? or #); a header is given with --header-env.")
        self.url = server_base(url)
        self.simulated = False
        self.pids: tuple[int, ...] = ()
        """The server's processes on this host, where they were found."""
        self.limit = WaitLimit(START_S)
        """On all waiting for it, from the first question on."""
        self._log = None if log is None else ServerLog(log)

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The address: there is no line to run."""
        return [self.url]

    async def check(self, config: ServerConfig) -> None:
        """Nothing can be known beforehand."""

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> AttachedServer:
        record = LaunchRecord(
            self.name, (), (self.url,), (), run_id=run_id, server=described(config), simulated=self.simulated
        )
        write_launch_record(folder, record)
        return AttachedServer(self.url, folder, record, config.served_model_name, self.pids, self._log, self.limit)

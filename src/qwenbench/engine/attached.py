"""A server that runs already (`bench --url`): nothing is started, nothing is stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from qwenbench.engine import readiness
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.failures import Failure
from qwenbench.engine.launch_record import LaunchRecord, described, write_launch_record
from qwenbench.engine.server import Server, StopReport
from qwenbench.errors import UsageError

LAUNCHER = "url"


class AttachedServer(Server):
    """A server under a URL. Its log and its processes are not ours to see."""

    def __init__(self, url: str, folder: Path, record: LaunchRecord, model: str | None = None) -> None:
        super().__init__(url, folder / "server.log", record, model, time.monotonic())

    async def wait_ready(self, timeout_s: float) -> float:
        """At once: `bench` has waited for its first answer before it planned anything."""
        return time.monotonic() - self._began

    def alive(self) -> bool:
        """True: only its answers can tell."""
        return True

    def gpu_pids(self) -> Sequence[int]:
        """Unknown."""
        return ()

    async def failure(self, phase: str) -> Failure:
        """Whether it still answers; its log is elsewhere."""
        try:
            await readiness.poll_ready(self.base_url, 0.0, lambda: None)
        except readiness.NotReadyError as error:
            evidence = f"{self.base_url}: {error}"
            return Failure("unreachable", evidence, "The server's own log tells why.", phase=phase)
        return Failure("unknown", f"{self.base_url} answers; its log is not known here", "", phase=phase)

    async def stop(self, grace_s: float = 30.0) -> StopReport:
        """Does nothing: it is not ours."""
        return StopReport(exit_code=None, seconds=0.0, killed=False)

    def _not_ready(self, timeout_s: float, seen: str) -> Failure:
        return Failure("unreachable", f"{self.base_url}: {seen}", "Is the server running, and is that its address?")

    def _wrong_model(self, served: Sequence[str]) -> Failure:
        evidence = f"{self.base_url} does not serve {self._model!r} but {', '.join(served)}"
        return Failure("wrong_model", evidence, "Choose one of these with --model.")


class AttachedLauncher:
    """`bench --url` as a launcher: what is "launched" runs already and is left running."""

    name = LAUNCHER

    def __init__(self, url: str) -> None:
        """Raises UsageError for an address that is none."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url!r}: give the server's address, e.g. http://127.0.0.1:8000")
        if parts.username or parts.password:
            raise UsageError("--url: leave the user name and password out and use --api-key-env or --header-env.")
        if parts.query or parts.fragment:
            raise UsageError(
                "--url: leave out what follows ? or #: paths are added to the address, and a key there would show in "
                "logs and in the run folder. Send a key with --api-key-env or --header-env."
            )
        self.url = url.rstrip("/").removesuffix("/v1")
        self.simulated = False

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The address: there is no line to run."""
        return [self.url]

    async def check(self, config: ServerConfig) -> None:
        """Nothing can be known beforehand."""

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> AttachedServer:
        """The server under the URL."""
        record = LaunchRecord(
            self.name, (), (self.url,), (), run_id=run_id, server=described(config), simulated=self.simulated
        )
        write_launch_record(folder, record)
        return AttachedServer(self.url, folder, record, config.served_model_name)

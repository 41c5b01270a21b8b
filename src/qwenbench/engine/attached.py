"""A server that runs already (`bench --url`): nothing is started, nothing is stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from qwenbench.engine import readiness
from qwenbench.engine.server import Failure, LaunchError, LaunchRecord, StopReport
from qwenbench.errors import UsageError


class AttachedServer:
    """A server under a URL. Its log and its processes are not ours to see."""

    def __init__(self, url: str, folder: Path, model: str | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--url {url!r}: give the server's address, e.g. http://127.0.0.1:8000")
        if parts.username or parts.password:
            raise UsageError("--url: leave the user name and password out and use --api-key-env or --header-env.")
        self.base_url = url.rstrip("/").removesuffix("/v1")
        self.log_path = folder / "server.log"
        self.record = LaunchRecord(launcher="url", argv=(), shown_argv=(self.base_url,), env_names=())
        self.models: tuple[str, ...] = ()
        self._model = model

    async def wait_ready(self, timeout_s: float) -> float:
        """Seconds until it answered. Raises LaunchError when it does not, or does not serve the model asked for."""
        began = time.monotonic()
        try:
            answer = await readiness.poll_ready(self.base_url, timeout_s, lambda: None)
        except readiness.NotReadyError as error:
            advice = "Is the server running, and is that its address?"
            raise LaunchError(Failure("unreachable", f"{self.base_url}: {error}", advice)) from None
        self.models = answer.models
        if self._model is not None and answer.models and self._model not in answer.models:
            raise LaunchError(
                Failure(
                    "wrong_model",
                    f"{self.base_url} does not serve {self._model!r} but {', '.join(answer.models)}",
                    "Choose one of these with --model.",
                )
            )
        return time.monotonic() - began

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

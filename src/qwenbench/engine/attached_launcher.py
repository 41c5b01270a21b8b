"""`bench --url` as a launcher: what is "launched" runs already and is left running."""

from __future__ import annotations

from pathlib import Path

from qwenbench.engine.attached import AttachedServer
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.server import Server


class AttachedLauncher:
    """Gives back the server under a URL."""

    name = "url"
    simulated = False

    def __init__(self, url: str) -> None:
        self._url = url

    def shown_line(self, config: ServerConfig) -> list[str]:
        """The address: there is no line to run."""
        return [self._url]

    async def check(self, config: ServerConfig) -> None:
        """Nothing can be known beforehand."""

    async def launch(self, config: ServerConfig, folder: Path, run_id: str) -> Server:
        """The server under the URL. Raises UsageError for an address that is none."""
        return AttachedServer(self._url, folder, config.served_model_name)

"""Between start and ready: what every launcher does in the same way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from qwenbench.engine import failures, readiness
from qwenbench.engine.log_sink import tail
from qwenbench.engine.server import LaunchError

DYING_S = 5.0
"""A server that prints its own death gets these seconds to print the rest of the reason and to exit."""


class Process(Protocol):
    """Something that runs or does not."""

    def alive(self) -> bool:
        """Whether it still runs."""


class DiedError(Exception):
    """The server ended while it was waited for."""


async def wait_ready(
    url: str,
    model: str,
    timeout_s: float,
    process: Process,
    watch: failures.DeathWatch,
    log_path: Path,
) -> None:
    """Returns when the server answers /health and serves the model under its name.

    Raises DiedError when the process ended or printed its death, LaunchError when the time is over or it serves
    something else.
    """
    dying_since: float | None = None

    def check_alive() -> None:
        nonlocal dying_since
        if not process.alive():
            raise DiedError
        if watch.died():
            dying_since = dying_since or time.monotonic()
            if time.monotonic() - dying_since > DYING_S:
                raise DiedError

    try:
        answer = await readiness.poll_ready(url, timeout_s, check_alive)
    except readiness.NotReadyError as error:
        raise LaunchError(failures.never_healthy(timeout_s, str(error), tail(log_path))) from None
    if answer.models and model not in answer.models:
        raise LaunchError(failures.wrong_model(model, answer.models))


def refuse_taken_port(host: str, port: int) -> None:
    """Raises LaunchError when somebody listens on the port before the launch."""
    if readiness.port_in_use(host, port):
        raise LaunchError(failures.port_taken(port_text(port)))


def port_text(port: int) -> str:
    """What is said about a port that is in use."""
    return f"Port {port} answers already, before anything was launched."

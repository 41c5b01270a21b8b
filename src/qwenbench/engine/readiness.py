"""When a server counts as ready: the launched process itself answers /health and serves the model."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Sequence

import aiohttp

from qwenbench.bounded_http import NoReplyError, Questions, WaitLimit
from qwenbench.engine.failures import LaunchError, port_taken
from qwenbench.processes import listener_pid, process_start_time

POLL_S = 0.03
_LEAST_LOOK_S = 0.25
"""A shorter look at a server that is starting tells nothing."""


def reachable_host(host: str) -> str:
    """The address under which a server bound to `host` is reached from here."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def base_url(host: str, port: int) -> str:
    """http://HOST:PORT of a server bound to `host`."""
    name = reachable_host(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def port_in_use(host: str, port: int) -> bool:
    """Whether somebody listens on this port already.

    Both ways of asking are needed: a port that Docker forwards by firewall rules can be bound but answers,
    and one that is bound but not yet listening refuses connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed server's TIME_WAIT is no listener
        try:
            probe.bind((host, port))
        except OSError:
            return True
    with contextlib.suppress(OSError), socket.create_connection((reachable_host(host), port), timeout=0.5):
        return True
    return False


def foreign_listener(port: int, ours: Sequence[int], launched_at_ticks: float | None) -> int | None:
    """The pid that listens on the port although it is neither ours nor younger than our launch; else None.

    A listener of unknown owner, or one that our command had started elsewhere (a container's proxy), is no
    reason to doubt.
    """
    pid = listener_pid(port)
    if pid is None or pid in ours or launched_at_ticks is None:
        return None
    start = process_start_time(pid)
    return pid if start is not None and start < launched_at_ticks else None


def refuse_taken_port(host: str, port: int) -> None:
    """Raises LaunchError when somebody listens on the port before the launch."""
    if port_in_use(host, port):
        raise LaunchError(port_taken(port))


class DiedError(Exception):
    """The server ended while it was waited for."""


class NotReadyError(Exception):
    """The time is over; the text says what was seen last."""


async def poll_ready(url: str, limit: WaitLimit, check_alive: Callable[[], None]) -> tuple[str, ...]:
    """Asks /health, then /v1/models, every 30 ms until both answer 200; the models that it serves.

    None are told behind an API key. `check_alive` is called before each round and raises what ends the wait.
    Raises NotReadyError.
    """
    # a proxy from the environment has no business between here and the server
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True), trust_env=False) as session:
        questions = Questions(session, url, {}, limit)
        while True:
            check_alive()
            began = time.monotonic()
            answer = await _look(questions)
            if isinstance(answer, tuple):
                return answer
            if limit.look_s < min(_LEAST_LOOK_S, limit.limit_s / 8):
                raise NotReadyError(answer)
            await asyncio.sleep(POLL_S)
            limit.count(began, in_vain=True)
            questions.forget()


async def _look(questions: Questions) -> tuple[str, ...] | str:
    """One round: the models of a server that is ready, or what was seen instead."""
    path = "/health"
    try:
        health = await questions.ask(path)
        if health.status != 200:
            return f"/health answered {health.status}"
        path = "/v1/models"
        models = await questions.ask(path)
    except NoReplyError as problem:
        return "no connection" if problem.kind == "refused" else f"{path} gave {problem}"
    if models.status in (401, 403):
        return ()  # behind an API key: it does answer
    if models.status != 200:
        return f"/v1/models answered {models.status}"
    names = model_names(models.json())
    return "/v1/models gave no list of models" if names is None else names


def model_names(answer: object) -> tuple[str, ...] | None:
    """The names in an answer of /v1/models, also as a bare list (Together) or as Ollama lists them; None when it is no
    list of models."""
    data = answer.get("data", answer.get("models")) if isinstance(answer, dict) else answer
    if not isinstance(data, list):
        return None
    names = tuple(str(name) for row in data if isinstance(row, dict) and (name := row.get("id", row.get("name"))))
    return names if names or isinstance(answer, dict) else None

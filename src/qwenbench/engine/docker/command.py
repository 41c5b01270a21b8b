"""Calls of the `docker` program: argument lists, never a shell, and never without a limit on the time."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwenbench.engine.server import Failure, LaunchError

PROGRAM = "docker"
QUICK_S = 20.0


@dataclass(frozen=True, slots=True)
class Said:
    """What a call of docker said."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return self.code == 0

    @property
    def missing(self) -> bool:
        """Whether it failed because the container or image is not there."""
        return not self.ok and "No such " in self.err


async def docker(*arguments: str, limit_s: float = QUICK_S) -> Said:
    """Runs docker and waits; past the limit it is killed and code 124 is given.

    Raises LaunchError(no_engine) when there is no docker program.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
        )
    except FileNotFoundError:
        raise LaunchError(no_program()) from None
    try:
        out, err = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError:
        process.kill()
        await process.wait()
        return Said(124, "", f"docker {arguments[0]} gave no answer within {limit_s:g} s")
    return Said(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def inspect_container(name: str) -> dict[str, Any] | None:
    """docker container inspect as a dictionary; None when it is not there. Raises LaunchError otherwise."""
    said = await docker("container", "inspect", name)
    if said.ok:
        found: list[dict[str, Any]] = json.loads(said.out)
        return found[0]
    if said.missing:
        return None
    raise EngineError(said.err.strip() or f"docker container inspect ended with code {said.code}")


class EngineError(Exception):
    """The engine did not answer as it should; the text is what docker said."""


def available() -> bool:
    """Whether there is a docker program."""
    return shutil.which(PROGRAM) is not None


def no_program() -> Failure:
    """There is no docker program."""
    return Failure(
        "no_engine",
        f"{PROGRAM}: command not found",
        "Install Docker Engine or Docker Desktop, or use --launcher process or sim.",
    )


def _environment() -> Mapping[str, str]:
    # hints and progress bars for people have no place in what is parsed
    return {**os.environ, "DOCKER_CLI_HINTS": "false"}


def lines(said: Said) -> Sequence[str]:
    """Non-empty lines of what was said on stdout."""
    return [line for line in said.out.splitlines() if line]

"""Calls of the `docker` program: argument lists, never a shell, and never without a limit on the time; images."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qwenbench.engine import failures
from qwenbench.engine.failures import Failure, LaunchError

PROGRAM = "docker"
QUICK_S = 20.0
_LAYER = re.compile(r"^([0-9a-f]{12}): (.+)$")
_DONE = ("Pull complete", "Already exists")


@dataclass(frozen=True, slots=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def missing(self) -> bool:
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
            env={**os.environ, "DOCKER_CLI_HINTS": "false"},  # hints for people have no place in what is parsed
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
    return shutil.which(PROGRAM) is not None


def no_program() -> Failure:
    return Failure(
        "no_engine",
        f"{PROGRAM}: command not found",
        "Install Docker Engine or Docker Desktop, or use --launcher process or sim.",
    )


async def image_digest(image: str) -> str | None:
    """The image's digest as its registry knows it, its local id when it came from no registry; None: not here."""
    said = await docker("image", "inspect", "--format", "{{json .RepoDigests}}\t{{.Id}}", image)
    if not said.ok:
        if said.missing:
            return None
        raise LaunchError(failures.explain(said.err, said.code))
    digests, _, identity = said.out.strip().partition("\t")
    known = json.loads(digests) or []
    return str(known[0]) if known else identity


async def ensure_image(image: str, tell: Callable[[str], None]) -> str | None:
    """Pulls the image when it is not here, telling layers done of layers known; its digest.

    Raises LaunchError when it cannot be had.
    """
    digest = await image_digest(image)
    if digest is not None:
        return digest
    tell(f"pulling {image} ...")
    await _pull(image, tell)
    return await image_digest(image)


async def _pull(image: str, tell: Callable[[str], None]) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            PROGRAM, "pull", image, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise LaunchError(no_program()) from None
    assert process.stdout is not None and process.stderr is not None
    errors = asyncio.create_task(process.stderr.read())
    layers: dict[str, bool] = {}
    try:
        async for line in process.stdout:
            found = _LAYER.match(line.decode(errors="replace").strip())
            if found and layers.get(found[1]) is not (done := found[2] in _DONE):
                layers[found[1]] = done
                if done:
                    tell(f"pulling {image}: {sum(layers.values())} of {len(layers)} layers")
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
    text = (await errors).decode(errors="replace")
    if code != 0:
        failure = failures.explain(text, code)
        if failure.kind in ("unknown", "docker_refused", "silent_exit"):
            advice = "Check the tag given with --image and the network, or load it with docker pull or docker load."
            failure = Failure("image_missing", failure.evidence, advice, code)
        raise LaunchError(failure)

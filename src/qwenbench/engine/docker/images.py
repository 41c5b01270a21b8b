"""The server's image: there already or pulled with progress, and known by its digest."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable

from qwenbench.engine import failures
from qwenbench.engine.docker.command import PROGRAM, docker, no_program
from qwenbench.engine.server import Failure, LaunchError

_LAYER = re.compile(r"^([0-9a-f]{12}): (.+)$")
_DONE = ("Pull complete", "Already exists")


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

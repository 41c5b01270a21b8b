"""Each node is looked at before anything is started: what would fail there is said here, in one line."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from qwenbench.capacity.cards import find_card
from qwenbench.cluster.fleet import LostError, card_name
from qwenbench.cluster.node import LOOK_S, niceness, plain_environment
from qwenbench.cluster.ray_fleet import answer_of, node_name, pinned
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.docker.command import image_digest
from qwenbench.errors import UsageError
from qwenbench.sweep.context import resolve_headers
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.preflight import folder_is_missing
from qwenbench.sweep.record import find_site

_NICE = (
    "Ray puts servers and load behind other processes (niceness 15), and raising them takes root: start its nodes with "
    "RAY_worker_niceness=0 ray start ..."
)


def _version_function() -> Callable[[], str | None]:
    """A function that Ray takes along by its code (it is no module's): the node may have another qwenbench, or none.

    It tells the version with a hash of the code: two checkouts of one version are two programs.
    """

    def version() -> str | None:
        from hashlib import sha256
        from pathlib import Path

        try:
            import qwenbench
        except ImportError:
            return None
        code = sha256()
        for path in sorted(Path(qwenbench.__file__).parent.rglob("*.py")):
            code.update(path.read_bytes())
        return f"{qwenbench.__version__} ({code.hexdigest()[:8]})"

    return version


def look(options: SweepOptions, servers: Sequence[ServerConfig]) -> dict[str, Any]:
    """On a node: its hardware as run.json tells it, and its first `problem`, or None."""
    plain_environment()
    try:
        return asyncio.run(_look(options, servers))
    except UsageError as error:
        return {"problem": str(error)}


async def _look(options: SweepOptions, servers: Sequence[ServerConfig]) -> dict[str, Any]:
    resolve_headers(options)
    site = find_site(options)
    await site.launcher.check(replace(servers[0], port=0))  # a launch looks for a port of its own
    for server in servers:
        if options.launcher == "docker" and await image_digest(server.docker.image) is None:
            raise UsageError(f"the image {server.docker.image} is missing: docker pull it there.")
        if options.launcher == "process" and folder_is_missing(server.model):
            raise UsageError(f"--model {server.model}: no such folder there. Put the model at this path on every node.")
    return {"problem": None, "hardware": site.hardware.to_json(), "niceness": niceness()}


async def check_versions(ray: ModuleType, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raises UsageError for the first node whose qwenbench is not this one."""
    version_here = _version_function()
    versions, own = await _on_each(ray, nodes, version_here), version_here()
    for node, version in zip(nodes, versions, strict=True):
        if version != own:
            there = f"has qwenbench {version}" if version else "has no qwenbench that Ray's Python can import"
            raise UsageError(
                f"--cluster: node {node_name(node)} {there}, this is {own}. Install the same one on every node."
            )


async def check_nodes(
    ray: ModuleType, nodes: Sequence[Mapping[str, Any]], options: SweepOptions, servers: Sequence[ServerConfig],
    kind: str | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:  # fmt: skip
    """Looks at all nodes, of which the versions are known to be alike: the hardware of the first, which stands for the
    kind, and what the user should know of them.

    Raises UsageError for the first node on which a launch could not go well, and for nodes of unlike cards.
    """
    found = await _on_each(ray, nodes, look, options, servers)
    for node, one in zip(nodes, found, strict=True):
        if one["problem"] is not None:
            raise UsageError(f"--cluster: node {node_name(node)}: {one['problem']}")
    cards = [card_name(one["hardware"]) for one in found]
    for node, one, card in zip(nodes, found, cards, strict=True):
        _refuse_other_card(kind, node_name(node), one["hardware"])
        if card != cards[0]:
            kinds = ", ".join(f"{name} ({count} nodes)" for name, count in Counter(cards).items())
            raise UsageError(
                f"--cluster: the nodes have unlike cards: {kinds}. Give each kind a resource of its own (ray start "
                "--resources '{\"KIND\": N}') and name them with --on: each becomes a run of its own."
            )
    slowed = [node_name(node) for node, one in zip(nodes, found, strict=True) if one["niceness"] > 0]
    notes = (f"on {', '.join(slowed)} {_NICE}",) if slowed else ()
    return found[0]["hardware"], notes


def _refuse_other_card(kind: str | None, node: str, hardware: Mapping[str, Any]) -> None:
    """Raises UsageError where --on names a known card, and the node's real one is known to be another."""
    if kind is None or not hardware["gpus"]:
        return
    try:
        asked, real = find_card(kind), find_card(hardware["gpus"][0]["name"])
    except UsageError:
        return  # names of a user's own
    if asked != real:
        raise UsageError(f"--on {kind}: node {node} offers it, but its card is a {hardware['gpus'][0]['name']}.")


async def _on_each(
    ray: ModuleType, nodes: Sequence[Mapping[str, Any]], function: Callable[..., Any], *arguments: Any
) -> list[Any]:
    remote = ray.remote(function)
    asked = [pinned(remote, node, max_retries=0).remote(*arguments) for node in nodes]
    answers = []
    for node, answer in zip(nodes, asked, strict=True):
        try:
            answers.append(await answer_of(ray, answer, LOOK_S))
        except LostError as error:
            raise UsageError(f"--cluster: node {node_name(node)} cannot be used: {error}") from None
    return answers

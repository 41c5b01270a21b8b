"""`sweep --cluster`: the same plan on each kind of card of a Ray cluster, a run a kind."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from rich.console import Console

from qwenbench.capacity.cards import find_card
from qwenbench.cli.live_view import PlainLines, terminal_progress
from qwenbench.cli.runs import run_asyncio
from qwenbench.cli.sweep_run import (
    FAILED,
    INTERRUPTED,
    RunRequest,
    closing,
    new_folder,
    note,
    show_plan,
)
from qwenbench.cluster.checks import check_nodes, check_versions
from qwenbench.cluster.clients import RayHost, RemoteClients
from qwenbench.cluster.driver import ClusterSweep
from qwenbench.cluster.ray_fleet import RayFleet, connect, living_nodes, needs_of
from qwenbench.engine.cards import cards_needed
from qwenbench.engine.launchers import make_launcher
from qwenbench.errors import UsageError
from qwenbench.runfolder.damage import read_run_json
from qwenbench.runfolder.names import RunPaths, check_name, find_run, new_run_id, slug
from qwenbench.sweep.extension import extended_fields, known_configurations
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.options import SweepOptions, checked_options
from qwenbench.sweep.plan import Plan, make_plan
from qwenbench.sweep.progress import Progress
from qwenbench.sweep.record import Site, find_site
from qwenbench.sweep.sweep import SweepOutcome, stopping_signals


def client_nodes(ray: ModuleType, address: str, options: SweepOptions, url: str) -> RemoteClients:
    """The nodes that send a bench's load, looked at: those that the server is not on come first. Raises UsageError."""
    wanted, server = options.client_nodes or 1, urlsplit(url).hostname

    def beside(node: Mapping[str, Any]) -> bool:
        return server in (node["NodeManagerAddress"], node["NodeManagerHostname"])

    nodes = sorted(living_nodes(ray), key=beside)
    if len(nodes) < wanted:
        raise UsageError(f"--client-nodes {wanted}: the cluster has {len(nodes)}.")

    tried = {node["NodeID"] for node in nodes[:wanted]}

    async def spare() -> RayHost | None:
        for node in sorted(await asyncio.to_thread(living_nodes, ray), key=beside):
            if node["NodeID"] not in tried:
                tried.add(node["NodeID"])
                with contextlib.suppress(UsageError):
                    await check_versions(ray, [node])
                    return RayHost(ray, node, options)
        return None

    async def prepare() -> RemoteClients:
        await check_versions(ray, nodes[:wanted])
        clients = RemoteClients([RayHost(ray, node, options) for node in nodes[:wanted]], address, spare)
        await clients.check(url)
        return clients

    return run_asyncio(prepare())


@dataclass(frozen=True)
class _KindRun:
    """The plan on one kind of card."""

    kind: str | None
    plan: Plan
    fleet: RayFleet
    about: Mapping[str, Any]
    site: Site
    folder: Path


Kinds = tuple[str | None, ...]
"""Kinds of card to run the plan on; None: whatever card the nodes have, if they are all alike."""


def kinds_of(on: str | None) -> Kinds:
    """Reads --on. Raises UsageError."""
    kinds: Kinds = tuple(word.strip() for word in on.split(",") if word.strip()) if on is not None else (None,)
    if not kinds or len(set(kinds)) != len(kinds):
        raise UsageError(f"--on {on}: give each kind of card once, e.g. --on rtx-5090,rtx-4090.")
    return kinds


def run_on_cluster(request: RunRequest, address: str, kinds: Kinds) -> int:
    """The sweep on each kind of card; returns the exit status of the whole. Raises UsageError before any launch."""
    fields, run_id = request.fields, request.run_id
    folder = None if request.resume is None else find_run(request.resume, "--resume", Path(request.out))
    if folder is not None and len(kinds) > 1:
        raise UsageError("--resume with several kinds in --on: give the same --run-id again instead.")
    if fields.get("devices"):
        raise UsageError("--devices with --cluster: Ray chooses the cards. Leave --devices out.")
    base = check_name(run_id, "--run-id") if run_id is not None else new_run_id(datetime.now())
    ray = connect(address)

    async def prepare() -> list[_KindRun]:
        folders = {kind: folder or _folder(kind if len(kinds) > 1 else None, base, request.out) for kind in kinds}
        warm = not request.dry_run
        return [await _kind_run(ray, address, kind, fields, folders[kind], warm=warm) for kind in kinds]

    runs = run_asyncio(prepare())
    if request.dry_run:
        for run in runs:
            show_plan(run.plan, run.site)
        return 0
    outcomes = run_asyncio(_run_all(runs))
    statuses = []
    for run, outcome in zip(runs, outcomes, strict=True):
        if len(runs) > 1:
            note(f"== {run.kind}")
        statuses.append(closing(outcome, run.folder, f"sweep --cluster {shlex.quote(address)}", request.build_report))
    if INTERRUPTED in statuses:
        return INTERRUPTED
    return statuses[0] if len(set(statuses)) == 1 else FAILED


def _folder(kind: str | None, base: str, out: str) -> Path:
    """The run's folder: with several kinds (else None) one each, which goes on when it is there."""
    if kind is None:
        return new_folder(out, base)
    folder = Path(out) / slug(f"{base}-{kind}")
    return folder if (folder / "run.json").exists() else new_folder(out, folder.name)


async def _kind_run(
    ray: ModuleType, address: str, kind: str | None, fields: dict[str, Any], folder: Path, *, warm: bool
) -> _KindRun:  # fmt: skip
    known: dict[str, str] = {}
    if (folder / "run.json").exists():
        fields = extended_fields(folder, fields)
        known = known_configurations(folder)
        kind = kind or (read_run_json(folder / "run.json").get("cluster") or {}).get("on")
    if kind is not None and fields.get("launcher") == "sim" and "card" not in fields:
        with contextlib.suppress(UsageError):  # a name of the user's own: the simulator's usual card
            fields = {**fields, "card": find_card(kind).name}
    options = checked_options(fields)
    if options.attached:
        raise UsageError("--cluster: bench began this run. Go on with qwenbench bench --url URL --resume RUN.")
    plan = make_plan(options, known)
    servers = [configuration.server for configuration in plan.configurations]
    alive = living_nodes(ray)
    fleet = RayFleet(ray, needs_of(kind, max(map(cards_needed, servers)), options.launcher == "sim", alive))
    if options.client == "remote" and len(alive) < 2:
        raise UsageError("--client remote: the cluster has one node only, and the load needs one beside it.")
    await check_versions(ray, alive if options.client == "remote" else fleet.nodes())
    if warm and not known:
        fleet.warm(len(plan.configurations) * options.relaunch_repeats)
    hardware, notes = await check_nodes(ray, fleet.nodes(), options, servers, kind)
    plan = replace(plan, notes=(*plan.notes, *notes))
    site = find_site(options) if options.launcher == "sim" else _site_of_nodes(options)
    about = {"on": kind, "address": address, "hardware": hardware}
    return _KindRun(kind, plan, fleet, about, site, folder)


def _site_of_nodes(options: SweepOptions) -> Site:
    """The cards are the nodes'; this machine starts no server."""
    assert options.launcher != "url"
    launcher = make_launcher(options.launcher, vllm_command=options.vllm_command, caches=options.caches)
    card = find_card(options.card) if options.card else None
    return Site(launcher, Hardware((), None, "", card, None, "linux"))


async def _run_all(runs: list[_KindRun]) -> list[SweepOutcome]:
    """All kinds at once: their cards are not the same."""
    console, stop = Console(stderr=True), asyncio.Event()
    command_line = ["qwenbench", *sys.argv[1:]]

    async def work(run: _KindRun, progress: Progress) -> SweepOutcome:
        sweep = ClusterSweep(run.plan, RunPaths(run.folder), run.site, progress, run.fleet, run.about, stop)
        return await sweep.run(command_line)

    with stopping_signals(stop):
        if len(runs) == 1:
            with terminal_progress(console) as progress:
                return [await work(runs[0], progress)]
        return await asyncio.gather(*(work(run, PlainLines(console, f"{run.kind}: ")) for run in runs))

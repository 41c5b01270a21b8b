"""What the launches of one sweep share."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from qwenbench.capacity.model_shape import ModelShape
from qwenbench.errors import UsageError
from qwenbench.load.client_error import ClientError
from qwenbench.load.clients import Clients, OwnClients
from qwenbench.masking import Masker, remember_variables
from qwenbench.runfolder.names import RunPaths
from qwenbench.server_words import visible
from qwenbench.sweep.model_files import find_shape, read_shape
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.preflight import Preflight
from qwenbench.sweep.progress import Progress, Schedule, Timings
from qwenbench.sweep.record import Recorder, Site, finish, launches_of, origin
from qwenbench.sweep.requests import RequestLengths
from qwenbench.workload.canary import CanaryResult


class SweepContext:
    """What all launches of a run share: its plan and place, what is told and kept of it, and what they learn."""

    http: aiohttp.ClientSession
    """Open while the sweep runs."""
    recorder: Recorder
    schedule: Schedule

    def __init__(
        self, plan: Plan, paths: RunPaths, site: Site, progress: Progress, clients: Clients | None = None
    ) -> None:
        """`clients`: who sends the load; this machine when left out.

        Raises UsageError for an environment variable that the options name and that is not set."""
        self.plan = plan
        self.clients = clients or OwnClients()
        self.paths = paths
        self.site = site
        self.progress = progress
        self.run_id = paths.root.name
        self.headers: Mapping[str, str] = resolve_headers(plan.options)
        self.nonce = uuid.uuid4().hex[:8]
        """New in every run: salts of two runs against one server never meet."""
        self.stop = asyncio.Event()
        """Set by Ctrl-C or SIGTERM."""
        self.timings = Timings()
        self.notes: list[str] = []
        """What was worth a line, for run.json."""
        self.shape: ModelShape | None = _shape_of(plan)
        """The model's shape; None when no readable config.json is at hand."""
        self.preflight = Preflight(plan, site.launcher.name, site.hardware, self.shape)
        self.first_canary: CanaryResult | None = None
        """The first configuration's canary, which the others are held against."""
        self.others_named: set[str] = set()
        """Processes on the cards that are not ours and were told already."""
        self.cut_answers: dict[str, tuple[int, int]] = {}
        """Profile -> answers that were still thinking at their limit, and all answers."""
        self.request_lengths: dict[tuple[str, str], RequestLengths | None] = {}
        """(scenario, profile) -> how long its requests are; asked of the first server, they all have one tokenizer."""
        self._told: set[str] = set()
        self._meta: dict[str, Any] = {}
        self._client_errors: dict[int, ClientError] = {}

    def note(self, text: str, config_id: str | None = None) -> None:
        """Tells the user once, and keeps it for run.json; `config_id` is the configuration that it is about first."""
        if text in self._told:
            return
        self._told.add(text)
        told = text if config_id is None else f"{config_id}: {text}"
        told = visible(Masker.from_environment()(told))  # a server's own words may be in it
        self.progress.note(told)
        self.notes.append(told)

    def found_simulated(self) -> None:
        """A server that was started says that it is the simulator: so is every figure of this run."""
        self.site.launcher.simulated = True
        finish(self.paths, self._meta, **origin(self.plan, self.site))
        self.note("the server says that it is qwenbench's simulator: every figure of this run is SIMULATED")

    def launched(self) -> None:
        """Keeps in run.json where each launch was made."""
        finish(self.paths, self._meta, launches=launches_of(self.paths))

    def forget_client_errors(self) -> None:
        """Who sends the load is not what it was: its error is measured again."""
        self._client_errors.clear()

    async def client_error(self, concurrency: int) -> ClientError | None:
        """The client's own error at so many streams, as long as a measurement of it is valid."""
        known = self._client_errors.get(concurrency)
        if known is None or not known.valid_at(time.time()):
            known = await self.clients.measure_error(concurrency)
            if known is not None:
                self._client_errors[concurrency] = known
        return known


def resolve_headers(options: SweepOptions) -> dict[str, str]:
    """Header name -> value from the environment; the variables count as secrets from now on.

    Raises UsageError for a variable that is not set.
    """
    remember_variables([*options.header_env.values(), options.bearer_env or ""])
    headers = {name: _from_environment(variable, "--header-env") for name, variable in options.header_env.items()}
    if options.bearer_env is not None:
        headers["Authorization"] = "Bearer " + _from_environment(options.bearer_env, "--api-key-env")
    return headers


def _from_environment(variable: str, option: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise UsageError(f"{option}: the environment variable {variable} is not set.")
    return value


def _shape_of(plan: Plan) -> ModelShape | None:
    server = plan.configurations[0].server
    if plan.options.model_folder is not None:
        return read_shape(Path(plan.options.model_folder), server.model)
    return find_shape(server.model, server.docker.cache_mount)

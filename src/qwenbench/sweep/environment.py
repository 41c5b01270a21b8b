"""What every launch of a sweep works with."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import aiohttp

from qwenbench.capacity.model_shape import ModelShape
from qwenbench.engine.server import Launcher
from qwenbench.load.client_error import ClientError
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.preflight import Preflight
from qwenbench.sweep.progress import Progress
from qwenbench.sweep.recorder import Recorder
from qwenbench.sweep.timings import Timings
from qwenbench.workload.canary import CanaryResult


@dataclass(frozen=True)
class Environment:
    """Shared by all launches of a run."""

    plan: Plan
    run_id: str
    paths: RunPaths
    launcher: Launcher
    hardware: Hardware
    recorder: Recorder
    progress: Progress
    http: aiohttp.ClientSession
    stop: asyncio.Event
    """Set by Ctrl-C or SIGTERM."""
    client_error: Callable[[int], Awaitable[ClientError | None]]
    """The client's own error at so many streams (measured once per host, version and concurrency)."""
    timings: Timings
    preflight: Preflight
    shape: ModelShape | None
    """The model's shape, looked for once; None when no readable config.json is at hand."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers with secrets, resolved from the environment."""
    first_canary: dict[str, CanaryResult] = field(default_factory=dict)
    """The first configuration's canary, which the others are held against."""
    others_named: set[str] = field(default_factory=set)
    """Processes on the cards that are not ours and were told already."""
    notes: list[str] = field(default_factory=list)
    """What was worth a line, for run.json."""
    nonce: str = ""
    """New in every run: salts of two runs against one server never meet."""

    def note(self, text: str) -> None:
        """Tells the user, and keeps it for run.json."""
        self.progress.note(text)
        self.notes.append(text)

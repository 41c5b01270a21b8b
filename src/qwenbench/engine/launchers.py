"""The three ways of starting a server, by name."""

from __future__ import annotations

import sys
from typing import Literal

from qwenbench.engine.caches import Caches
from qwenbench.engine.docker.launcher import DockerLauncher
from qwenbench.engine.process import ProcessLauncher
from qwenbench.engine.server import Launcher

LauncherName = Literal["docker", "process", "sim"]


def make_launcher(
    name: LauncherName,
    *,
    vllm_command: str = "vllm serve",
    card: str | None = None,
    sim_args: tuple[str, ...] = (),
    caches: Caches = "kept",
) -> Launcher:
    """A launcher: containers, processes of this machine (`vllm_command`), or the simulator.

    `card` is the card that the simulator stands for; `sim_args` are further --sim-* flags; `caches`
    says whether servers find what earlier ones compiled.
    Raises UsageError for a command line that cannot be split.
    """
    if name == "sim":
        chosen = ("--sim-card", card) if card else ()
        command = (sys.executable, "-m", "qwenbench.simulator", "serve", *chosen, *sim_args)
        return ProcessLauncher(command, name="sim", simulated=True)
    if name == "process":
        return ProcessLauncher.of_command_line(vllm_command, caches)
    return DockerLauncher(caches=caches)

"""Launchers by name, and which vLLM a launch will run: asked of the image's tag, the installed package, the command."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
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
    caches: Caches = "kept",
) -> Launcher:
    """A launcher: containers, processes of this machine (`vllm_command`), or the simulator.

    `card` is the card that the simulator stands for; `caches` says whether servers find what earlier ones compiled.
    Raises UsageError for a command line that cannot be split.
    """
    if name == "sim":
        command = (sys.executable, "-m", "qwenbench.simulator", "serve", *(("--sim-card", card) if card else ()))
        return ProcessLauncher(command, name="sim", simulated=True)
    if name == "process":
        return ProcessLauncher.of_command_line(vllm_command, caches)
    return DockerLauncher(caches=caches)


_TAG_VERSION = re.compile(r"[:-]v?(\d+\.\d+\.\d+[\w.+]*)")
_VERSION = re.compile(r"\b(\d+\.\d+(?:\.\d+)?(?:[\w.+]*)?)\s*$")
PACKAGE_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 60.0
"""`vllm --version` imports most of vLLM: half a minute from a cold disk."""
_ASK = "from importlib.metadata import version; print(version('vllm'))"


def version_of_image(image: str) -> str | None:
    """The version in a docker image's tag (`vllm/vllm-openai:v0.18.0-cu130`); None for `latest` and digests."""
    name, _, _ = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    found = _TAG_VERSION.match(":" + tag) if tag else None
    return found.group(1) if found else None


def version_of_command(vllm_command: str) -> str | None:
    """The version that a command line runs: the package's metadata by the interpreter in the script's first line, else
    `vllm --version`; None where neither tells."""
    try:
        words = shlex.split(vllm_command)
    except ValueError:
        return None
    program = shutil.which(words[0]) if words else None
    if program is None:
        return None
    interpreter = _interpreter(Path(program))
    if interpreter is not None:
        told = _last_line([interpreter, "-c", _ASK], PACKAGE_TIMEOUT_S)
        if told is not None:
            return told
    if "vllm" not in Path(program).name or words[1:] not in ([], ["serve"]):
        return None  # another program might start a server instead of answering
    return _last_line([program, "--version"], COMMAND_TIMEOUT_S)


def _interpreter(program: Path) -> str | None:
    """The Python that a script names in its first line, or the program itself if it is one."""
    if re.fullmatch(r"python[\d.]*", program.name):
        return str(program)
    try:
        with program.open("rb") as stream:
            first = stream.readline(512).decode("utf-8", errors="replace")
    except OSError:
        return None
    words = first[2:].split() if first.startswith("#!") else []
    if words and words[0].endswith("/env") and len(words) > 1:
        return shutil.which(words[1]) if words[1].startswith("python") else None
    return words[0] if words and "python" in words[0].rpartition("/")[2] else None


def _last_line(command: list[str], timeout_s: float) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    found = _VERSION.search(lines[-1]) if done.returncode == 0 and lines else None
    return found.group(1) if found else None

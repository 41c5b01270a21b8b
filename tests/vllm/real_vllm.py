"""A real vLLM on the CPU, as tests/vllm/run.sh installed it, and sweeps over it by the command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qwenbench.analysis.run import Run, load_run

DEPLOYMENT = Path(__file__).with_name("cpu.yaml")


@dataclass(frozen=True)
class Vllm:
    """Where the real vLLM lies."""

    home: Path

    @property
    def command(self) -> str:
        return f"{self.home}/venv/bin/vllm serve"

    def model(self, name: str) -> str:
        return str(self.home / "models" / name)

    def processes(self) -> list[str]:
        """Command lines and names of all processes that run out of this vLLM's folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                interpreter = (entry / "exe").readlink()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                variables = (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            # EngineCore renames itself: its command line tells nothing, its environment does
            if str(self.home) in f"{interpreter} {line}" or f"VIRTUAL_ENV={self.home}".encode() in variables:
                found.append(f"{entry.name} {line}")
        return found


@dataclass(frozen=True)
class Sweep:
    """A finished `qwenbench sweep`."""

    status: int
    output: str
    run: Run


def sweep(vllm: Vllm, out: Path, model: str, *options: str, command: str = "sweep", run_id: str = "real") -> Sweep:
    """Runs `qwenbench sweep` (or tune) with the process launcher to its end."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "qwenbench", command, "--launcher", "process", "--deployment", str(DEPLOYMENT)),
            *("--vllm-command", vllm.command, "--model", vllm.model(model), "--out", str(out), "--run-id", run_id),
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)  # shown by pytest when a test fails
    assert "Traceback" not in done.stdout
    return Sweep(done.returncode, done.stdout, load_run(out / run_id))

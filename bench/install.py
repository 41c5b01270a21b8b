"""Installing qwenbench as `make install` does it: seconds and megabytes.

    .venv/bin/python bench/install.py

Works on a copy in a temporary folder, into a new virtual environment. pip may find downloads in its cache; how many
megabytes of them there are tells what a slow line adds. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PARTS = ("Makefile", "pyproject.toml", "requirements.lock", "README.md", "LICENSE", "src", "scenarios")


def main() -> None:
    """Copies what an installation needs, installs it and looks at what lies there."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy / part)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        began = time.perf_counter()
        subprocess.run(
            ["make", "--silent", "install"], cwd=copy, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - began
        files = [file for file in (copy / ".venv").rglob("*") if file.is_file() and not file.is_symlink()]
        command: list[str | Path] = [copy / ".venv/bin/qwenbench", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        first_answer = min(_seconds(command) for _ in range(5))
        print(
            json.dumps(
                {
                    "seconds": round(seconds, 1),
                    "megabytes": round(sum(file.stat().st_blocks * 512 for file in files) / 1e6),
                    "packages": len(list((copy / ".venv").glob("lib/*/site-packages/*.dist-info"))),
                    "help_s": round(first_answer, 3),
                }
            )
        )


def _seconds(command: list[Path | str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

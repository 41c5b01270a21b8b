"""The project's own costs as one table: `make bench`.

    .venv/bin/python bench/table.py sweep ARGUMENT..      the arguments: the sweep whose overhead is measured

Each row comes from a script beside this one, which prints one JSON object and can be run alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


def measured(script: str, *arguments: str) -> dict[str, Any]:
    """What a script of this folder prints."""
    print(f"bench/{script} ...", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, str(HERE / script), *arguments], check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def rows(sweep: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """(what, measured, limit, beside) of every benchmark."""
    sse, points, install = measured("sse.py"), measured("points.py"), measured("install.py")
    demo = measured("sweep_overhead.py", *sweep)
    return [
        ("install: time", f"{install['seconds']} s", "60 s", f"{install['packages']} packages"),
        ("install: size", f"{install['megabytes']} MB", "500 MB", "with the virtual environment's own pip"),
        ("qwenbench --help", f"{install['help_s']} s", "0.4 s", "best of 5"),
        ("make demo, installed", f"{demo['command_s']} s", "120 s", " ".join(sweep)),
        (
            "sweep overhead",
            f"{demo['overhead_percent']} %",
            "3 %",
            f"{demo['overhead']} s of {demo['wall']} s, client's check of itself included",
        ),
        ("sweep overhead per configuration", f"{demo['overhead_per_configuration_s']} s", "2 s", ""),
        (
            f"read {sse['megabytes']} MB of SSE",
            f"{sse['cpu_s']} s CPU",
            "2 s",
            f"{sse['tokens']:,} tokens, {sse['us_per_token']} us each",
        ),
        (
            f"{points['requests']:,} request rows to points",
            f"{points['cpu_s']} s CPU",
            "5 s",
            f"wall {points['wall_s']} s, {points['peak_mib']} MiB",
        ),
    ]


def main() -> None:
    """Measures and prints."""
    table = Table("what", "measured", "limit", "beside", title="qwenbench's own costs on this machine")
    for row in rows(sys.argv[1:]):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    main()

"""Lines on stdout in vLLM's form: `(EngineCore pid=N) INFO 11-23 08:12:43 [file.py:1] text`."""

from __future__ import annotations

import os
import sys
from datetime import datetime

API, CORE = "APIServer", "EngineCore"


def say(process: str, where: str, text: str, level: str = "INFO") -> None:
    """One line of vLLM's logger. `where`: file.py:line."""
    plain(line(process, where, text, level))


def line(process: str, where: str, text: str, level: str = "INFO") -> str:
    """The same line without printing it."""
    stamp = datetime.now().strftime("%m-%d %H:%M:%S")
    return f"({process} pid={os.getpid()}) {level} {stamp} [{where}] {text}"


def uvicorn(text: str) -> None:
    """One line of the HTTP server."""
    plain(f"({API} pid={os.getpid()}) INFO:     {text}")


def plain(text: str) -> None:
    """One line as it is. A reader that has gone is no reason to stop."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - kept open for good

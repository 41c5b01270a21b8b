"""`python -m qwenbench.simulator serve MODEL --vllm-flags ...`: the stand-in server as its own process."""

from __future__ import annotations

import asyncio
import os
import sys

from qwenbench.errors import UsageError
from qwenbench.simulator.options import parse
from qwenbench.simulator.server import serve

USAGE = """usage: python -m qwenbench.simulator serve MODEL [vLLM's serve flags] [--sim-* flags]

SIMULATED stand-in for `vllm serve`. MODEL: ig1/Qwen3.5-9B-NVFP4, or a folder with a config.json. Its own flags:
  --sim-card NAME          card to simulate (rtx-5090)
  --sim-seed N             seed of everything that varies (0)
  --sim-startup fast|real  real: start-up takes as long as it was recorded (fast)
  --sim-startup-s S        start-up takes S seconds in all, shared among its phases as recorded
  --sim-warm               start-up phases and lines of a warm compile cache
  --sim-vllm-version V     whose start-up lines are printed: 0.20.2 or 0.26.0 (0.20.2)
  --sim-time-scale X       every simulated duration times X (1)
  --sim-fail KIND          oom-at-start, kv-too-small, hang-at-start, exit-silently, crash-first-request,
                           die-under-load"""


def main(argv: list[str]) -> int:
    """Runs the server; returns the process's exit status."""
    if not argv or argv[0] in ("-h", "--help") or "--help" in argv:
        print(USAGE)
        return 0 if argv else 2
    try:
        options = parse(argv, os.environ)
        return asyncio.run(serve(options))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

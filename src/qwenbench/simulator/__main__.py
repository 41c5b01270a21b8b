"""`python -m qwenbench.simulator serve MODEL --vllm-flags ...`: the stand-in server as its own process."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from qwenbench.errors import UsageError
from qwenbench.simulator.options import parse
from qwenbench.simulator.server import serve

USAGE = """usage: python -m qwenbench.simulator serve MODEL [vLLM's serve flags] [--sim-* flags]

SIMULATED stand-in for `vllm serve`. MODEL: ig1/Qwen3.5-9B-NVFP4, or a folder with a config.json. Its own flags:
  --sim-card NAME          card to simulate (rtx-5090)
  --sim-host NAME|FILE     machine that it stands in: `typical`, one that was measured, or a file (typical)
  --sim-seed N             seed of everything that varies (0)
  --sim-startup fast|real  real: start-up takes as long as it was recorded (fast)
  --sim-startup-s S        start-up takes S seconds in all, shared among its phases as recorded
  --sim-warm               start-up phases and lines of a warm compile cache
  --sim-vllm-version V     whose start-up lines are printed: 0.20.2 or 0.26.0 (0.26.0); step times follow
  --sim-acceptance X       chance that a drafter's token is accepted, given those before it (0)
  --sim-spread             the host's speed differs between launches (--sim-seed) as it was seen to
  --sim-host-pace X        the machine takes X times as long, as beside other servers (1)
  --sim-jit-stall S        the first request waits S seconds for a Triton compilation, which the log tells (0)
  --sim-time-scale X       every simulated duration times X (1)
  --sim-fail KIND          oom-at-start, kv-too-small, hang-at-start, exit-silently, crash-first-request,
                           die-under-load

python -m qwenbench.simulator measure-host RUN [FILE]: takes a machine's times from a measured run's request records
(a short `qwenbench bench --concurrency 1,16` will do) and writes them as a file for --sim-host."""


def main(argv: list[str]) -> int:
    """Runs the server; returns the process's exit status."""
    if not argv or argv[0] in ("-h", "--help") or "--help" in argv:
        print(USAGE)
        return 0 if argv else 2
    try:
        if argv[0] == "measure-host":
            return _measure_host(argv[1:])
        options = parse(argv, os.environ)
        return asyncio.run(serve(options))
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2


def _measure_host(words: list[str]) -> int:
    """Prints the machine's times as JSON, or writes them; how near they come goes to stderr."""
    if not 1 <= len(words) <= 2:
        raise UsageError("measure-host: give the run's folder, and a file to write to if you like")
    from qwenbench.simulator.hosts import measure_host, to_json

    host, lines = measure_host(Path(words[0]))
    print("\n".join(lines), file=sys.stderr)
    text = json.dumps(to_json(host), indent=1)
    if len(words) == 1:
        print(text)
    else:
        try:
            Path(words[1]).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{words[1]}: cannot be written: {error.strerror}") from None
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs a command, ends it after a while, and tells what it cost: python measured_command.py SECONDS FILE COMMAND...

What it takes here and now to start an interpreter with what qwenbench imports is measured beforehand.

A small process of its own: a child's peak memory begins with that of whoever starts it, and pytest is large.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

limit, file, command = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
began = time.monotonic()
subprocess.run([sys.executable, "-c", "import qwenbench.cli.main, qwenbench.sweep.sweep"], check=True)
start_s = time.monotonic() - began
began = time.monotonic()
process = subprocess.Popen(command, start_new_session=True)
try:
    status: int | None = process.wait(limit)
except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    status = None
    process.wait()
ended = time.monotonic()
peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest process below
cost = {"status": status, "seconds": ended - began, "ended": ended, "start_s": start_s, "peak_mib": peak_mib}
file.write_text(json.dumps(cost))

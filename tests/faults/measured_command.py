"""Runs a command, ends it after a while, and tells what it cost: python measured_command.py SECONDS FILE COMMAND...

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
process = subprocess.Popen(command, start_new_session=True)
try:
    status: int | None = process.wait(limit)
except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    status = None
    process.wait()
seconds = time.monotonic() - began
peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest process below
file.write_text(json.dumps({"status": status, "seconds": seconds, "peak_mib": peak_mib}))

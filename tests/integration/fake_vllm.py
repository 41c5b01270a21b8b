"""A TEST DOUBLE for `vllm serve`: answers /health and /v1/models, and misbehaves as it is told to."""

import argparse
import http.server
import json
import mmap
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child up", flush=True)
os.close(int(sys.argv[1]))
time.sleep(600)
"""


def start_child(**options: Any) -> None:
    """Returns when the child ignores SIGTERM: a server has its processes before it answers."""
    up, told = os.pipe()
    subprocess.Popen([sys.executable, "-c", CHILD, str(told)], pass_fds=(told,), **options)
    os.close(told)
    os.read(up, 1)  # empty, once the child has closed its end
    os.close(up)


parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--served-model-name")
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--ignore-term", action="store_true")
parser.add_argument("--stubborn-child", action="store_true", help="a child in a session of its own (EngineCore)")
parser.add_argument("--bare-child", action="store_true", help="a child whose environment cannot be read")
parser.add_argument("--say", help="text to print")
parser.add_argument("--say-env", help="variable whose value is printed")
parser.add_argument("--exit", type=int, help="exit at once with this code")
parser.add_argument("--exit-on-get", type=int, help="exit with this code at the first GET /die")
parser.add_argument("--never-healthy", action="store_true")
parser.add_argument("--shared-memory", help="a segment of /dev/shm that is mapped and never removed")
parser.add_argument("--never-listen", action="store_true")
given, _ = parser.parse_known_args()

if given.stubborn_child:
    start_child(start_new_session=True)
if given.bare_child:
    start_child(env={})
if given.shared_memory:
    segment = pathlib.Path(given.shared_memory).open("w+b")  # noqa: SIM115 - held until the end
    segment.truncate(4096)
    mapped = mmap.mmap(segment.fileno(), 4096)
if given.ignore_term:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if given.say:
    print(given.say)
if given.say_env:
    print("the token is", os.environ[given.say_env], "and that is that")
if given.exit is not None:
    sys.exit(given.exit)
while given.never_listen:
    time.sleep(0.1)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/die":
            print("RuntimeError: told to die", file=sys.stderr)
            os._exit(given.exit_on_get or 0)
        status = 503 if given.never_healthy else 200
        body = json.dumps({"data": [{"id": given.served_model_name}]}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


print("Application startup complete.")
http.server.ThreadingHTTPServer((given.host, given.port), Handler).serve_forever()

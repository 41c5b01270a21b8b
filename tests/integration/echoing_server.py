"""A TEST DOUBLE for `vllm serve` that tells all it knows: environment, headers and bodies, in log and answers."""

import argparse
import base64
import http.server
import json
import os

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--served-model-name")
parser.add_argument("--port", type=int)
given, _ = parser.parse_known_args()

for name, value in sorted(os.environ.items()):
    print(f"ENV {name}={value}")
    print(json.dumps({name: value}), repr(value), base64.b64encode(value.encode("utf-8", "surrogateescape")).decode())
    print(f"progress\rhttp://user:{value}@host/x?token={value}\r")


class Handler(http.server.BaseHTTPRequestHandler):
    """Every second generation fails, with words that hold what came in."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def log_message(self, format: str, *arguments: object) -> None:
        print("REQ", dict(self.headers), flush=True)

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        known = {"/health": b"", "/v1/models": json.dumps({"data": [{"id": given.served_model_name}]}).encode()}
        if self.path in known:
            self._answer(200, known[self.path])
        else:
            self._answer(404, b"{}")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        secret = self.headers.get("X-Secret", "")
        if not self.path.startswith("/v1/chat"):
            self._answer(404, b"{}")
            return
        Handler.asked += 1
        encoded = base64.b64encode(secret.encode("latin-1", "replace")).decode()
        if Handler.asked % 2:
            words = f"headers {dict(self.headers)} key {secret} {encoded} body {body.decode()}"
            self._answer(500, json.dumps({"error": {"message": words, "type": secret}}).encode())
            return
        chunk = {"choices": [{"index": 0, "delta": {"content": f"my key is {secret} "}}]}
        last = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        events = b"".join(
            b"data: " + json.dumps(event).encode() + b"\n\n" for event in (chunk, chunk, chunk, end, last)
        )
        self._answer(200, events + b"data: [DONE]\n\n", "text/event-stream")


server = http.server.ThreadingHTTPServer(("127.0.0.1", given.port), Handler)
print("INFO:     Application startup complete.", flush=True)
server.serve_forever()

"""The truth server: `python -m qwenbench.load.truth.server --port P --ttft-ms A --itl-ms B`.

One epoll loop. Every token has an absolute deadline; what is sent was put together beforehand; the time of
each send is kept, so that the server's own lateness can be told from a client's error. GET /served returns
(and forgets) all requests served so far as JSON. It ends when its stdin does.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import heapq
import os
import re
import resource
import select
import socket
import sys
import time
from array import array
from functools import cache

import orjson

from qwenbench.load.truth.timing import Timing

_SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)
_TFD_NONBLOCK = 0o4000
_ABSOLUTE = 1
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Timerspec(ctypes.Structure):
    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


def chunk(event: dict[str, object] | bytes) -> bytes:
    data = b"data: %s\n\n" % (event if isinstance(event, bytes) else orjson.dumps(event))
    return b"%x\r\n%s\r\n" % (len(data), data)


@cache
def token_chunk(token: int) -> bytes:
    """The chunk of one token, in the shape that vLLM sends."""
    choice = {
        "index": 0,
        "delta": {"content": f" tok{token}"},
        "logprobs": None,
        "finish_reason": None,
        "token_ids": None,
    }
    return chunk(
        {
            "id": "chatcmpl-0123456789abcdef",
            "object": "chat.completion.chunk",
            "created": 1700000000,
            "model": "truth",
            "choices": [choice],
        }
    )


@cache
def last_chunks(tokens: int) -> bytes:
    """Usage, [DONE] and the end of the body."""
    usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return chunk({"choices": [], "usage": usage}) + chunk(b"[DONE]") + b"0\r\n\r\n"


class _Connection:
    __slots__ = ("buffer", "received_ns", "request_id", "sent", "sock", "tokens")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.received_ns = 0
        self.request_id = ""
        self.tokens = 0
        self.sent: array[int] = array("q")


class TruthServer:
    """Serves streams on 127.0.0.1. `port` 0 takes any free port; `self.port` tells which."""

    def __init__(self, port: int, timing: Timing) -> None:
        self._timing = timing
        self._listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._due: list[tuple[int, int, int]] = []
        self._served: list[dict[str, object]] = []
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = int(self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK))

    def serve(self, until_fd: int) -> None:
        """Serve until `until_fd` reaches its end."""
        listener = self._listener.fileno()
        for fd in (listener, self._timer, until_fd):
            self._epoll.register(fd, select.EPOLLIN)
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._timer:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 8)
                elif fd == listener:
                    self._accept()
                elif fd == until_fd:
                    if not os.read(fd, 4096):
                        return
                else:
                    self._read(self._connections[fd])
            self._send_due()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._connections[sock.fileno()] = _Connection(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _drop(self, connection: _Connection) -> None:
        fd = connection.sock.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd]
        connection.sock.close()

    def _read(self, connection: _Connection) -> None:
        try:
            data, control, _, _ = connection.sock.recvmsg(65536, 64)
        except OSError:
            data, control = b"", []
        if not data:
            self._drop(connection)
            return
        stamp = array("q", control[0][2]) if control else None
        connection.received_ns = stamp[0] * 1_000_000_000 + stamp[1] if stamp else time.time_ns()
        connection.buffer += data
        head_end = connection.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(connection.buffer, 0, head_end)
        size = head_end + 4 + (int(length[1]) if length else 0)
        if len(connection.buffer) < size:
            return
        request, connection.buffer = connection.buffer[:size], connection.buffer[size:]
        if request.startswith(b"POST"):
            self._begin(connection, request[head_end + 4 :])
        else:
            self._answer(connection, request.split(b" ", 2)[1])

    def _answer(self, connection: _Connection, path: bytes) -> None:
        body = b"{}"
        if path == b"/served":
            body = orjson.dumps(self._served)
            self._served = []
        elif path == b"/v1/models":
            body = orjson.dumps({"object": "list", "data": [{"id": "truth", "object": "model"}]})
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sock.setblocking(True)
        with contextlib.suppress(OSError):
            connection.sock.sendall(head + body)
        connection.sock.setblocking(False)

    def _begin(self, connection: _Connection, body: bytes) -> None:
        asked = orjson.loads(body)
        connection.tokens = int(asked.get("max_completion_tokens") or asked.get("max_tokens") or 16)
        connection.request_id = str(asked.get("request_id", ""))
        connection.sent = array("q")
        connection.sock.send(_STREAM_HEAD)
        heapq.heappush(self._due, (self._timing.due_ns(connection.received_ns, 0), connection.sock.fileno(), 0))

    def _send_due(self) -> None:
        due = self._due
        while due and due[0][0] <= time.time_ns():
            _, fd, token = due[0]
            connection = self._connections.get(fd)
            if connection is None or len(connection.sent) != token:
                heapq.heappop(due)  # its client is gone
                continue
            last = token + 1 == connection.tokens
            data = token_chunk(token) + last_chunks(connection.tokens) if last else token_chunk(token)
            connection.sent.append(time.time_ns())
            try:
                connection.sock.send(data)
            except OSError:
                self._drop(connection)
                heapq.heappop(due)
                continue
            if last:
                heapq.heappop(due)
                self._served.append(
                    {
                        "request_id": connection.request_id,
                        "received_ns": connection.received_ns,
                        "sent_ns": connection.sent.tolist(),
                    }
                )
            else:
                following = self._timing.due_ns(connection.received_ns, token + 1)
                heapq.heapreplace(due, (following, fd, token + 1))
        if due:
            seconds, nanos = divmod(due[0][0], 1_000_000_000)
            spec = _Timerspec((0, 0), (seconds, nanos))
            self._libc.timerfd_settime(self._timer, _ABSOLUTE, ctypes.byref(spec), None)


def main() -> None:
    """Parse the arguments, say `listening PORT` on stdout, serve."""
    parser = argparse.ArgumentParser(prog="truth-server", description="streams with known timing")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--itl-ms", type=float, default=10.0)
    options = parser.parse_args()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    server = TruthServer(options.port, Timing(options.ttft_ms, options.itl_ms))
    print(f"listening {server.port}", flush=True)
    gc.freeze()
    gc.disable()
    server.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()

"""TCP to one server: its addresses, connections that stamp what they receive, and what all of them share."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from dataclasses import dataclass
from typing import Any

SO_TIMESTAMPNS = getattr(socket, "SO_TIMESTAMPNS", 35)  # 35 in Linux's asm-generic/socket.h
CONTROL_BYTES = socket.CMSG_SPACE(16) if hasattr(socket, "CMSG_SPACE") else 0


@dataclass(slots=True)
class Wiring:
    """What all connections to one server share."""

    loop: asyncio.AbstractEventLoop
    places: list[tuple[int, Any]]
    """Socket family and address of each of the host's addresses, what answered last in front."""
    head: bytes
    """A request's head up to the value of Content-Length."""
    kernel_stamps: bool
    rest_s: float = 0.0
    """Sleep after a round of reads, so that the next round finds several sockets ready; 0: none."""
    resting: bool = False
    open_ends: int = 0
    """Streams in a row that left their connection open after the end mark."""

    async def connect(self) -> socket.socket:
        """A connection to the first of the addresses that takes one. Raises OSError."""
        for place in list(self.places):
            try:
                sock = await self._connect_to(*place)
            except OSError:
                if place == self.places[-1]:
                    raise
            else:
                self.places.sort(key=lambda other: other != place)  # what answered is tried first from now on
                return sock
        raise OSError("the host has no address")

    async def _connect_to(self, family: int, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.kernel_stamps:
                sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            await self.loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock

    def rest(self) -> None:
        """Sleep (the whole process: nothing is lost by it but wake-ups, since the kernel stamps what comes)."""
        self.resting = False
        time.sleep(self.rest_s)


def still_open(sock: socket.socket) -> bool:
    """Whether an idle connection is still open: a server may close it between two requests."""
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False  # closed, or bytes that nobody asked for


_STAMP_ATTEMPTS = 40


def kernel_stamps_work() -> bool:
    """Whether this platform stamps what it receives on a TCP socket.

    Linux begins to stamp a little after the first socket has asked for it, hence the further attempts.
    """
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return False
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sender = stack.enter_context(socket.create_connection(listener.getsockname()))
        receiver = stack.enter_context(listener.accept()[0])
        try:
            receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        except OSError:
            return False
        receiver.settimeout(1.0)
        for _ in range(_STAMP_ATTEMPTS):
            sender.sendall(b"x")
            if any(len(data) == 16 for _, _, data in receiver.recvmsg(1, CONTROL_BYTES)[1]):
                return True
            time.sleep(0.005)
    return False

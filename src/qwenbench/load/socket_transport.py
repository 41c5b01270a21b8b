"""Channels to a plain-http server on sockets of our own, with the kernel's receive times where it gives them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any

from qwenbench.load.address import Address
from qwenbench.load.exchange import Channel
from qwenbench.load.http1 import request_head
from qwenbench.load.socket_channel import CONTROL_BYTES, SO_TIMESTAMPNS, SocketChannel, Wiring

_STAMP_ATTEMPTS = 40
_REST_S = 0.0005


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


class SocketTransport:
    """Channels to one plain-HTTP server. Made inside the event loop that will use it."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self.stamp_source = "kernel" if wiring.kernel_stamps else "user"
        self._channels: list[SocketChannel] = []

    @classmethod
    async def create(cls, address: Address, headers: Mapping[str, str]) -> SocketTransport:
        """Look the host up once. Raises OSError when it is not known, ValueError for a bad header."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        places: list[tuple[int, Any]] = [(int(family), where) for family, _, _, _, where in found]
        head = request_head(address.host_header, address.path, headers)
        return cls(Wiring(loop, places, head, kernel_stamps_work()))

    def rest_between_reads(self) -> None:
        """Sleep 0.5 ms after each round of reads: for many streams in a closed loop.

        Sockets that become ready one by one would wake the process for each; this took a fifth off the CPU
        time per token at 200 streams. What arrives meanwhile is stamped by the kernel, so without its stamps
        this does nothing; a next request may leave up to 0.5 ms later.
        """
        if self._wiring.kernel_stamps:
            self._wiring.rest_s = _REST_S

    async def connect(self, count: int) -> list[Channel]:
        """Open `count` connections, at most 64 at a time so that no listen queue overflows."""
        channels = [self.channel() for _ in range(count)]
        for at in range(0, count, 64):
            await asyncio.gather(*(channel.open() for channel in channels[at : at + 64]))
        return list(channels)

    def channel(self) -> SocketChannel:
        """A channel that connects at its first request."""
        channel = SocketChannel(self._wiring)
        self._channels.append(channel)
        return channel

    async def close(self) -> None:
        """Close all connections."""
        for channel in self._channels:
            channel.close()
        self._channels.clear()

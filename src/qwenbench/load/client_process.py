"""A client process seen from its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import IO

from qwenbench.load.messages import Message, frame, read_message

_SILENCE_S = 120.0
"""A process that says nothing for this long (it reports every second) is given up."""
_CLOSE_S = 5.0


class ProcessLost(Exception):
    """The client process ended, or was ended, before its work was done."""


class ClientProcess:
    """Starts, speaks to and ends one `qwenbench.load.worker`."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process = process
        self._errors = errors
        self._given_up = False

    @classmethod
    async def start(cls, folder: Path) -> ClientProcess:
        """Start one. Its stderr goes to an unnamed file in `folder`, to be quoted should it die.

        It has a session of its own, so that Ctrl-C reaches the parent only, which then stops it in order.
        """
        path = folder / f"stderr-{os.urandom(4).hex()}"
        errors = path.open("w+b")
        path.unlink()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "qwenbench.load.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            # sessions may be of any class that this process can import
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        return cls(process, errors)

    @property
    def alive(self) -> bool:
        """Still running, and not given up."""
        return self._process.returncode is None and not self._given_up

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Queue a message to it. Raises ProcessLost."""
        stdin = self._process.stdin
        assert stdin is not None
        if not self.alive or stdin.is_closing():
            raise ProcessLost(self._obituary())
        try:
            stdin.write(frame(message))
        except (BrokenPipeError, ConnectionResetError):
            raise ProcessLost(self._obituary()) from None

    async def receive(self) -> Message:
        """Its next message. Raises ProcessLost when it is gone or silent."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            async with asyncio.timeout(_SILENCE_S):
                message = await read_message(stdout)
        except TimeoutError:
            self.kill()
            raise ProcessLost(f"it said nothing for {_SILENCE_S:g} s and was ended") from None
        if message is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._process.wait()
            raise ProcessLost(self._obituary())
        return message

    def kill(self) -> None:
        """End it at once."""
        self._given_up = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End it in order: it ends with its stdin."""
        stdin = self._process.stdin
        if stdin is not None:
            stdin.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._errors.close()

    def _obituary(self) -> str:
        code = self._process.returncode
        how = "it is still running" if code is None else f"exit status {code}"
        if code is not None and code < 0:
            how = f"signal {-code}"
        self._errors.seek(0)
        lines = self._errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return f"{how}; {lines[-1][:200]}" if lines else how

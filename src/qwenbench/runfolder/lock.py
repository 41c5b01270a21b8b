"""One writer per run folder."""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import orjson

from qwenbench.errors import UsageError
from qwenbench.processes import ProcessIdentity, host_name


def is_being_written(path: Path) -> bool:
    """Whether a process on this host holds the lock; asks without writing."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


class RunLock:
    """Held while a run is written. The kernel drops it with the process, so it never goes stale on this host.

    The file names its holder; one that names a living writer on another host (a shared file system, or a folder
    that was copied from a machine that has gone) cannot be checked from here, so it is reported, and `takeover`
    says that the user knows that it has gone.
    """

    def __init__(self, path: Path, takeover: bool = False) -> None:
        self._path = path
        self._takeover = takeover
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        """Takes the lock. Raises UsageError when someone else writes to this run."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"--out: {self._path.parent} cannot be written: {error.strerror}. Choose another folder."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._holder(handle)
            os.close(handle)
            who = f"process {holder.pid} on {holder.host}" if holder else "another process"
            raise UsageError(
                f"{self._path.parent}: {who} is writing to this run. Wait for it, or stop it first."
            ) from None
        except OSError as error:
            os.close(handle)
            raise UsageError(
                f"{self._path.parent}: cannot be locked: {error.strerror}. Choose a folder on a local disk with --out."
            ) from error
        holder = self._holder(handle)
        if holder is not None and holder.host != host_name() and not self._takeover:
            os.close(handle)
            raise UsageError(
                f"{self._path.parent}: left locked by process {holder.pid} on another host, {holder.host}. If that "
                f"machine has gone or the run there has ended, resume with --force to take it over."
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, orjson.dumps(asdict(ProcessIdentity.current())), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.ftruncate(self._handle, 0)
            os.close(self._handle)
            self._handle = None

    @staticmethod
    def _holder(handle: int) -> ProcessIdentity | None:
        try:
            return ProcessIdentity(**orjson.loads(os.pread(handle, 4096, 0)))
        except (orjson.JSONDecodeError, TypeError):
            return None

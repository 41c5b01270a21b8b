"""One sweep per card: two servers on one card would measure each other."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwenbench.engine.config import Gpu
from qwenbench.errors import UsageError


def _lock_file(gpu: Gpu) -> Path:
    return Path(tempfile.gettempdir()) / f"qwenbench-{gpu.uuid}.lock"


@contextmanager
def card_locks(gpus: Sequence[Gpu]) -> Iterator[None]:
    """Holds one lock per card, for all users of this machine; the kernel drops it with the process.

    Raises UsageError when another qwenbench measures on one of the cards.
    """
    handles: list[int] = []
    try:
        for gpu in gpus:
            handles.append(_take(gpu))
        yield
    finally:
        for handle in handles:
            os.close(handle)


def _take(gpu: Gpu) -> int:
    path = _lock_file(gpu)
    # readable is enough to lock: another user's file can be locked as well
    handle = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(
            f"card {gpu.index} ({gpu.name}): another qwenbench is measuring on it. Wait for it, or name another card "
            "with --devices."
        ) from None
    return handle

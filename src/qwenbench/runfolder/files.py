"""Durable writes: beside, fsynced, renamed. A reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson

from qwenbench.errors import RunError
from qwenbench.masking import Masker, masked
from qwenbench.processes import command_line

if TYPE_CHECKING:
    import pyarrow as pa


_DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def disk_trouble(error: BaseException, run: Path) -> RunError | None:
    """A disk that is full, read-only or broken, as the user is told it; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _DISK_TROUBLE:
        return None
    return RunError(
        f"{error.filename or run}: {error.strerror}. Finished cells are safe: make room, then --resume {run}."
    )


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """A file that takes `path`'s place when the block ends well; on an error nothing changes.

    `mode`: its permissions, less the umask (0o600: for the owner's eyes only).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_unfinished(run: Path) -> int:
    """Removes what `replacing` left beside its files when its process was killed; returns how many.

    Only for the holder of the run's lock. A report may be made meanwhile: what a process that runs is writing stays.
    """
    left = [path for path in run.rglob(".*.tmp") if _is_left(path)]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _is_left(path: Path) -> bool:
    name = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
    if name is None or path.is_symlink() or not path.is_file():
        return False
    writer = int(name[1])
    return writer == os.getpid() or "qwenbench" not in command_line(writer)


def sync_folder(folder: Path) -> None:
    """Makes a rename in this folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes a whole file durably."""
    with replacing(path, mode) as file:
        file.write(data)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file durably, with its permissions. Raises OSError."""
    with source.open("rb") as data, replacing(target, source.stat().st_mode & 0o777) as file:
        shutil.copyfileobj(data, file)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes one JSON object, indented, durably, and without secrets: every JSON file of a run comes through here."""
    clean = masked(value, Masker.from_environment())
    write_bytes(path, orjson.dumps(clean, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")


def regular(path: Path) -> Path:
    """The path of a regular file; reading a pipe or a device would never end. Raises OSError for anything else."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # reading a folder tells what it is
        raise OSError(errno.EINVAL, "it is a pipe or a device", str(path))
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Reads one JSON object."""
    value = orjson.loads(regular(path).read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return value


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file (zstd) durably."""
    import pyarrow.parquet as pq

    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd")

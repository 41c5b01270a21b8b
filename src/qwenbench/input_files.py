"""Files that a user names: regular ones only, and of a size that such a file can have."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import orjson

from qwenbench.errors import UsageError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MOST_VALUES = 4_000_000
"""In a JSON file: as Python objects they take sixty times the bytes that they have as text."""
_KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a pipe"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
    (stat.S_ISSOCK, "is a socket"),
)


def check_input(path: Path, what: str, most_bytes: int) -> int:
    """The size of a regular file in bytes, without reading it.

    `what` opens the message (`--trace`, `scenario`). Raises UsageError: not there, no regular file (a pipe would be
    waited for, a device would never end), or larger than `most_bytes`.
    """
    try:
        return _checked(path.stat(), path, what, most_bytes)
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error


def read_input(path: Path, what: str, most_bytes: int) -> bytes:
    """The whole of a regular file. Raises UsageError as `check_input` does; never reads more than `most_bytes`."""
    data = bytearray()
    with open_input(path, what, most_bytes) as file:
        # piece by piece: a read of so many bytes would reserve them all
        while len(data) <= most_bytes and (piece := file.read(MIB)):
            data += piece
    if len(data) > most_bytes:  # it grew, or its size was not told (files of /proc)
        raise _too_large(path, what, most_bytes)
    return bytes(data)


@contextmanager
def open_input(path: Path, what: str, most_bytes: int) -> Iterator[IO[bytes]]:
    """A regular file to be read. Raises UsageError as `check_input` does, and where reading fails."""
    try:
        file = _opened(path)
    except (OSError, ValueError) as error:
        raise _unreadable(path, what, error) from error
    with file:
        try:
            _checked(os.fstat(file.fileno()), path, what, most_bytes)
            yield file
        except OSError as error:
            raise _unreadable(path, what, error) from error


def _opened(path: Path) -> IO[bytes]:
    """Without O_NONBLOCK opening a pipe waits for its writer."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def read_input_text(path: Path, what: str, most_bytes: int) -> str:
    """The same as text. Raises UsageError also for bytes that are no UTF-8."""
    data = read_input(path, what, most_bytes)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{what} {path}, line {line}: is not UTF-8 (byte 0x{data[error.start]:02x}).") from error


def read_json(path: Path, what: str, most_bytes: int) -> Any:
    """A JSON file. Raises UsageError also for what is no JSON, with the place."""
    data = read_input(path, what, most_bytes)
    if sum(map(data.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise UsageError(f"{what} {path}: holds more than {MOST_VALUES:,} values, more than such a file can need.")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{what} {path}: no JSON ({error})") from None


PACKED = (".gz", ".zst", ".bz2")
"""Endings of packed files that can be read."""


def open_unpacked(path: Path) -> IO[bytes]:
    """A file, unpacked where its first bytes say gzip, zstd or bzip2. Raises OSError, and UsageError for an archive."""
    with _opened(path) as file:
        start = file.read(4) or b""
    if start.startswith(b"PK\x03\x04"):
        raise UsageError(f"{path}: is a ZIP archive. Unpack it first.")
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(path, "rb"))
    if start.startswith(b"BZh"):
        return cast(IO[bytes], bz2.open(path, "rb"))
    if start == b"\x28\xb5\x2f\xfd":
        import pyarrow as pa  # takes a moment, and few commands come here

        return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
    return _opened(path)


def plain_name(name: str) -> str:
    """A file's name without the ending that says how it is packed."""
    return next((name.removesuffix(end) for end in PACKED if name.endswith(end)), name)


def _checked(status: os.stat_result, path: Path, what: str, most_bytes: int) -> int:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "is no regular file")
        raise UsageError(f"{what} {path}: {kind}. Give a regular file.")
    if status.st_size > most_bytes:
        raise _too_large(path, what, most_bytes)
    return status.st_size


def _too_large(path: Path, what: str, most_bytes: int) -> UsageError:
    unit, name = next((u, n) for u, n in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")) if most_bytes >= u)
    return UsageError(f"{what} {path}: is larger than {most_bytes // unit} {name}, more than such a file can need.")


def _unreadable(path: Path, what: str, error: OSError | ValueError) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(f"{what} {path}: cannot be read: {reason}.")

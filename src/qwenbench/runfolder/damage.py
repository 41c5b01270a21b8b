"""Damaged files of a run: each costs only what stood in it, and is named once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qwenbench.errors import UsageError
from qwenbench.runfolder.files import read_json, regular

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
_LOG = logging.getLogger("qwenbench.runfolder")


def read_run_json(path: Path) -> dict[str, Any]:
    """run.json, without which there is no run. Raises UsageError: not there, or damaged."""
    if not path.exists():
        raise UsageError(
            f"{path.parent}: no run here (run.json is missing). Give the folder that a sweep or bench wrote."
        )
    try:
        return read_json(path)
    except (ValueError, OSError) as error:
        words = " ".join(str(error).replace(str(path), "it").split())
        raise UsageError(
            f"{path}: the run cannot be read: {words}. Restore the file; the points are in points.csv."
        ) from error


def tell_damage(path: Path, reason: object, cost: str) -> None:
    """Says that a file cannot be read, why, and what is missing because of it (a command shows it once a file)."""
    words = " ".join(str(reason).replace(str(path), "it").split())
    _LOG.warning("%s is damaged (%s): %s", path, words[:160], cost)


def if_readable(read: Callable[[Path], T], path: Path, cost: str) -> T | None:
    """What `read` makes of the file; None when there is none, or when it is damaged, which is told with its cost."""
    try:
        return read(regular(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        tell_damage(path, error, cost)
        return None


def object_or_none(path: Path, cost: str) -> dict[str, object] | None:
    """A JSON object; None as for `if_readable`."""
    return if_readable(read_json, path, cost)


def mapping(value: Any) -> Mapping[str, Any]:
    """A part of such an object that should hold names itself; empty where it does not."""
    return value if isinstance(value, Mapping) else {}


def text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def table_or_none(path: Path, cost: str, columns: list[str] | None = None) -> pa.Table | None:
    """A Parquet table, or these columns of it; None as for `if_readable`."""

    def read(file: Path) -> pa.Table:
        import pyarrow as pa  # a node of a cluster reads journals alone, and starts in a third of the time without it
        import pyarrow.parquet as pq

        if not file.exists():
            raise FileNotFoundError(file)
        try:
            return pq.read_table(file, columns=columns, use_threads=columns is None)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error

    return if_readable(read, path, cost)

"""Rows of points.csv: which are valid, and the request latencies that they were made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from qwenbench.analysis.request_arrays import Floats, RequestArrays
from qwenbench.analysis.window import window_of

LOAD_POINT = ("config_id", "scenario", "profile", "load_shape", "concurrency", "rate")
"""Columns that name a load point; its rows differ only in launch and repeat."""


CELL = (*LOAD_POINT, "launch", "repeat")
"""Columns that name a cell."""


def row_records(rows: pd.DataFrame, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows as dictionaries of these columns, or of all (unknown: NaN or None)."""
    names = list(columns) if columns is not None else [str(name) for name in rows]
    values = [rows[name].tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def valid_mask(points: pd.DataFrame) -> NDArray[np.bool_]:
    """For each row of points.csv: whether decisions may rest on it."""
    if "valid" not in points:
        return np.ones(len(points), dtype=np.bool_)
    return np.asarray(points["valid"].astype(str).str.lower().isin(["true", "1", "1.0"]), dtype=np.bool_)


def valid_rows(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of points.csv that decisions may rest on."""
    return points[valid_mask(points)]


def known(value: Any) -> bool:
    """Whether a value read from points.csv is there."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def latencies_in_window(requests: pa.Table, row: Mapping[str, Any]) -> dict[str, Floats]:
    """ttft, ttfo, tpot and e2e (ms, no NaN) of the requests that a point's latency columns were made of.

    Empty when nothing succeeded.
    """
    arrays = RequestArrays.of(requests)
    concurrency = int(row["concurrency"]) if known(row["concurrency"]) else None
    window = window_of(arrays, str(row["load_shape"]), concurrency)
    if window is None:
        return {}
    started = window.holds_start(arrays.begin_ns) & arrays.ok
    picked = {name: values[started] for name, values in arrays.latencies_ms().items()}
    return {name: values[~np.isnan(values)] for name, values in picked.items()}

"""Whether the client was good enough for a point: its self-check held against what the point measured."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from qwenbench.load.selfcheck import ClientError
from qwenbench.load.spec import LoadResult
from qwenbench.load.validity import invalid_reason


def client_verdict(result: LoadResult, error: ClientError | None) -> str | None:
    """Why the point is invalid on the client's account, None when it is valid. All times in ms."""
    ok = result.requests.filter(pc.is_null(result.requests["error"]))
    gaps = pc.list_flatten(ok["itl_ms"])
    return invalid_reason(result.health, error, _median(ok["ttft_ms"]), _median(gaps), _merged_share(ok, len(gaps)))


def _merged_share(ok: pa.Table, timed: int) -> float | None:
    """Share of gaps whose time is not known, of all gaps; None without any."""
    merged = pc.sum(ok["gaps_merged"]).as_py() or 0
    return merged / (merged + timed) if merged + timed else None


def _median(values: pa.ChunkedArray) -> float | None:
    """The median of the known values, or None."""
    value = pc.quantile(values, 0.5, skip_nulls=True)[0].as_py()
    return None if value is None else float(value)

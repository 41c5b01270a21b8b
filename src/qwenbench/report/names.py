"""Units and decimal places of the figures that people read; their plain names stand with the columns."""

from __future__ import annotations

from typing import Any

from qwenbench.analysis.columns import POINT_COLUMNS, Column, label
from qwenbench.report.document import Number, Term

_DIGITS = {
    "requests_per_s": 2, "input_tokens_per_s": 0, "output_tokens_per_s": 0, "total_tokens_per_s": 0,
    "output_tokens_per_s_per_user": 1, "energy_j_per_output_token": 3, "requests_that_fit": 0, "kv_cache_gib": 2,
    "kv_cache_blocks": 0, "kv_cache_tokens": 0, "max_num_seqs": 0, "startup_s": 1, "graphs_actual_gib": 2,
    "capture_s": 1,
}  # fmt: skip
_LATENCY_DIGITS = {"ttft": 0, "ttfo": 0, "e2e": 0, "tpot": 1, "itl": 1}
_UNITS = {"graphs_actual_gib": "GiB", "capture_s": "s"}
_COLUMNS: dict[str, Column] = {name: column for column in POINT_COLUMNS for name in (column.name, column.key)}


def unit(key: str) -> str:
    """The unit that the figure is shown in; VRAM is shown in GiB."""
    if key.endswith("_mib"):
        return "GiB"
    return _COLUMNS[key].unit if key in _COLUMNS else _UNITS.get(key, "")


def titled(key: str) -> str:
    """Name and unit for a table's head or an axis."""
    word, shown = label(key), unit(key)
    implied = not shown or shown in ("requests", "blocks") or "/s" in word
    return word if implied else f"{word}, {shown}"


def term(key: str, words: str | None = None) -> Term | str:
    """The name (or other words for it) with its definition to look up, where it has one."""
    shown = titled(key) if words is None else words
    return Term(shown, _COLUMNS[key].name) if key in _COLUMNS else shown


def number(key: str, value: Any, low: float | None = None, high: float | None = None, *, bare: bool = False) -> Number:
    """A figure of this metric or column; `bare` leaves the unit to the table's head."""
    scale = 1024.0 if key.endswith("_mib") else 1.0
    known = None if value is None else float(value) / scale
    below, above = (None if bound is None else bound / scale for bound in (low, high))
    shown = unit(key)
    return Number(known, "" if bare or shown in ("requests", "blocks") else shown, digits(key), below, above)


def digits(key: str) -> int | None:
    """Decimal places of a figure; None: four significant digits."""
    if key.endswith("_mib"):
        return 2
    stem = key.replace("_ms_", "_").rpartition("_")[0]
    return _LATENCY_DIGITS.get(stem, _DIGITS.get(key))

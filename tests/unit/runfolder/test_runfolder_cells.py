"""A point has one name: the plan, a row of points.csv and the files of a run all spell it alike."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.runfolder.cells import Cell, LoadPoint, load_label
from qwenbench.runfolder.names import check_name
from qwenbench.sweep.record import points_csv

RATES = st.floats(1e-6, 1e6)


def row_of(cell: Cell) -> dict[str, Any]:
    """What a row of points.csv tells of its cell."""
    point = cell.point
    return {"config_id": cell.config_id, "launch": cell.launch, "scenario": point.scenario, "profile": point.profile,
            "concurrency": point.concurrency, "rate": point.rate, "repeat": point.repeat}  # fmt: skip


@pytest.mark.parametrize(
    ("concurrency", "rate", "name", "label"),
    [
        (8, None, "c8", "8 streams"),
        (1, None, "c1", "1 stream"),
        (None, 2.0, "r2.0", "2/s"),
        (None, 2, "r2.0", "2/s"),
        (None, 0.5, "r0.5", "0.5/s"),
        (None, None, "trace", "trace"),
    ],
)
def test_a_load_has_one_name_and_one_label(concurrency: int | None, rate: float | None, name: str, label: str) -> None:
    cell = Cell("cap16-seq16", 2, LoadPoint("math", "instruct-general", concurrency, rate, 3))
    assert cell.cell_id == f"cap16-seq16.l2.math.instruct-general.{name}.3"
    assert cell.point.label == label
    row = row_of(cell)
    assert Cell.of_row(row) == cell
    # read from a table, unknown is NaN and counts are floats
    read = {key: math.nan if value is None else float(value) if key == "concurrency" else value
            for key, value in row.items()}  # fmt: skip
    assert Cell.of_row(read).cell_id == cell.cell_id


@given(RATES)
def test_a_rates_name_survives_points_csv(rate: float) -> None:
    """Records and samples are looked for by the name that the row gives."""
    cell = Cell("cap16", 1, LoadPoint("math", "p", None, rate, 1))
    text = points_csv([row_of(cell)], []).decode()
    read = {key: float(value) if key == "rate" else math.nan if key == "concurrency" else value
            for key, value in next(csv.DictReader(io.StringIO(text))).items()}  # fmt: skip
    assert Cell.of_row(read).cell_id == cell.cell_id


@given(st.text(min_size=1, max_size=120), st.sampled_from(["a b", "a-b"]), st.integers(1, 9))
def test_names_of_different_points_differ_however_long_or_odd(scenario: str, profile: str, repeat: int) -> None:
    one, other = (LoadPoint(scenario, profile, 8, None, number) for number in (repeat, repeat + 1))
    assert one.point_id != other.point_id
    assert check_name(one.point_id, "point") == one.point_id
    assert LoadPoint(scenario, "a b", 8, None, 1).point_id != LoadPoint(scenario, "a-b", 8, None, 1).point_id


def test_short_labels_stand_under_a_heading() -> None:
    shorts = [load_label(streams, rate, short=True) for streams, rate in ((32, None), (None, 2.0), (None, None))]
    assert shorts == ["32", "2/s", "trace"]

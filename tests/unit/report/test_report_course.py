"""The course of a run: launches in their order and length, from the journal; start-up by phase, from the ledgers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.analysis.run import Run, load_run
from qwenbench.report.course import course, course_of, duration
from qwenbench.report.document import Picture, Table
from qwenbench.report.html_writer import HtmlWriter
from qwenbench.report.page import build_report
from qwenbench.report.page_data import page_data
from qwenbench.runfolder.files import read_json, write_json
from qwenbench.runfolder.journal import Entry, Journal
from qwenbench.runfolder.names import RunPaths

Planted = Callable[..., Run]
BEGUN = 1_700_000_000.0


def journalled(run: Run, *cells: tuple[str, int, float, float, float]) -> Run:
    """Adds cells (configuration, launch, start, end, start-up) to the run's journal, seconds since it began."""
    journal = Journal(RunPaths(run.path).journal)
    for number, (config, launch, start, end, startup) in enumerate(cells):
        point = {**dict.fromkeys(COLUMN_NAMES), "config_id": config, "launch": launch, "repeat": number + 1}
        point |= {"scenario": "math", "profile": "general", "load_shape": "closed", "concurrency": 8, "valid": True}
        point |= {"duration_s": end - start, "startup_s": startup}
        journal.append(Entry(f"cell-{number}", config, launch, point, int((BEGUN + end) * 1e9)))
    return load_run(run.path)


def test_a_launch_begins_where_the_one_before_ended(planted: Planted) -> None:
    run = planted(meta={"started": "2023-11-14T22:13:20+00:00"})
    run = journalled(
        run, ("cap16-seq16", 1, 50, 60, 40), ("cap16-seq16", 1, 65, 75, 40), ("cap32-seq32", 1, 120, 130, 42)
    )
    first, second = course_of(run)
    assert (first.begun_s, first.startup_s, first.end_s) == pytest.approx((0, 40, 75), abs=1e-3)
    assert [(cell.start_s, cell.end_s) for cell in first.cells] == [pytest.approx((50, 60)), pytest.approx((65, 75))]
    assert second.begun_s == pytest.approx(75, abs=1e-3)


def test_a_launch_begins_when_its_record_says_unless_it_was_made_again(planted: Planted) -> None:
    run = planted(meta={"started": "2023-11-14T22:13:20+00:00"})
    for config, began in (("cap16-seq16", 8.0), ("cap32-seq32", 500.0)):
        file = RunPaths(run.path).server(config) / "launch.json"
        write_json(file, {**read_json(file), "started_ns": int((BEGUN + began) * 1e9)})
    run = journalled(run, ("cap16-seq16", 1, 50, 60, 40), ("cap32-seq32", 1, 120, 130, 42))
    first, second = course_of(run)
    assert first.begun_s == pytest.approx(8, abs=1e-3)
    assert second.begun_s == pytest.approx(60, abs=1e-3), "its point is older than the launch that the record is of"


def test_launches_side_by_side_are_placed_by_their_own_points(planted: Planted) -> None:
    run = planted(meta={"started": "2023-11-14T22:13:20+00:00"})
    run = journalled(run, ("cap16-seq16", 1, 50, 90, 40), ("cap32-seq32", 1, 52, 95, 40))
    first, second = course_of(run)
    assert (first.begun_s, second.begun_s) == pytest.approx((0, 12), abs=1e-3)


def test_every_launch_has_its_row_and_the_page_shows_it(planted: Planted) -> None:
    run = journalled(planted(), ("cap16-seq16", 1, 50, 60, 40), ("cap16-seq16", 2, 120, 130, 40))
    picture, table = course(run, page_data(run, samples=False))
    assert isinstance(picture, Picture) and isinstance(table, Table)
    assert "cap16-seq16 launch 1" in picture.svg and "cap16-seq16 launch 2" in picture.svg
    assert picture.svg in build_report(run)
    shown = HtmlWriter().write([table])
    assert "profiling" in shown and "14.2" in shown


def test_a_run_without_a_journal_still_has_its_phases(planted: Planted) -> None:
    run = planted()
    (table,) = course(run, page_data(run, samples=False))
    assert isinstance(table, Table) and len(table.rows) == 3


@pytest.mark.parametrize(("seconds", "words"), [(48, "48 s"), (89.6, "90 s"), (600, "10 min"), (7500, "2 h 05 min")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words

"""What a sweep writes: points.csv from the journal, run.json, and what --resume refuses."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.engine.launchers import LauncherName, make_launcher
from qwenbench.errors import UsageError
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.observe.metrics import METRICS_SCHEMA
from qwenbench.observe.nvml import NVML_SCHEMA
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.runfolder.files import read_json
from qwenbench.runfolder.journal import Journal
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep.extension import extended_fields, known_configurations, stored_options
from qwenbench.sweep.hardware import find_hardware
from qwenbench.sweep.options import SweepOptions, checked_options
from qwenbench.sweep.plan import make_plan
from qwenbench.sweep.record import CellResult, Recorder, Samples, Site, begin, describe, points_csv

CELL = Cell("cap16-seq16", 1, LoadPoint("math", "instruct-reasoning", 8, None, 1))


def empty(schema: pa.Schema) -> pa.Table:
    return schema.empty_table()


def record(recorder: Recorder, cell: Cell = CELL, **point: Any) -> None:
    samples = Samples(empty(METRICS_SCHEMA), empty(NVML_SCHEMA))
    recorder.record(cell, CellResult(point, empty(REQUEST_SCHEMA), samples, {}, engine_dead=False))


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_points_csv_has_the_contracts_columns_in_order_then_the_varied_flags() -> None:
    header = points_csv([], ["max-num-batched-tokens", "dtype"]).decode().splitlines()[0].split(",")
    assert header == [*COLUMN_NAMES, "vary_max_num_batched_tokens", "vary_dtype"]


@pytest.mark.parametrize("unknown", [None, math.nan])
def test_an_unknown_value_is_empty_and_a_zero_is_zero(unknown: float | None) -> None:
    (row,) = rows(points_csv([{"preemptions": 0, "energy_j_per_output_token": unknown, "valid": True}], []))
    assert row["preemptions"] == "0"
    assert row["energy_j_per_output_token"] == ""
    assert row["valid"] == "True"


def test_text_with_commas_and_quotes_comes_back(tmp_path: Path) -> None:
    (row,) = rows(points_csv([{"invalid_reason": 'a, "b"'}], []))
    assert row["invalid_reason"] == 'a, "b"'


def test_a_cell_is_done_when_its_files_and_its_line_are_there(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    recorder = Recorder(paths, ())
    assert not recorder.is_done(CELL)
    record(recorder, config_id="cap16-seq16", preemptions=3)
    assert recorder.is_done(CELL)
    assert Recorder(paths, ()).is_done(CELL)  # another process reads the same
    for file in (
        paths.cell_requests(CELL.cell_id),
        paths.metrics_samples(CELL.config_id, CELL.cell_id),
        paths.nvml_samples(CELL.config_id, CELL.cell_id),
    ):
        assert file.exists()
    assert rows(paths.points.read_bytes())[0]["preemptions"] == "3"


def test_the_journal_speaks_only_after_the_files_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = RunPaths(tmp_path)
    append = Journal.append

    def checked(self: Journal, entry: Any) -> None:
        assert paths.cell_requests(entry.cell).exists()
        append(self, entry)

    monkeypatch.setattr(Journal, "append", checked)
    record(Recorder(paths, ()))


def test_points_are_derived_anew_from_the_journal(tmp_path: Path) -> None:
    """points.csv may be lost or edited: the journal is the truth."""
    paths = RunPaths(tmp_path)
    record(Recorder(paths, ()), config_id="cap16-seq16", preemptions=1)
    paths.points.write_text("edited")
    Recorder(paths, ()).write_points()
    assert rows(paths.points.read_bytes())[0]["config_id"] == "cap16-seq16"


SITE = Site(
    make_launcher("sim", vllm_command="vllm serve", card="RTX 5090"), find_hardware(SweepOptions(launcher="sim"))
)


def described(simulated: bool = True, **options: Any) -> dict[str, Any]:
    launcher: LauncherName = "sim" if simulated else "process"
    made = SweepOptions(**{"launcher": "sim", "scenario": ("math",), "concurrency": (1,)} | options)
    site = Site(make_launcher(launcher, vllm_command="vllm serve", card="RTX 5090"), find_hardware(made))
    words = ["qwenbench", "sweep", "--out", "very-secret-value"]
    return describe(make_plan(made), "run", site, words)


def test_run_json_holds_the_conditions_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-secret-value")
    paths = RunPaths(tmp_path)
    begin(paths, described(capture=(16,)))
    kept = read_json(paths.run_json)
    assert kept["simulated"] is True
    assert "SIMULATED" in kept["notice"]
    assert kept["command_line"] == ["qwenbench", "sweep", "--out", "***"]
    assert kept["order"] == ["math.instruct-reasoning.c1.1"]
    assert kept["scenarios"]["math"]["text"].startswith("# Word problems")
    assert kept["profiles"]["instruct-reasoning"]["temperature"] == 1.0
    assert list(kept["configurations"]) == ["cap16-seq16"]
    assert kept["versions"]["vllm"] is None  # not known before the first server's log was read
    assert stored_options(tmp_path).capture == (16,)


def test_the_same_plan_goes_on_and_keeps_what_was_written(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    first = begin(paths, described(capture=(16,)))
    again = begin(paths, {**described(capture=(16,)), "started": "later"})
    assert again["started"] == first["started"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"capture": (32,)}, "configurations"),
        ({"capture": (16,), "seed": 5}, "load options: seed"),
        ({"capture": (16,), "requests": "8"}, "load options: requests, until_steady"),
        ({"capture": (16,), "profile": "none"}, "load points: math.instruct-reasoning.c1.1"),
    ],
)
def test_another_plan_is_refused_with_the_part_that_changed(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    paths = RunPaths(tmp_path)
    begin(paths, described(capture=(16,)))
    before = paths.run_json.read_bytes()
    with pytest.raises(UsageError, match=rf"the plan has changed \([^)]*{told}"):
        begin(paths, described(**change))
    assert paths.run_json.read_bytes() == before


def test_a_run_grows_by_repeats_loads_scenarios_profiles_and_configurations(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    begin(paths, described(capture=(16,), gpu_memory_utilization=(0.95,)))
    given = {
        "capture": (32,),
        "gpu_memory_utilization": (0.9,),
        "repeats": 2,
        "concurrency": (8, 1),
        "scenario": ("code",),
        "profile": ("instruct-reasoning", "none"),
    }
    options = checked_options(extended_fields(tmp_path, given))
    assert (options.capture, options.concurrency, options.scenario) == ((16, 32), (1, 8), ("math", "code"))
    larger = make_plan(options, known_configurations(tmp_path))
    assert larger.configurations[0].config_id == "cap16-seq16", "what was measured keeps its name"
    assert {c.config_id for c in larger.configurations[1:]} == {
        "cap16-seq16-util0.9", "cap32-seq32-util0.95", "cap32-seq32-util0.9",
    }  # fmt: skip
    grown = begin(paths, describe(larger, "run", SITE, ["qwenbench", "sweep", "--resume", "run"]))
    assert grown["order"][0] == "math.instruct-reasoning.c1.1" and len(grown["order"]) == 2 * 2 * 2 * 2
    assert set(grown["scenarios"]) == {"math", "code"} and set(grown["profiles"]) == {"instruct-reasoning", "none"}
    assert grown["extended"][0]["command_line"][-2:] == ["--resume", "run"]
    assert read_json(paths.run_json) == grown
    again = make_plan(stored_options(tmp_path), known_configurations(tmp_path))
    assert begin(paths, describe(again, "run", SITE, [])) == grown, "going on needs no option"


def test_repeats_never_become_fewer_and_a_flag_gets_further_values(tmp_path: Path) -> None:
    begin(RunPaths(tmp_path), described(repeats=3, vary={"block-size": ("16",)}))
    fields = extended_fields(tmp_path, {"repeats": 1, "vary": {"block-size": ("32", "16")}})
    assert (fields["repeats"], fields["vary"]) == (3, {"block-size": ("16", "32")})


def test_simulated_and_measured_points_never_mix(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    begin(paths, described(capture=(16,)))
    with pytest.raises(UsageError, match="simulated and measured points do not go into one run"):
        begin(paths, described(simulated=False, capture=(16,)))


def test_a_run_of_another_schema_is_left_alone(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    begin(paths, {**described(capture=(16,)), "schema_version": 99})
    with pytest.raises(UsageError, match="schema version 99"):
        begin(paths, described(capture=(16,)))


def test_no_run_no_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run here"):
        stored_options(tmp_path)

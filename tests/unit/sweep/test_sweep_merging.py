"""Runs of one plan, measured apart, joined into one run; what is not of one plan is refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from qwenbench.analysis.candidates import Question
from qwenbench.analysis.columns import COLUMN_NAMES
from qwenbench.analysis.recommend import recommend
from qwenbench.analysis.run import load_run
from qwenbench.analysis.statistics import repeat_table
from qwenbench.engine.launchers import make_launcher
from qwenbench.errors import UsageError
from qwenbench.load.records import REQUEST_SCHEMA
from qwenbench.observe.metrics import METRICS_SCHEMA
from qwenbench.observe.nvml import NVML_SCHEMA
from qwenbench.report.page import build_report
from qwenbench.runfolder.files import read_json, write_json
from qwenbench.runfolder.journal import Journal
from qwenbench.runfolder.lock import RunLock
from qwenbench.runfolder.names import RunPaths
from qwenbench.sweep import merging
from qwenbench.sweep.extension import known_configurations, stored_options
from qwenbench.sweep.hardware import find_hardware
from qwenbench.sweep.merging import merge
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan, make_plan
from qwenbench.sweep.record import CellResult, Recorder, Samples, Site, begin, describe, launches_of

XEON, EPYC = "RTX 5090, Xeon x 8", "RTX 5090, EPYC x 16"


def plan_of(**options: Any) -> Plan:
    return make_plan(SweepOptions(**{"launcher": "sim", "scenario": ("math",), "concurrency": (1, 4)} | options))


def shard(
    folder: Path, only: Iterable[str] = (), *, host: str = "one", machine: str = XEON, card: str = "RTX 5090",
    vllm: str = "0.26.0", started_ns: int = 1, speed: float = 100.0, image_digest: str | None = None, **options: Any,
) -> RunPaths:  # fmt: skip
    """A run of which the cells whose names hold one of `only` (none given: all) are finished."""
    plan, paths = plan_of(**options), RunPaths(folder)
    site = Site(make_launcher("sim", vllm_command="vllm serve", card="RTX 5090"), find_hardware(plan.options))
    begin(paths, describe(plan, folder.name, site, ["qwenbench", "sweep", folder.name]))
    recorder = Recorder(paths, tuple(plan.options.vary))
    for cell in plan.cells():
        if only and not any(part in cell.cell_id for part in only):
            continue
        server = paths.server(cell.config_id, cell.launch)
        write_json(
            server / "launch.json",
            {
                "host": host, "machine": machine, "started_ns": started_ns, "simulated": True, "launcher": "docker",
                "hardware": {"gpus": [{"uuid": f"GPU-{host}", "name": card}]}, "image_digest": image_digest,
                "versions": {"qwenbench": "1", "driver": "580"}, "server": {"docker": {"image": "vllm:x"}},
            },
        )  # fmt: skip
        write_json(server / "memory.json", {"vllm_version": vllm, "kv_cache_gib": 17.0})
        write_json(server / "prediction.json", {"kv_cache_gib": 16.9})
        (server / "server.log").write_text(f"log of {host}\n")
        point = dict.fromkeys(COLUMN_NAMES) | {
            "config_id": cell.config_id, "launch": cell.launch, "scenario": cell.point.scenario, "valid": True,
            "profile": cell.point.profile, "concurrency": cell.point.concurrency, "repeat": cell.point.repeat,
            "load_shape": "closed", "simulated": True, "requests_ok": 8, "requests_failed": 0, "node": host,
            "machine": machine, "output_tokens_per_s": speed, "client_error_ms": 0.25,
        }  # fmt: skip
        samples = Samples(METRICS_SCHEMA.empty_table(), NVML_SCHEMA.empty_table())
        recorder.record(cell, CellResult(point, REQUEST_SCHEMA.empty_table(), samples, {"0": "text"}, False))
    return paths


def cells(paths: RunPaths) -> list[str]:
    return [entry.cell for entry in Journal(paths.journal).entries()]


def test_a_joined_run_has_every_cell_with_its_files_and_goes_on_as_one(tmp_path: Path) -> None:
    one = shard(tmp_path / "one", capture=(16,))
    two = shard(tmp_path / "two", capture=(32,), concurrency=(4, 8), host="two", speed=110.0)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    merged = merge([two.root, one.root], tmp_path / "joined")
    assert before == {path: path.read_bytes() for path in before}, "the runs stay as they are"

    joined = RunPaths(tmp_path / "joined")
    assert cells(joined) == cells(one) + cells(two)
    assert (merged.cells, merged.missing) == (4, 2), "capture 16 at 8 streams and capture 32 at one are not measured"
    for paths in (one, two):
        for config, entry in ((entry.config, entry.cell) for entry in Journal(paths.journal).entries()):
            for source in (paths.cell_requests(entry), paths.metrics_samples(config, entry),
                           paths.nvml_samples(config, entry), paths.requests / f"{entry}.texts.json"):  # fmt: skip
                target = joined.root / source.relative_to(paths.root)
                assert target.read_bytes() == source.read_bytes()
                assert target.stat().st_mode == source.stat().st_mode
        for name in ("launch.json", "memory.json", "prediction.json", "server.log"):
            assert (joined.server(config) / name).read_bytes() == (paths.server(config) / name).read_bytes()

    meta = read_json(joined.run_json)
    assert meta["run_id"] == "joined"
    assert [(launch["config_id"], launch["node"]) for launch in meta["launches"]] == [
        ("cap16-seq16", "one"), ("cap32-seq32", "two"),
    ]  # fmt: skip
    assert {part["run_id"]: part["cells"] for part in meta["merged"]} == {"one": 2, "two": 2}
    # what --resume does: the plan is that of all runs, and agrees with what was measured
    plan = make_plan(stored_options(joined.root), known_configurations(joined.root))
    site = Site(make_launcher("sim", vllm_command="vllm serve", card=None), find_hardware(plan.options))
    begin(joined, describe(plan, "joined", site, []))
    recorder = Recorder(joined, ())
    assert sorted(cell.cell_id for cell in plan.cells() if not recorder.is_done(cell)) == [
        "cap16-seq16.l1.math.instruct-reasoning.c8.1", "cap32-seq32.l1.math.instruct-reasoning.c1.1",
    ]  # fmt: skip
    run = load_run(joined.root)
    assert set(run.launches) == set(run.ledgers) == set(run.predictions) == {"cap16-seq16", "cap32-seq32"}
    assert "cap32-seq32" in build_report(run)
    assert merge([joined.root, one.root], tmp_path / "again").cells == 4, "a copied cell is no second measurement"


def test_one_configuration_under_two_names_is_one_in_the_joined_run(tmp_path: Path) -> None:
    shard(tmp_path / "one", capture=(16,), gpu_memory_utilization=(0.9,))
    shard(tmp_path / "two", ["util0.9.l1.math.instruct-reasoning.c8", "util0.95"], capture=(16,), concurrency=(8,),
          gpu_memory_utilization=(0.9, 0.95))  # fmt: skip
    merge([tmp_path / "one", tmp_path / "two"], tmp_path / "joined")
    joined = RunPaths(tmp_path / "joined")
    assert {entry.config for entry in Journal(joined.journal).entries()} == {"cap16-seq16", "cap16-seq16-util0.95"}
    assert "cap16-seq16.l1.math.instruct-reasoning.c8.1" in cells(joined)
    assert joined.cell_requests("cap16-seq16.l1.math.instruct-reasoning.c8.1").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 5}, "their plans differ .load options: seed"),
        ({"output_tokens": "9"}, "their plans differ .load options: output_tokens"),
        ({"interfere": "256@1"}, "their plans differ"),
        ({"image": "vllm:y"}, "their plans differ .configurations: cap16-seq16"),
        ({}, "both have measured cap16-seq16.l1.math.instruct-reasoning.c"),
        ({"capture": (32,), "card": "RTX 4090"}, "their plans differ .load options: card"),
        ({"capture": (32,), "name": "RTX 4090"}, "unlike cards .RTX 5090 and RTX 4090.*Merge per card"),
        ({"capture": (32,), "vllm": "0.30.0"}, "vLLM 0.26.0 and 0.30.0"),
        ({"capture": (32,), "image_digest": "sha256:b"}, "vllm:x is not one image"),
    ],
)
def test_what_is_not_of_one_plan_is_refused_with_the_reason(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    shard(tmp_path / "one", capture=(16,), image_digest="sha256:a")
    named = {"card_name": change.pop("name")} if "name" in change else {}
    second: dict[str, Any] = {"capture": (16,), "image_digest": "sha256:a", "speed": 90.0} | change
    card = second.pop("card", None)
    paths = shard(tmp_path / "two", card=named.get("card_name", "RTX 5090"), **second)
    if card is not None:
        meta = read_json(paths.run_json)
        meta["plan"]["load options"]["card"] = "another"
        write_json(paths.run_json, meta)
    with pytest.raises(UsageError, match=told) as refused:
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "joined")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*joined*")), "nothing is left of what was refused"


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("simulated", False, "one is simulated, the other measured"),
        ("schema_version", 9, "schema version 9"),
        ("tune", {}, "a search chose what it measured"),
        ("plan", None, "plan cannot be read"),
    ],
)
def test_a_run_that_cannot_be_joined_is_refused(tmp_path: Path, part: str, value: Any, told: str) -> None:
    shard(tmp_path / "one", capture=(16,))
    paths = shard(tmp_path / "two", capture=(32,))
    write_json(paths.run_json, read_json(paths.run_json) | {part: value})
    with pytest.raises(UsageError, match=told):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "joined")


def test_a_run_that_is_being_written_and_a_folder_that_exists_are_refused(tmp_path: Path) -> None:
    one, two = shard(tmp_path / "one", capture=(16,)), shard(tmp_path / "two", capture=(32,))
    with RunLock(two.lock), pytest.raises(UsageError, match="a process is writing to this run"):
        merge([one.root, two.root], tmp_path / "joined")
    with pytest.raises(UsageError, match="it exists"):
        merge([one.root, two.root], one.root)


def test_a_run_given_twice_and_a_folder_in_a_run_are_refused(tmp_path: Path) -> None:
    one, other = (shard(tmp_path / name, [f".{name}."]).root for name in ("c1", "c4"))
    (tmp_path / "link").symlink_to(one)
    with pytest.raises(UsageError, match="c1: it is given twice"):
        merge([one, other, tmp_path / "link"], tmp_path / "m")
    with pytest.raises(UsageError, match=r"it lies in .*c4, which is to stay as it is"):
        merge([one, other], other / "m")
    assert not (tmp_path / "m").exists()


def test_a_merge_that_was_killed_leaves_no_run_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = shard(tmp_path / "one", capture=(16,)), shard(tmp_path / "two", capture=(32,))

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(
            merging, "launches_of", lambda paths: killed() if "joined" in str(paths.root) else launches_of(paths)
        )
        with pytest.raises(KeyboardInterrupt):
            merge([one.root, two.root], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    assert merge([one.root, two.root], tmp_path / "joined").cells == 4
    assert not list(tmp_path.glob(".*merging"))


def test_figures_of_unlike_machines_are_kept_apart_everywhere(tmp_path: Path) -> None:
    """Three repeats on one machine, three on another that is twice as fast: no figure is of both."""
    options: dict[str, Any] = {"capture": (16,), "repeats": 3, "relaunch_repeats": 2}
    shard(tmp_path / "one", [".l1."], **options)
    shard(tmp_path / "two", [".l2."], machine=EPYC, host="two", speed=200.0, **options)
    merged = merge([tmp_path / "one", tmp_path / "two"], tmp_path / "joined")
    assert any("unlike machines" in note for note in merged.notes)
    run = load_run(tmp_path / "joined")
    names = {f"cap16-seq16@{XEON}", f"cap16-seq16@{EPYC}"}
    assert set(run.points["config_id"]) == set(run.launches) == set(run.ledgers) == names
    assert run.launches[f"cap16-seq16@{EPYC}"]["host"] == "two"
    table = repeat_table(run.points)
    values = {point["config_id"]: set(table.value[index]) for index, point in enumerate(table.load_points)}
    assert {name for name, known in values.items() if 100.0 in known} == {f"cap16-seq16@{XEON}"}
    assert all(150.0 not in known for known in values.values())
    with (tmp_path / "joined" / "points_summary.csv").open() as file:
        assert "150.0" not in file.read()
    best = recommend(run, Question())
    assert best.config_id == f"cap16-seq16@{EPYC}"
    page = build_report(run)
    assert EPYC in page and XEON in page
    for point in run.measured:
        assert run.requests(point.cell.cell_id) is not None, "files are found by the name on disk"
        assert run.nvml(str(point.values["config_id"]), point.cell.cell_id) is not None

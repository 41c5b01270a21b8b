"""The plan: which configurations, which load points, and names that keep them apart."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.engine.config import DockerOptions, ServerConfig
from qwenbench.engine.docker.line import compose, shown_argv
from qwenbench.errors import UsageError
from qwenbench.runfolder.cells import Cell, LoadPoint
from qwenbench.runfolder.names import check_name
from qwenbench.sweep.configurations import base_server, configurations
from qwenbench.sweep.extension import grown
from qwenbench.sweep.option_values import profile_names
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan, load_points, load_scenarios, make_plan
from qwenbench.workload.arrivals import TraceRow

BASE = ServerConfig(flags={"max-model-len": "auto", "gpu-memory-utilization": "0.9", "max-num-seqs": "7"})


def built(**options: Any) -> list[tuple[str, dict[str, str | None]]]:
    return [(c.config_id, dict(c.server.flags)) for c in configurations(SweepOptions(**options), BASE)]


def plan(**options: Any) -> Plan:
    made = SweepOptions(**{"scenario": ("math", "conversation"), **options})
    scenarios = load_scenarios(made)
    return Plan(made, configurations(made, BASE), load_points(made, scenarios), scenarios)


def test_match_follows_capture() -> None:
    for (name, flags), value in zip(built(capture=(16, 32, 64)), (16, 32, 64), strict=True):
        assert name == f"cap{value}-seq{value}"
        assert flags["max-cudagraph-capture-size"] == flags["max-num-seqs"] == str(value)
        assert flags["max-model-len"] == "auto"


def test_a_list_of_max_num_seqs_is_crossed_with_capture() -> None:
    assert [name for name, _ in built(capture=(16, 32), max_num_seqs=(8, 64))] == [
        "cap16-seq8",
        "cap16-seq64",
        "cap32-seq8",
        "cap32-seq64",
    ]


def test_without_options_the_deployments_own_values_hold() -> None:
    ((name, flags),) = built()
    assert flags == BASE.flags
    assert name == "capdefault-seq7"


def test_every_dimension_is_in_the_name_and_in_the_flags() -> None:
    found = dict(
        built(
            capture=(16,),
            gpu_memory_utilization=(0.9, 0.95),
            vary={"kv-cache-dtype": ("auto", "fp8"), "block-size": ("16",)},
        )
    )
    assert list(found) == [
        f"cap16-seq16-util{utilization}-kv-cache-dtype-{dtype}-block-size-16"
        for utilization, dtype in product(("0.9", "0.95"), ("auto", "fp8"))
    ]
    last = list(found.values())[-1]
    assert (last["gpu-memory-utilization"], last["kv-cache-dtype"], last["block-size"]) == ("0.95", "fp8", "16")


any_value = st.text(st.characters(codec="utf-8", exclude_characters=","), min_size=1, max_size=90)


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=3, unique=True),
    st.lists(any_value, min_size=1, max_size=3, unique=True),
)
def test_whatever_the_values_names_are_good_and_different(captures: list[int], values: list[str]) -> None:
    found = built(capture=tuple(captures), vary={"some-flag": tuple(values)})
    ids = [check_name(name, "config") for name, _ in found]
    assert len(set(ids)) == len(captures) * len(values)


def test_the_same_work_is_given_to_every_configuration() -> None:
    made = plan(capture=(16, 32), relaunch_repeats=2, repeats=2, concurrency=(1, 8))
    cells = made.cells()
    assert len(cells) == len({cell.cell_id for cell in cells}) == 2 * 2 * 2 * 2 * 2
    per_launch: dict[Any, list[Any]] = {}
    for cell in cells:
        per_launch.setdefault((cell.config_id, cell.launch), []).append(cell.point)
    assert len({tuple(points) for points in per_launch.values()}) == 1


def test_relaunches_come_after_every_configuration_had_its_turn() -> None:
    """A machine that warms up or slows down then hits all configurations alike."""
    launches = [(c.config_id, launch) for c, launch in plan(capture=(16, 32), relaunch_repeats=2).launches()]
    assert launches == [("cap16-seq16", 1), ("cap32-seq32", 1), ("cap16-seq16", 2), ("cap32-seq32", 2)]


def test_only_those_in_doubt_are_launched_and_the_plan_stays_what_it_was() -> None:
    made = plan(capture=(16, 32), relaunch_repeats=2, only=("cap32-seq32",))
    assert [(c.config_id, launch) for c, launch in made.launches()] == [("cap32-seq32", 1), ("cap32-seq32", 2)]
    assert made.fingerprint() == plan(capture=(16, 32), relaunch_repeats=2).fingerprint()
    with pytest.raises(UsageError, match=r"--only 'cap64'.*It has cap16-seq16, cap32-seq32"):
        make_plan(SweepOptions(capture=(16, 32), only=("cap64",)))
    whole = grown(made.options, {"only": ()})
    assert not whole["only"] and grown(made.options, {"repeats": 2})["only"] == ("cap32-seq32",)


def test_the_order_is_shuffled_by_the_seed_and_can_be_listed() -> None:
    listed = plan(order="listed", concurrency=(1, 8, 32)).points
    assert [(point.scenario, point.concurrency) for point in listed] == list(
        product(("math", "conversation"), (1, 8, 32))
    )
    one, again, other = (plan(seed=seed, concurrency=(1, 8, 32)).points for seed in (3, 3, 4))
    assert one == again
    assert one != other
    assert set(one) == set(listed)
    assert one != listed


def test_all_profiles_are_a_dimension() -> None:
    points = plan(profile=profile_names("all", "--profile"), concurrency=(1,)).points
    assert len(points) == 2 * 4
    assert {point.profile for point in plan(concurrency=(1,)).points} == {"instruct-reasoning", "instruct-general"}


def test_open_loop_points_are_named_by_rate() -> None:
    assert [point.point_id for point in plan(rate=(0.5, 2.0), order="listed", scenario=("math",)).points] == [
        "math.instruct-reasoning.r0.5.1",
        "math.instruct-reasoning.r2.0.1",
    ]


@given(st.floats(1e-6, 1e6))
def test_two_rates_never_share_a_name(rate: float) -> None:
    """Cells are files: two of one name would overwrite each other."""
    one, other = (LoadPoint("math", "p", None, value, 1).point_id for value in (rate, math.nextafter(rate, math.inf)))
    assert one != other


def test_a_cells_name_fits_a_file_system() -> None:
    point = LoadPoint("x" * 40, "instruct-reasoning", 100_000, None, 1000)
    assert len(f"{Cell('c' * 80, 100, point).cell_id}.metrics.parquet") < 255


@pytest.mark.parametrize(
    "change",
    [
        {"capture": (16, 64)},
        {"concurrency": (1, 16)},
        {"scenario": ("math", "code")},
        {"seed": 1},
        {"requests": "8x"},
        {"output_tokens": "16-32"},
        {"ignore_eos": False},
        {"prefix_reuse": "natural"},
        {"vary": {"block-size": ("16", "32")}},
        {"extra_body": {"temperature": 0}},
        {"repeats": 2},
        {"vllm_command": "/another/vllm serve"},
    ],
    ids=str,
)
def test_a_changed_plan_has_another_fingerprint(change: dict[str, Any]) -> None:
    common = {"capture": (16, 32), "concurrency": (1, 8)}
    assert plan(**common).fingerprint() == plan(**common).fingerprint()
    assert plan(**common).fingerprint() != plan(**{**common, **change}).fingerprint()


def test_another_image_or_variable_is_another_plan() -> None:
    """Points of two vLLM versions must not end up in one run."""

    def fingerprint(server: ServerConfig) -> dict[str, dict[str, str]]:
        options = SweepOptions(scenario=("math",))
        scenarios = load_scenarios(options)
        return Plan(options, configurations(options, server), load_points(options, scenarios), scenarios).fingerprint()

    assert fingerprint(BASE) != fingerprint(replace(BASE, docker=DockerOptions(image="vllm/vllm-openai:v0.20.2")))
    assert fingerprint(BASE) != fingerprint(replace(BASE, env={"VLLM_USE_X": "1"}))


def test_another_trace_is_another_plan() -> None:
    one = plan()
    assert one.fingerprint() != replace(one, trace=(TraceRow(0.0),)).fingerprint()


def test_what_does_not_change_the_work_does_not_change_the_fingerprint() -> None:
    """A resumed sweep may use another port, client layout or patience."""
    common = {"capture": (16, 32)}
    assert (
        plan(**common).fingerprint()
        == plan(**common, client_processes=2, startup_timeout_s=99.0, force=True).fingerprint()
    )


def test_scenarios_are_told_apart_by_the_names_inside_the_files() -> None:
    with pytest.raises(UsageError, match="'math' stands twice"):
        plan(scenario=("math", "math"))


def test_set_unset_and_variables_are_values_of_a_dimension() -> None:
    base = replace(BASE, env={"VLLM_USE_X": "1"}, flags={**BASE.flags, "enforce-eager": None})
    options = SweepOptions(vary={"enforce-eager": ("unset", "set"), "env.VLLM_USE_X": ("0", "unset")})
    built = configurations(options, base)
    assert [("enforce-eager" in c.server.flags, c.server.env.get("VLLM_USE_X")) for c in built] == [
        (False, "0"), (False, None), (True, "0"), (True, None),
    ]  # fmt: skip
    assert len({c.config_id for c in built}) == 4
    assert built[2].server.vllm_args().count("--enforce-eager") == 1


@pytest.mark.parametrize(
    ("model", "kept"), [(None, True), ("Qwen/Qwen3-8B", True), ("meta-llama/Llama-3.1-8B-Instruct", False)]
)
def test_parsers_of_one_family_are_not_given_to_another(model: str | None, kept: bool) -> None:
    made = make_plan(SweepOptions(model=model, scenario=("math",)))
    flags = made.configurations[0].server.flags
    names = {"reasoning-parser", "tool-call-parser", "enable-auto-tool-choice"}
    assert names & set(flags) == (names if kept else set())
    assert bool(made.notes) != kept
    if made.notes:
        assert "--reasoning-parser qwen3" in made.notes[0] and "--vllm-arg" in made.notes[0]


def test_a_models_config_tells_its_family(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_5"}')
    made = make_plan(SweepOptions(model=str(tmp_path), scenario=("math",)))
    assert made.notes == ()


def test_a_model_that_is_a_folder_here_is_mounted_into_its_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "my-model")
    server = base_server(SweepOptions(model="./my-model"))
    assert (server.model, server.served_model_name) == (folder, "my-model")
    shown = shown_argv(server)
    assert shown[shown.index(f"{folder}:{folder}:ro") - 1] == "-v"
    assert f"source: {folder}" in compose(server) and "read_only: true" in compose(server)
    # what no folder of this machine is may be one of the image, or a name at a hub
    assert [base_server(SweepOptions(model=name)).docker.model_mount for name in ("/in/the/image", "org/name")] == [
        None
    ] * 2

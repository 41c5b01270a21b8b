"""The driver over simulated nodes in virtual time (bench/cluster_scale.py), and what a launch asks of Ray's nodes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from qwenbench.cluster.ray_fleet import needs_of
from qwenbench.errors import UsageError
from qwenbench.runfolder.journal import Journal
from qwenbench.runfolder.names import RunPaths

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "bench"))
from cluster_scale import SimulatedFleet, campaign, run_campaign, run_virtually


def test_a_lost_node_costs_the_cell_in_flight_and_nothing_is_measured_twice(tmp_path: Path) -> None:
    plan = campaign(10)
    (fleet, outcome), _ = run_virtually(run_campaign(plan, nodes=4, failing=2, seed=1, folder=tmp_path))
    cells = [entry.cell for entry in Journal(RunPaths(tmp_path / "r").journal).entries()]
    assert sorted(cells) == sorted(cell.cell_id for cell in plan.cells())
    assert (outcome.exit_status, fleet.alive) == (0, 2)
    assert fleet.placements == len(list(plan.launches())) + 2


def test_a_launch_that_is_lost_three_times_in_a_row_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedFleet, "dooms", lambda self, task: b"cap8-seq8" in task.plan and task.launch == 1)
    plan = campaign(10)
    (_, outcome), _ = run_virtually(run_campaign(plan, nodes=4, failing=0, seed=1, folder=tmp_path))
    assert [failure.kind for failure in outcome.failures.values()] == ["node_lost"]
    assert outcome.cells - outcome.cells_done == len(plan.points)
    assert "3 times in a row" in (tmp_path / "r" / "servers" / "cap8-seq8" / "failure.json").read_text()


def node(**resources: float) -> Mapping[str, Any]:
    return {"Alive": True, "Resources": resources}


@pytest.mark.parametrize(
    ("kind", "cards", "nodes", "needs"),
    [
        (None, 2, [node(CPU=8, GPU=4)], {"GPU": 2}),
        ("rtx-5090", 1, [node(CPU=8, **{"rtx-5090": 2}), node(GPU=1)], {"rtx-5090": 1}),
        ("rtx-5090", 2, [node(GPU=2, **{"rtx-5090": 2})], {"rtx-5090": 2, "GPU": 2}),
        ("h100", 4, [node(GPU=8, **{"accelerator_type:H100": 1})], {"accelerator_type:H100": 0.001, "GPU": 4}),
    ],
)
def test_what_a_launch_takes_of_a_node(
    kind: str | None, cards: int, nodes: list[Mapping[str, Any]], needs: Mapping[str, float]
) -> None:
    assert needs_of(kind, cards, False, nodes).resources == needs


@pytest.mark.parametrize(
    ("kind", "cards", "told"),
    [(None, 1, "no node has a GPU"), ("l4", 1, "there are: rtx-4090"), ("rtx-4090", 2, "2 of them on one node")],
)
def test_cards_that_no_node_has_are_refused(kind: str | None, cards: int, told: str) -> None:
    nodes = [node(CPU=4, **{"rtx-4090": 1, "node:192.0.2.1": 1}), node(CPU=4, **{"rtx-4090": 1})]
    with pytest.raises(UsageError, match=told):
        needs_of(kind, cards, False, nodes)

"""The seed as a campaign file: it loads, and it is the whole of it."""

from __future__ import annotations

from qwenbench.engine.deployments import deployment_names, find_deployment
from qwenbench.sweep.extension import find_campaign, load_campaign
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import make_plan
from qwenbench.workload.profiles import PROFILES


def test_sweep_seed_campaign_is_every_deployment_under_every_profile_and_scenario() -> None:
    sweeps = load_campaign(find_campaign("seed"))
    cards = {name for name in deployment_names() if find_deployment(name).model == "ig1/Qwen3.5-9B-NVFP4"}
    assert len(cards) == 3, "the model card's"
    assert {options["deployment"] for options in sweeps.values()} == cards
    for options in sweeps.values():
        plan = make_plan(SweepOptions(**options))
        assert len(plan.configurations) == 1
        pairs = {(point.scenario, point.profile) for point in plan.points}
        assert len(pairs) == 4 * len(PROFILES)
        assert len(plan.points) == 4 * len(pairs)

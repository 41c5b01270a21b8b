"""The natural-stop pass lets the model end its answers."""

from __future__ import annotations

import pytest

from qwenbench.workload.planning import LIMIT_TOKENS, REQUESTS, THINKING_LIMIT_TOKENS, RequestOptions, natural_pass
from qwenbench.workload.prompts import load_prompt_set
from qwenbench.workload.scenario import load_scenario


@pytest.mark.parametrize("profile", ["instruct-general", "thinking-coding"])
def test_natural_pass_forces_no_length(profile: str) -> None:
    file = load_scenario("math")
    assert file.prompts_path is not None
    prompts = load_prompt_set(file.prompts_path).prompts
    sessions = natural_pass(file.scenario, prompts, RequestOptions("m", profile=profile, force_length=True), seed=3)
    payloads = [turn.payload for session in sessions for turn in session.turns]
    assert len(payloads) == REQUESTS
    limit = THINKING_LIMIT_TOKENS if profile == "thinking-coding" else LIMIT_TOKENS
    for payload in payloads:
        assert payload["max_tokens"] == limit
        assert "min_tokens" not in payload
        assert "ignore_eos" not in payload


def test_natural_pass_asks_nothing_of_synthetic_prompts() -> None:
    file = load_scenario("math")
    assert len(natural_pass(file.scenario, (), RequestOptions("m"), seed=3)) == 0

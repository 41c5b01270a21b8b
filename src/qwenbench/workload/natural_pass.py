"""The natural-stop pass: a few requests of a scenario that may end when the model ends them.

A length forced past the model's own end makes any model ramble, so under --ignore-eos the broken-output checks
judge these requests instead of the measured ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qwenbench.workload.planning import PlannedSessions, RequestOptions
from qwenbench.workload.profiles import PROFILES
from qwenbench.workload.prompts import Prompt
from qwenbench.workload.scenario import Scenario

REQUESTS = 4
"""Requests of each scenario."""
LIMIT_TOKENS = 768
"""Upper limit of an answer in tokens; most end before it."""
THINKING_LIMIT_TOKENS = 2048
"""The same with thinking: reasoning comes first."""


def natural_pass(
    scenario: Scenario,
    prompts: Sequence[Prompt],
    options: RequestOptions,
    seed: int,
    requests: int = REQUESTS,
) -> PlannedSessions:
    """The sessions of the pass, ready for a LoadSpec with judge_text=True.

    `options` are the measured ones; their salt should be another. Synthetic prompts (no prompt set) ask for nothing
    in particular, so nothing can be said about their answers: no session is planned for them.
    """
    limit = THINKING_LIMIT_TOKENS if PROFILES[options.profile].enable_thinking else LIMIT_TOKENS
    natural = replace(options, force_length=False, natural_limit=limit)
    return PlannedSessions(scenario, prompts, natural, seed, requests if prompts else 0)

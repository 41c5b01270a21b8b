"""The natural-stop pass: one odd answer of a few is looked into before it condemns a configuration."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from qwenbench.bounded_http import WaitLimit
from qwenbench.engine.startup_log import StartupLog
from qwenbench.sweep import text_checks
from qwenbench.sweep.ready_server import TextChecks, dummy_weights
from qwenbench.sweep.text_checks import MORE_REQUESTS, check_texts
from qwenbench.workload.planning import REQUESTS

FINE: list[str] = []
LOOP = ["loop"]


def _checked(
    monkeypatch: pytest.MonkeyPatch,
    answers: dict[int, list[list[str]]],
    *,
    judge_text: bool = True,
    told: list[str] | None = None,
) -> tuple[TextChecks, list[int]]:
    """What is found when a pass of so many requests is answered like that, and which passes were made."""
    asked: list[int] = []

    async def natural_answers(*arguments: Any) -> list[list[str]]:
        asked.append(arguments[-1])
        return list(answers[arguments[-1]])

    monkeypatch.setattr(text_checks, "_natural_answers", natural_answers)
    options = SimpleNamespace(canary=False, natural_stop_check=True, ignore_eos=True, natural_stop_limit_s=60.0)
    point = SimpleNamespace(scenario="math", profile="instruct-general")

    def note(words: str, *_: object) -> None:
        if told is not None:
            told.append(words)

    sweep: Any = SimpleNamespace(
        plan=SimpleNamespace(options=options, points=(point, point)), stop=asyncio.Event(),
        note=note, site=SimpleNamespace(simulated=False),
    )  # fmt: skip
    server: Any = SimpleNamespace(
        loads=SimpleNamespace(traits=SimpleNamespace(judge_text=judge_text)),
        questions=SimpleNamespace(limit=WaitLimit(60)),
        configuration=SimpleNamespace(config_id="cap64-seq64"),
    )
    client: Any = None
    return asyncio.run(check_texts(sweep, server, client)), asked


KEY = ("math", "instruct-general")


def test_answers_that_are_fine_cost_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = _checked(monkeypatch, {REQUESTS: [FINE] * 4})
    assert found.broken_share == {KEY: 0.0}
    assert asked == [REQUESTS]


def test_one_loop_of_a_small_model_is_outweighed_by_more_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = _checked(monkeypatch, {REQUESTS: [LOOP, FINE, FINE, FINE], MORE_REQUESTS: [FINE] * 12})
    assert found.broken_share == {KEY: 1 / 16}
    assert found.broken_kinds == {KEY: "loop 1"}
    assert asked == [REQUESTS, MORE_REQUESTS]


def test_a_broken_server_stays_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = _checked(monkeypatch, {REQUESTS: [LOOP] * 4, MORE_REQUESTS: [LOOP] * 12})
    assert found.broken_share == {KEY: 1.0}


@pytest.mark.parametrize("words", [("--load-format", "dummy"), ("--load_format=dummy",)])
def test_dummy_weights_are_seen_on_the_command_line_of_a_server_without_a_log(words: tuple[str, ...]) -> None:
    code = "print('here', flush=True); input()"
    server = subprocess.Popen([sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()  # its command line stands in /proc only a moment after it was started
        assert dummy_weights(StartupLog(), [server.pid])
        assert not dummy_weights(StartupLog(), [])
        # its own log outranks how it was started
        assert not dummy_weights(StartupLog(requested={"model": "m"}), [server.pid])
    finally:
        server.communicate(b"\n")
    assert not dummy_weights(StartupLog(), [server.pid])


def test_of_a_load_format_that_is_given_twice_the_last_one_counts() -> None:
    words = ("--load-format", "dummy", "--load-format=auto")
    code = "print('here', flush=True); input()"
    server = subprocess.Popen([sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        server.stdout.readline()  # its command line stands in /proc only a moment after it was started
        assert not dummy_weights(StartupLog(), [server.pid])
    finally:
        server.communicate(b"\n")


def test_answers_of_dummy_weights_are_not_judged_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    found, asked = _checked(monkeypatch, {}, judge_text=False, told=told)
    assert (found.broken_share, asked) == ({}, [])
    assert "--load-format dummy" in told[0]


def test_where_every_answer_is_broken_the_note_says_what_to_do_with_random_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    _checked(monkeypatch, {REQUESTS: [LOOP] * 4, MORE_REQUESTS: [LOOP] * 12}, told=told)
    assert "--no-natural-stop-check" in told[0]
    told.clear()
    _checked(monkeypatch, {REQUESTS: [LOOP, FINE, FINE, FINE], MORE_REQUESTS: [FINE] * 12}, told=told)
    assert "--no-natural-stop-check" not in told[0]

"""Sessions of a load point: the same for the same seed, never alike in the prefix cache, whole requests."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbench.workload.arrivals import TraceRow
from qwenbench.workload.planning import PlannedSessions, RequestOptions, point_seed, with_overrides
from qwenbench.workload.profiles import PROFILES
from qwenbench.workload.prompts import Prompt, PromptTurn
from qwenbench.workload.scenario import Lengths, Scenario

SCENARIO = Scenario(name="chat", output_tokens=Lengths(min=10, max=90), think_time_s=1.5)


def prompt(number: int, turns: int = 1, system: str | None = None) -> Prompt:
    spoken = tuple(PromptTurn(user=f"q{number}.{turn}", assistant=f"a{number}.{turn}") for turn in range(turns))
    return Prompt(id=f"p{number}", turns=spoken, system=system, language="de" if number % 2 else "en")


PROMPTS = tuple(prompt(number, 1 + number % 4) for number in range(12))
OPTIONS = RequestOptions(model="m", salt="salt-1")


def sessions(
    requests: int = 40,
    *,
    seed: int = 5,
    options: RequestOptions = OPTIONS,
    scenario: Scenario = SCENARIO,
    prompts: tuple[Prompt, ...] = PROMPTS,
    **more: Any,
) -> PlannedSessions:
    return PlannedSessions(scenario, prompts, options, seed, requests, **more)


def payloads(planned: PlannedSessions) -> list[dict[str, Any]]:
    return [dict(turn.payload) for session in planned for turn in session.turns]


def as_bytes(planned: PlannedSessions) -> bytes:
    return orjson.dumps([[turn.payload for turn in session.turns] for session in planned])


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not() -> None:
    assert as_bytes(sessions()) == as_bytes(sessions())
    assert as_bytes(sessions()) != as_bytes(sessions(seed=6))


def test_a_session_does_not_depend_on_which_others_were_built() -> None:
    """Several client processes build their own share of one list."""
    whole = list(sessions())
    assert sessions()[7] == whole[7]
    assert sessions()[-1] == whole[-1]
    assert sessions()[3:6] == whole[3:6]
    assert pickle.loads(pickle.dumps(sessions()))[9] == whole[9]
    with pytest.raises(IndexError):
        sessions()[len(whole)]


@settings(max_examples=40, deadline=None)
@given(requests=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_point_has_exactly_the_requests_that_were_asked_for(requests: int, seed: int) -> None:
    planned = sessions(requests, seed=seed)
    assert planned.request_count == len(payloads(planned)) == requests
    ids = [turn.request_id for session in planned for turn in session.turns]
    assert len(set(ids)) == requests


def test_every_prompt_comes_before_any_comes_again() -> None:
    planned = sessions(1000)
    first_pass = [session.turns[0].prompt_id for session in planned[: len(PROMPTS)]]
    assert sorted(first_pass) == sorted(prompt.id for prompt in PROMPTS)
    uses = Counter(session.turns[0].prompt_id for session in planned)
    assert max(uses.values()) - min(uses.values()) <= 1


def test_turns_carry_the_recorded_conversation() -> None:
    planned = sessions(prompts=(prompt(3, 4, system="Be brief."),), requests=4)
    last = planned[0].turns[3].payload["messages"]
    assert [message["role"] for message in last] == ["system"] + ["user", "assistant"] * 3 + ["user"]
    assert [message["content"] for message in last][1:] == [
        "q3.0", "a3.0", "q3.1", "a3.1", "q3.2", "a3.2", "q3.3",
    ]  # fmt: skip
    assert [turn.think_s for turn in planned[0].turns] == [0.0, 1.5, 1.5, 1.5]
    assert all(turn.language == "de" for turn in planned[0].turns)


def test_a_later_turn_extends_the_earlier_one() -> None:
    """Within a session the prefix cache may help, as it does in real chats."""
    for session in sessions(prompts=(prompt(0, 4),), requests=4):
        for before, after in pairwise(session.turns):
            assert after.payload["messages"][: len(before.payload["messages"])] == before.payload["messages"]


def test_output_lengths_are_forced_by_default() -> None:
    for session in sessions():
        for turn in session.turns:
            assert turn.payload["max_tokens"] == turn.payload["min_tokens"] == turn.output_tokens
            assert turn.payload["ignore_eos"] is True
            assert turn.output_tokens is not None
            assert 10 <= turn.output_tokens <= 90
            assert turn.payload["stream_options"] == {"include_usage": True}


def test_a_natural_stop_only_sets_a_limit() -> None:
    drawn = [turn.output_tokens for session in sessions() for turn in session.turns]
    for factor in (1, 4):
        options = RequestOptions(model="m", force_length=False, natural_factor=factor)
        turns = [turn for session in sessions(options=options) for turn in session.turns]
        assert [turn.output_tokens for turn in turns] == [factor * tokens for tokens in drawn]
        for turn in turns:
            assert turn.payload["max_tokens"] == turn.output_tokens, "what is recorded is what was sent"
            assert not {"min_tokens", "ignore_eos"} & set(turn.payload)


def test_a_server_is_not_sent_what_it_refuses_nor_what_the_user_takes_out() -> None:
    refused = {"top_k", "min_p", "ignore_eos", "stream_options"}
    options = RequestOptions(model="m", left_out=frozenset(refused), length_field="max_completion_tokens")
    taken_out = RequestOptions(model="m", extra_body={"top_k": None, "seed": 3})
    for session in sessions(options=options):
        for turn in session.turns:
            assert not (refused | {"max_tokens"}) & set(turn.payload)
            assert turn.payload["max_completion_tokens"] == turn.payload["min_tokens"] == turn.output_tokens
    for body in payloads(sessions(options=taken_out)):
        assert "top_k" not in body
        assert body["seed"] == 3


def test_no_profile_sends_no_sampling_field() -> None:
    for body in payloads(sessions(options=RequestOptions(model="m", profile="none", salt_mode="off"))):
        expected = {"model", "messages", "stream", "stream_options", "max_tokens", "min_tokens", "ignore_eos"}
        assert set(body) == expected


def test_no_two_sessions_share_a_salt_but_turns_of_one_do() -> None:
    planned = sessions(200)
    salts = [{turn.payload["cache_salt"] for turn in session.turns} for session in planned]
    assert all(len(found) == 1 for found in salts)
    assert len(set().union(*salts)) == len(planned)


def test_another_point_has_other_salts_and_otherwise_the_same_requests() -> None:
    one, other = (payloads(sessions(options=RequestOptions(model="m", salt=salt))) for salt in ("x", "y"))
    assert not {body.pop("cache_salt") for body in one} & {body.pop("cache_salt") for body in other}
    assert one == other


@pytest.mark.parametrize("system", [None, "You are helpful. " * 50])
def test_a_nonce_comes_before_everything_that_could_be_cached(system: str | None) -> None:
    """Where cache_salt is refused: no two sessions' prompts may begin alike, the system message included."""
    options = RequestOptions(model="m", salt="z", salt_mode="prefix")
    planned = sessions(40, options=options, prompts=(prompt(0, 2, system), prompt(1, 2, system)))
    firsts = [session.turns[0].payload["messages"][0]["content"] for session in planned]
    openings = {text[:10] for text in firsts}
    assert len(openings) == len(planned)
    assert not any("cache_salt" in body for body in payloads(planned))


def test_natural_prefix_reuse_adds_nothing() -> None:
    for body in payloads(sessions(options=RequestOptions(model="m", salt="z", salt_mode="off"))):
        assert "cache_salt" not in body
        assert not body["messages"][0]["content"].startswith("[")


@pytest.mark.parametrize("name", list(PROFILES))
def test_a_profile_is_sent_whole(name: str) -> None:
    body = payloads(sessions(options=RequestOptions(model="m", profile=name)))[0]
    profile = PROFILES[name]
    sent = {key: body[key] for key in profile.sampling()}
    assert sent == profile.sampling()
    assert body["chat_template_kwargs"] == {"enable_thinking": profile.enable_thinking}


def test_completions_get_one_text() -> None:
    options = RequestOptions(model="m", endpoint="completions")
    body = sessions(prompts=(prompt(3, 2),), options=options, requests=2)[0].turns[1].payload
    assert body["prompt"] == "q3.0\n\na3.0\n\nq3.1"
    assert not {"messages", "chat_template_kwargs"} & set(body)


def test_the_users_body_has_the_last_word() -> None:
    options = RequestOptions(model="m", extra_body={"temperature": 0.0, "logprobs": True})
    assert all(body["temperature"] == 0.0 and body["logprobs"] for body in payloads(sessions(options=options)))


def test_a_target_length_stretches_the_first_message() -> None:
    scenario = with_overrides(SCENARIO, input_tokens=Lengths(min=2000, max=2000))
    for session in sessions(scenario=scenario):
        first = session.turns[0].payload["messages"][0]["content"]
        assert len(first.split()) == pytest.approx(2000, rel=0.03)
        assert first.endswith(".0")  # the question is still there


def test_synthetic_prompts_have_their_length_and_differ() -> None:
    scenario = Scenario(name="synthetic", input_tokens=Lengths(min=64, max=64), output_tokens=Lengths(min=8, max=8))
    texts = [body["messages"][0]["content"] for body in payloads(sessions(50, scenario=scenario, prompts=()))]
    assert all(len(text.split()) == 64 for text in texts)
    assert len({text[:40] for text in texts}) == 50


def test_start_times_make_one_session_each() -> None:
    planned = sessions(starts=[0.0, 0.5, 2.0])
    assert [session.start_s for session in planned] == [0.0, 0.5, 2.0]
    assert planned.request_count == sum(len(session.turns) for session in planned)


def test_a_traces_lengths_override_the_draws() -> None:
    trace = (TraceRow(0.0, 300, 7), TraceRow(1.0, None, None))
    planned = sessions(prompts=(), starts=[0.0, 1.0], trace=trace)
    assert planned[0].turns[0].output_tokens == 7
    assert len(planned[0].turns[0].payload["messages"][0]["content"].split()) == 300
    assert 10 <= (planned[1].turns[0].output_tokens or 0) <= 90


def test_live_replay_feeds_answers_back_in_chats_only() -> None:
    live = SCENARIO.model_copy(update={"replay": "live"})
    assert sessions(scenario=live)[0].feed_back
    assert not sessions()[0].feed_back
    assert not sessions(scenario=live, options=RequestOptions(model="m", endpoint="completions"))[0].feed_back


def test_each_point_repeat_and_purpose_has_a_seed_of_its_own() -> None:
    seeds = [
        point_seed(seed, scenario, level, repeat, purpose)
        for seed in (0, 1)
        for scenario in ("math", "code")
        for level in (1, 8, 0.5, 64)
        for repeat in (1, 2, 3)
        for purpose in ("measure", "warm-up")
    ]
    assert len(set(seeds)) == len(seeds)
    assert point_seed(0, "math", 8, 1) == point_seed(0, "math", 8.0, 1)


def test_no_stream_is_left_idle_by_long_conversations() -> None:
    scenario = Scenario(name="chat", output_tokens=Lengths(min=8, max=8))
    prompts = [prompt(number, turns=2 + number % 7) for number in range(40)]
    for requests, streams in ((64, 64), (128, 64), (16, 4), (5, 8)):
        planned = PlannedSessions(scenario, prompts, RequestOptions(model="m"), 3, requests, streams=streams)
        assert planned.request_count == requests
        assert len(planned) >= min(streams, requests)
    whole = PlannedSessions(scenario, prompts, RequestOptions(model="m"), 3, 2000, streams=8)
    assert max(len(session.turns) for session in whole) == 8


def test_profile_none_sends_no_sampling_field() -> None:
    body = payloads(sessions(options=RequestOptions(model="m", profile="none")))[0]
    assert not {"temperature", "top_p", "top_k", "min_p", "presence_penalty", "chat_template_kwargs"} & body.keys()


def test_a_prompts_own_answer_length_counts_unless_the_user_gave_one() -> None:
    prompts = [Prompt(id="a", turns=(PromptTurn(user="x"),), output_tokens=7)]
    for own, expected in ((True, {7}), (False, {16})):
        options = RequestOptions(model="m", own_lengths=own)
        scenario = Scenario(name="t", output_tokens=Lengths(min=16, max=16))
        planned = PlannedSessions(scenario, prompts, options, 1, 4)
        assert {turn.output_tokens for session in planned for turn in session.turns} == expected

"""The scheduler in virtual time: batching, chunked prefill, preemption, prefix hits, determinism."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qwenbench.capacity.cards import find_card
from qwenbench.simulator.blocks import BlockPool
from qwenbench.simulator.scheduler import Pipeline, Scheduler, SchedulerLimits, SimRequest, Step
from qwenbench.simulator.steptime import StepModel, StepSettings, step_model

RECORDED = step_model(find_card("h200"), "h200-vllm-0.20.2", version="0.20.2")
STEADY = StepModel(replace(RECORDED.gpu, jitter=0.0), replace(RECORDED.host, jitter=0.0))


def scheduler(
    blocks: int = 1072,
    seqs: int = 64,
    batched: int = 2048,
    captured: int = 64,
    caching: bool = False,
    seed: int = 0,
    model: StepModel = STEADY,
    drafted: int = 0,
    acceptance: float = 0.0,
) -> Scheduler:
    pool = BlockPool(blocks, caching=caching, state_blocks=6 if caching else 3)
    settings = StepSettings(captured, captured, drafted=drafted)
    return Scheduler(SchedulerLimits(seqs, batched, settings, acceptance), pool, model, seed)


def request(name: str | int, prompt: int, output: int, hashes: tuple[bytes, ...] = ()) -> SimRequest:
    return SimRequest(str(name), prompt, output, arrival=0.0, hashes=hashes)


def planned(engine: Scheduler, now: float) -> Step:
    step = engine.plan(now)
    assert step is not None
    return step


def drain(engine: Scheduler, limit: int = 100_000) -> list[Step]:
    """Runs until nothing is left; returns the steps in the order in which they were handed out."""
    steps, now, pipeline = [], 0.0, Pipeline(engine)
    while (turn := pipeline.turn(now)) is not None:
        now = turn.at
        if turn.deliver is not None:
            steps.append(turn.deliver)
            engine.complete(turn.deliver)
        assert len(steps) < limit
    return steps


def test_long_prompt_is_prefilled_in_chunks_of_the_token_budget() -> None:
    engine = scheduler()
    engine.add(request("a", 5000, 3))
    chunks = [step.prefill_tokens for step in drain(engine)]
    assert chunks == [2048, 2048, 904, 0, 0]


def test_decodes_come_before_new_prefills_within_the_budget() -> None:
    engine = scheduler(batched=100)
    engine.add(request("a", 10, 5))
    engine.complete(planned(engine, 0.0))
    engine.add(request("b", 500, 1))
    step = planned(engine, 1.0)
    assert [(part.request.request_id, part.tokens) for part in step.work] == [("a", 1), ("b", 99)]
    assert step.decodes == 1 and step.prefill_tokens == 99


def test_max_num_seqs_holds_requests_back() -> None:
    engine = scheduler(seqs=4)
    for name in range(10):
        engine.add(request(name, 20, 8))
    step = planned(engine, 0.0)
    assert len(step.work) == 4 and len(engine.waiting) == 6


def test_recorded_concurrency_of_1072_blocks() -> None:
    """522 + 128 tokens, 256 seqs: the recorded server decoded 218, then fewer, then 214 when all had 5 blocks."""
    engine = scheduler(seqs=256)
    for name in range(256):
        engine.add(request(name, 522, 128))
    decodes = [step.decodes for step in drain(engine) if not step.prefill_tokens]
    assert max(decodes) == 218
    assert 214 in decodes
    assert decodes.index(218) < decodes.index(214)


def test_preemption_recomputes_and_finishes_everything() -> None:
    engine = scheduler(blocks=20, seqs=8)
    requests = [request(name, 500, 100) for name in range(8)]
    for item in requests:
        engine.add(item)
    steps = drain(engine)
    assert engine.preemptions > 0
    assert engine.preemptions == sum(item.preemptions for item in requests)
    assert all(item.generated == 100 and item.ended for item in requests)
    assert engine.pool.free == engine.pool.usable
    assert sum(step.prefill_tokens for step in steps) > 8 * 500


def test_batch_above_the_captured_size_falls_out_of_the_graphs() -> None:
    inside = STEADY.decode_ms(64, 64)
    outside = STEADY.decode_ms(65, 64)
    captured_further = STEADY.decode_ms(65, 128)
    assert outside > 1.8 * inside
    assert abs(captured_further - inside) < 1.0


def test_second_request_finds_the_first_ones_blocks_and_salt_keeps_them_apart() -> None:
    engine = scheduler(caching=True)
    mine, other = (b"1", b"2", b"3"), (b"x", b"y", b"z")
    engine.add(request("a", 3 * 528 + 10, 2, mine))
    drain(engine)
    engine.add(again := request("b", 3 * 528 + 10, 2, mine))
    engine.add(salted := request("c", 3 * 528 + 10, 2, other))
    drain(engine)
    assert again.cached_tokens == 3 * 528
    assert salted.cached_tokens == 0
    assert engine.prefix_hits == 3 * 528


def test_whole_prompt_in_cache_still_computes_its_last_token() -> None:
    engine = scheduler(caching=True)
    engine.add(request("a", 2 * 528, 1, (b"1", b"2")))
    drain(engine)
    engine.add(again := request("b", 2 * 528, 1, (b"1", b"2")))
    drain(engine)
    assert again.cached_tokens == 528 and again.generated == 1


def test_aborted_request_gives_its_blocks_back_in_mid_step() -> None:
    engine = scheduler()
    engine.add(leaving := request("a", 100, 50))
    engine.add(staying := request("b", 100, 2))
    step = planned(engine, 0.0)
    engine.abort(leaving)
    assert engine.complete(step) == [staying]
    drain(engine)
    assert engine.pool.free == engine.pool.usable and leaving.generated == 0


def test_request_whose_last_token_is_under_way_is_not_planned_again() -> None:
    engine = scheduler()
    engine.add(item := request("a", 10, 1))
    step = planned(engine, 0.0)
    assert engine.plan(0.1) is None
    assert engine.complete(step) == [item] and item.ended


def test_preempted_request_loses_the_token_that_was_under_way() -> None:
    engine = scheduler(blocks=1 + 8, seqs=2)
    engine.add(first := request("a", 520, 40))
    engine.add(second := request("b", 520, 40))
    now = 0.0
    while not engine.preemptions:
        step = planned(engine, now)
        flying = engine.plan(now)  # one more, before the first is completed
        engine.complete(step)
        if flying is not None:
            engine.complete(flying)
    drain(engine)
    assert first.generated == second.generated == 40
    assert second.preemptions == 1 and engine.pool.free == engine.pool.usable


def test_same_seed_same_times_other_seed_other_times() -> None:
    def lengths(seed: Any) -> Any:
        engine = scheduler(seed=seed, model=RECORDED)
        for name in range(5):
            engine.add(request(name, 300, 20))
        return [step.seconds for step in drain(engine)]

    assert lengths(1) == lengths(1)
    assert lengths(1) != lengths(2)


def test_a_drafter_brings_several_tokens_a_step_and_no_more_than_are_wanted() -> None:
    engine = scheduler(drafted=3, acceptance=1.0)
    engine.add(item := request("a", 100, 10))
    steps = drain(engine)
    assert [part.samples for step in steps for part in step.work] == [1, 4, 4, 1]
    assert item.generated == 10 and item.ended and engine.pool.free == engine.pool.usable


def test_acceptance_is_the_chance_of_each_draft_after_those_before_it() -> None:
    engine = scheduler(drafted=3, acceptance=0.6)
    for name in range(20):
        engine.add(request(name, 50, 400))
    brought = [part.samples for step in drain(engine) for part in step.work if part.decodes]
    assert abs(sum(brought) / len(brought) - (1 + 0.6 + 0.36 + 0.216)) < 0.1


def test_without_acceptance_a_drafter_only_costs() -> None:
    plain, drafting = scheduler(), scheduler(drafted=3)
    for engine in (plain, drafting):
        engine.add(request("a", 100, 20))
    plain_steps, drafting_steps = drain(plain), drain(drafting)
    assert len(plain_steps) == len(drafting_steps)
    assert sum(step.seconds for step in drafting_steps) > 1.5 * sum(step.seconds for step in plain_steps[1:])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 60)), min_size=1, max_size=12),
    st.integers(12, 60),
    st.integers(1, 8),
    st.integers(1, 600),
    st.booleans(),
    st.integers(0, 3),
)
def test_everything_ends_with_its_tokens(
    lengths: Any, blocks: Any, seqs: Any, batched: Any, caching: Any, drafted: Any
) -> None:
    width = 1 + drafted
    engine = scheduler(
        blocks=blocks + 6, seqs=seqs, batched=max(batched, width), caching=caching, drafted=drafted, acceptance=0.5
    )
    requests = []
    for name, (prompt, output) in enumerate(lengths):
        hashes = tuple(bytes([index]) for index in range(prompt // 528)) if caching else ()
        requests.append(request(name, prompt, output, hashes))
        engine.add(requests[-1])
    steps = drain(engine)
    assert all(item.generated == item.output_tokens for item in requests)
    assert all(step.tokens <= max(batched, width) + drafted for step in steps)
    assert all(len(step.work) <= seqs for step in steps)
    assert engine.pool.free == engine.pool.usable

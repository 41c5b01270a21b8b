"""When tokens come out: the two-step pipeline that the recorded streams show, and loads in virtual time."""

from dataclasses import replace
from typing import Any

import pytest

from qwenbench.capacity.cards import find_card
from qwenbench.simulator.blocks import BlockPool
from qwenbench.simulator.replay import Planned, Replayed, closed_loop
from qwenbench.simulator.scheduler import Pipeline, Scheduler, SchedulerLimits, SimRequest
from qwenbench.simulator.steptime import StepModel, StepSettings, StepShape, step_model

RECORDED = step_model(find_card("h200"), "h200-vllm-0.20.2", version="0.20.2")
MODEL = StepModel(replace(RECORDED.gpu, jitter=0.0, context_token_ms=0.0), replace(RECORDED.host, jitter=0.0))


def make(capture: int = 64, seqs: int = 64, blocks: int = 1072, model: StepModel = MODEL, **settings: Any) -> Scheduler:
    chosen = StepSettings(min(capture, seqs), capture, **settings)
    return Scheduler(SchedulerLimits(seqs, 2048, chosen), BlockPool(blocks), model)


def prefill_ms(tokens: int, model: StepModel = MODEL) -> float:
    return max(model.step_ms(StepShape(prefill_tokens=tokens, prompts=1), StepSettings(64, 64)))


def replay(scheduler: Scheduler, streams: int, number: int, prompt: int = 522, output: int = 128) -> list[Replayed]:
    queue = iter([Planned(prompt, output)] * number)
    return closed_loop(scheduler, streams, lambda _: next(queue, None))


def gaps(requests: list[Replayed]) -> float:
    values = sorted(b - a for item in requests for a, b in zip(item.token_times, item.token_times[1:], strict=False))
    return values[len(values) // 2] * 1e3


def test_single_stream_takes_frontend_prefill_and_launch() -> None:
    (only,) = replay(make(), 1, 1)
    expected = MODEL.frontend_ms(522, 0) + prefill_ms(522) + MODEL.host.graph_ms
    assert (only.token_times[0] - only.start) * 1e3 == pytest.approx(expected)
    assert len(only.token_times) == 128


def test_steady_decode_comes_at_the_step_time() -> None:
    assert gaps(replay(make(), 1, 1)) == pytest.approx(MODEL.decode_ms(1, 64))
    assert gaps(replay(make(), 64, 64)) == pytest.approx(MODEL.decode_ms(64, 64))


def test_first_token_in_a_busy_server_comes_one_prefill_step_late() -> None:
    slow_host = StepModel(MODEL.gpu, replace(MODEL.host, launch_ms=100.0, row_ms=0.0))
    scheduler = make(model=slow_host)
    pipeline = Pipeline(scheduler)
    scheduler.add(SimRequest("a", 2048, 1, 0.0))
    scheduler.add(late := SimRequest("b", 2048, 1, 0.0))
    launched = pipeline.turn(0.0)
    assert launched is not None and launched.deliver is None
    step = prefill_ms(2048, slow_host) / 1e3
    assert step == 0.1
    assert launched.at == pytest.approx(step)
    first = pipeline.turn(launched.at)
    assert first is not None and first.deliver is not None
    assert first.at == pytest.approx(2 * step)  # done at 1 x step, held back by the launch of the next prefill
    scheduler.complete(first.deliver)
    assert late.generated == 0
    second = pipeline.turn(first.at)
    assert second is not None and second.deliver is not None and second.at == pytest.approx(2 * step)
    scheduler.complete(second.deliver)
    assert pipeline.turn(second.at) is None


def test_without_asynchronous_scheduling_steps_stand_in_a_row() -> None:
    serial = MODEL.serial_ms(StepShape(decodes=64))
    assert gaps(replay(make(async_scheduling=False), 64, 64)) == pytest.approx(MODEL.decode_ms(64, 64) + serial)


def test_the_greater_of_host_and_gpu_counts() -> None:
    slow_host = StepModel(MODEL.gpu, replace(MODEL.host, launch_ms=90.0))
    assert prefill_ms(100, slow_host) == prefill_ms(400, slow_host) >= 90.0
    long = MODEL.step_ms(StepShape(prefill_tokens=2048, prompts=1), StepSettings(64, 64))
    assert max(long) == long[1] == prefill_ms(2048)


def test_prompts_under_the_captured_size_are_launched_sooner() -> None:
    times = MODEL.step_ms(StepShape(prefill_tokens=200, prompts=1), StepSettings(64, 1024))
    beyond = MODEL.step_ms(StepShape(prefill_tokens=200, prompts=1), StepSettings(64, 64))
    assert times[0] < beyond[0] and times[1] == beyond[1]


@pytest.mark.parametrize(
    ("flashinfer", "fields", "costs"), [(True, True, False), (False, True, True), (False, False, False)]
)
def test_only_the_slow_sampler_with_filtering_fields_costs(flashinfer: bool, fields: bool, costs: bool) -> None:
    settings = StepSettings(64, 64, flashinfer_sampler=flashinfer)
    plain = MODEL.step_ms(StepShape(decodes=64), settings)[1]
    filtered = MODEL.step_ms(StepShape(decodes=64, filtered=64 if fields else 0), settings)[1]
    assert (filtered > 1.2 * plain) is costs


def test_jump_above_the_captured_size_in_a_whole_load() -> None:
    captured = gaps(replay(make(capture=128, seqs=256), 128, 256))
    eager = gaps(replay(make(capture=64, seqs=256), 128, 256))
    assert captured == pytest.approx(13.0, rel=0.15)
    assert eager == pytest.approx(24.0, rel=0.15)


def test_recorded_preemptions_at_256_streams() -> None:
    scheduler = make(seqs=256)
    replay(scheduler, 256, 512)
    assert 5 <= scheduler.preemptions <= 20  # recorded: 10


def test_closed_loop_keeps_its_concurrency_and_order() -> None:
    requests = replay(make(seqs=4), 8, 24, prompt=50, output=10)
    assert len(requests) == 24
    assert [item.start for item in requests] == sorted(item.start for item in requests)
    for item in requests[8:]:
        under_way = sum(1 for other in requests if other.start < item.start < other.token_times[-1] - 1e-9)
        assert under_way <= 8

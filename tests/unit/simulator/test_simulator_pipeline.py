"""When tokens come out: the two-step pipeline that the recorded streams show, and loads in virtual time."""

from dataclasses import replace

import pytest

from qwenbench.simulator.blocks import BlockPool
from qwenbench.simulator.replay import Planned, closed_loop
from qwenbench.simulator.scheduler import Pipeline, Scheduler, SchedulerLimits, SimRequest
from qwenbench.simulator.steptime import calibrated_model

MODEL = replace(calibrated_model(), jitter=0.0, per_context_token_ms=0.0)


def make(capture=64, seqs=64, blocks=1072, model=MODEL):
    return Scheduler(SchedulerLimits(seqs, 2048, capture), BlockPool(blocks), model)


def replay(scheduler, streams, number, prompt=522, output=128):
    queue = iter([Planned(prompt, output)] * number)
    return closed_loop(scheduler, streams, lambda _: next(queue, None))


def gaps(requests):
    values = sorted(b - a for item in requests for a, b in zip(item.token_times, item.token_times[1:], strict=False))
    return values[len(values) // 2] * 1e3


def test_single_stream_takes_frontend_prefill_and_launch():
    (only,) = replay(make(), 1, 1)
    prefill = MODEL.mixed_ms(0, 522)
    expected = MODEL.frontend_ms + prefill + MODEL.graph_launch_ms
    assert (only.token_times[0] - only.start) * 1e3 == pytest.approx(expected)
    assert len(only.token_times) == 128


def test_steady_decode_comes_at_the_step_time():
    assert gaps(replay(make(), 1, 1)) == pytest.approx(MODEL.decode_ms(1, 64))
    assert gaps(replay(make(), 64, 64)) == pytest.approx(MODEL.decode_ms(64, 64))


def test_first_token_in_a_busy_server_comes_one_prefill_step_late():
    scheduler = make()
    pipeline = Pipeline(scheduler)
    scheduler.add(SimRequest("a", 2048, 1, 0.0))
    scheduler.add(late := SimRequest("b", 2048, 1, 0.0))
    launched = pipeline.turn(0.0)
    assert launched is not None and launched.deliver is None
    step = MODEL.mixed_ms(0, 2048) / 1e3
    assert launched.at == pytest.approx(step)
    first = pipeline.turn(launched.at)
    assert first is not None and first.deliver is not None
    assert first.at == pytest.approx(2 * step)  # done at 1 x step, held back by the launch of the next prefill
    scheduler.complete(first.deliver)
    assert late.generated == 0
    second = pipeline.turn(first.at)
    assert second is not None and second.at == pytest.approx(2 * step)
    scheduler.complete(second.deliver)
    assert pipeline.turn(second.at) is None


def test_jump_above_the_captured_size_in_a_whole_load():
    captured = gaps(replay(make(capture=128, seqs=256), 128, 256))
    eager = gaps(replay(make(capture=64, seqs=256), 128, 256))
    assert captured == pytest.approx(13.0, rel=0.15)
    assert eager == pytest.approx(24.0, rel=0.15)


def test_recorded_preemptions_at_256_streams():
    scheduler = make(seqs=256)
    replay(scheduler, 256, 512)
    assert 5 <= scheduler.preemptions <= 20  # recorded: 10


def test_closed_loop_keeps_its_concurrency_and_order():
    requests = replay(make(seqs=4), 8, 24, prompt=50, output=10)
    assert len(requests) == 24
    assert [item.start for item in requests] == sorted(item.start for item in requests)
    for item in requests[8:]:
        under_way = sum(1 for other in requests if other.start < item.start < other.token_times[-1] - 1e-9)
        assert under_way <= 8

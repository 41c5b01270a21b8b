"""A defect of ours in any callback of the client: the point ends within the limits, with a result or a message."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from load_faulty_server import LAST, Call, faulty_server, good

from qwenbench.load.client_process import Failed, Finished, Go, Message, Prepare, Prepared, SentLog, read_message
from qwenbench.load.clock import HealthWatch, TimedCalls, now_ns
from qwenbench.load.point import PointRunner
from qwenbench.load.socket_transport import SocketChannel
from qwenbench.load.source import SessionSource, shares
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.load.worker import Worker
from qwenbench.workload.sessions import SessionPlan, TurnPlan

CALLBACKS: tuple[tuple[type, str], ...] = (
    *((PointRunner, name) for name in ("_begin", "_next_session", "_send", "_ended", "_when", "_pause_ns", "_look")),
    *((PointRunner, name) for name in ("_bound", "_keep", "_decode_next", "_decode", "_maybe_finish", "progress")),
    *((SocketChannel, name) for name in ("start", "abort", "_on_readable", "_on_head", "_walk", "_on_end_mark")),
    *((SocketChannel, name) for name in ("_after_end_mark", "_on_end", "_fail", "_finish", "_hand_back", "_drop")),
    *((SessionSource, name) for name in ("take", "refill")),
    *((TimedCalls, name) for name in ("at", "_wake", "_arm", "close")),
    *((HealthWatch, name) for name in ("start", "_look", "stop")),
    (SentLog, "add"),
)


async def of_every_kind(call: Call) -> None:
    """Answers that are good, broken off, refused, not closed, and that never come."""
    if call.number == 0:
        await call.write(good().removesuffix(LAST))
        await call.stall()
    elif call.number == 1:
        call.reset()
    elif call.number == 2:
        await call.write(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
    elif call.number == 3:
        await call.stall()
    else:
        await call.write(good())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # connections that a defect left open
@pytest.mark.parametrize("failing", [1, 2])
@pytest.mark.parametrize(("owner", "name"), CALLBACKS)
def test_whatever_throws_the_point_ends_within_the_limits(
    owner: type,
    name: str,
    failing: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", ("Callbacks", [f"{owner.__name__}.{name}", str(failing)]))
    asyncio.run(_point_with(owner, name, failing, tmp_path, monkeypatch))
    gc.collect()  # here, where what a defect left open may be told: a later test would have to answer for it


async def _point_with(owner: type, name: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = getattr(owner, name), 0

    def throws(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise RuntimeError("a defect")
        return real(*given, **named)

    monkeypatch.setattr(owner, name, throws)
    monkeypatch.setattr("qwenbench.load.point._OVERDUE_NS", 0)
    monkeypatch.setattr("qwenbench.load.point._IDLE_LOOKS", 5)
    turn = TurnPlan("r", 0, "p", "en", {"stream": True})
    share = shares([SessionPlan(f"s{number}", "t", (turn,)) for number in range(8)], 2, 1)[0]
    inbox: asyncio.Queue[Message | None] = asyncio.Queue()
    said, out = os.pipe()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(said, "rb"))
    async with faulty_server(of_every_kind) as server, asyncio.timeout(20):
        target = Target(f"http://127.0.0.1:{server.port}")
        inbox.put_nowait(Prepare(LoadSpec(target, ClosedLoop(2), (), 0.5), share, False, None, str(tmp_path / "log")))
        worker = asyncio.ensure_future(Worker(inbox, out).serve())
        while not isinstance(message := await read_message(reader), Finished | Failed):
            if isinstance(message, Prepared):
                inbox.put_nowait(Go(now_ns()))
        inbox.put_nowait(None)
        await worker
    pipe.close()
    os.close(out)
    assert calls >= failing or isinstance(message, Finished)

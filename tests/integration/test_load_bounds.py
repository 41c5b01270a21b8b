"""Bounded against any server: endless answers, odd headers, connections that stay open, and defects of our own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from load_faulty_server import DONE, HEAD, LAST, Behaviour, Call, good, http_chunk, token, usage
from test_load_faults import rows_of

from qwenbench.load.client_process import Prepare, SentEntry, SentLog
from qwenbench.load.clock import TimedCalls, now_ns
from qwenbench.load.exchange import RawExchange
from qwenbench.load.point import PointRunner
from qwenbench.load.run import LoadClient
from qwenbench.load.source import SessionSource, shares
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.load.worker import _end_point
from qwenbench.workload.sessions import SessionPlan, TurnPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")
MOST_MIB = 400
ERROR_HEAD = b"HTTP/1.1 500 X\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[LoadClient]:
    async with LoadClient() as one:
        yield one


def endless(head: bytes, piece: bytes) -> Behaviour:
    async def behave(call: Call) -> None:
        if call.number:
            await call.write(good())
            return
        await call.write(head)
        while True:
            await call.write(piece)

    return behave


@pytest.mark.parametrize(
    ("head", "piece", "error"),
    [
        (HEAD, http_chunk(b": " + b"x" * 60_000 + b"\n\n"), "malformed"),
        (HEAD, http_chunk(token("word ") * 200), "malformed"),
        (HEAD, http_chunk(b"data:\n\n" * 9000), "malformed"),
        (HEAD, http_chunk(b"x" * 60_000), "malformed"),
        (ERROR_HEAD, b"error\n\n" * 9000, "http_status"),
        (ERROR_HEAD, b"x" * 60_000, "http_status"),
        (b"", b"x" * 60_000, "malformed"),
        (b"HTTP/1.1 200 OK\r\n", b"x-header: y\r\n" * 1000, "malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", b"\x1f\x8b" + b"\0" * 60_000, "malformed"),
    ],
)
async def test_an_endless_answer_ends_and_the_memory_stays_small(
    client: LoadClient, head: bytes, piece: bytes, error: str
) -> None:
    rows = await rows_of(client, endless(head, piece), requests=2, timeout_s=60)
    assert [row["error"] for row in rows if row["error"]] == [error]
    for process in client._processes:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_kib = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
        assert peak_kib < MOST_MIB * 1024


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_a_long_answer_is_no_endless_event_whatever_its_line_ends(client: LoadClient, newline: bytes) -> None:
    events = [token("word ") * 400] * 140  # 5 MB, read in large pieces

    async def behave(call: Call) -> None:
        parts = [*events, usage(56_000), DONE]
        await call.write(HEAD + b"".join(http_chunk(part.replace(b"\n", newline)) for part in parts) + LAST)

    (row,) = await rows_of(client, behave, requests=1, timeout_s=60)
    assert (row["error"], row["output_tokens"], row["chunks"]) == (None, 56_000, 56_000)


@pytest.mark.parametrize("value", ["9" * 5000, "-1", "1e9", "Wed, 21 Oct 2099 07:28:00 GMT", "²", ""])
async def test_odd_retry_after_headers_end_nothing(client: LoadClient, value: str) -> None:
    async def behave(call: Call) -> None:
        if call.number:
            await call.write(good())
        else:
            head = f"HTTP/1.1 429 X\r\nRetry-After: {value}\r\nContent-Length: 2\r\n\r\n"
            await call.write(head.encode("latin-1") + b"{}")

    rows = await rows_of(client, behave, requests=2)
    assert sorted(row["error"] or "" for row in rows) == ["", "http_status"]


async def test_a_connection_that_stays_open_after_the_end_mark_costs_nothing(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        parts = [token(), token(), usage(2), DONE]
        await call.write(HEAD + b"".join(map(http_chunk, parts)))
        await call.stall()

    rows = await rows_of(client, behave, requests=8, timeout_s=600)
    assert [(row["error"], row["output_tokens"]) for row in rows] == [(None, 2)] * 8


class Channel:
    """A channel whose `start` does what a test says."""

    ready = True

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start

    def start(self, body: bytes, done: Callable[[RawExchange], None]) -> RawExchange:
        self._start()
        return RawExchange(sent_ns=now_ns())

    def abort(self, error: str, detail: str) -> None:
        """Has no effect, as a defect might have it."""


def runner(start: Callable[[], None], folder: Path, timeout_s: float = 60.0) -> PointRunner:
    plans = [SessionPlan("s", "t", (TurnPlan("r", 0, "p", "en", {}),))]
    share = shares(plans, 1, 1)[0]
    calls = TimedCalls(asyncio.get_running_loop())
    spec = LoadSpec(Target("http://127.0.0.1:1"), ClosedLoop(1), (), timeout_s)
    log = folder / "sent"
    transport: Any = SimpleNamespace()
    channels: Any = [Channel(start)]
    task = Prepare(spec, share, False, None, str(log))
    return PointRunner(task, SessionSource(share, 1), transport, channels, calls, SentLog(log))


async def test_an_exception_in_a_callback_ends_the_point_with_a_message(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    loop = asyncio.get_running_loop()
    point = runner(fail, tmp_path)
    loop.set_exception_handler(lambda loop, context: _end_point(point, loop, context))
    try:
        with pytest.raises(RuntimeError, match="a defect"):
            await point.run(now_ns(), lambda: None)
    finally:
        loop.set_exception_handler(None)


async def test_a_request_that_cannot_be_ended_ends_the_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenbench.load.point._OVERDUE_NS", 0)
    with pytest.raises(RuntimeError, match="could not be ended after its time-out"):
        await runner(lambda: None, tmp_path, timeout_s=0.01).run(now_ns(), lambda: None)


async def test_a_log_that_cannot_be_written_stops_no_load(tmp_path: Path) -> None:
    log = SentLog(tmp_path / "missing" / "folder")
    log.add(None)  # type: ignore[arg-type]  # nothing is written
    log.close()
    full = SentLog(Path("/dev/full") if Path("/dev/full").exists() else tmp_path / "x")
    full.add(SentEntry(1, 2, 3, 4, 5))
    full.add(SentEntry(1, 2, 3, 4, 5))
    full.close()

"""A client process: `python -m qwenbench.load.worker`, spoken to over stdin and stdout (load/client_process.py).

It ends when stdin does, and by the kernel's hand where it is busy then: it cannot outlive who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib.util
import os
import platform
import signal
import sys
import time
import traceback
from functools import partial
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pyarrow as pa

from qwenbench.errors import UsageError
from qwenbench.load.client_process import (
    Failed,
    Finished,
    Go,
    Message,
    Prepare,
    Prepared,
    SentLog,
    Stop,
    WindDown,
    read_message,
    write_message,
)
from qwenbench.load.clock import HealthWatch, ProcessHealth, TimedCalls, now_ns
from qwenbench.load.exchange import Transport
from qwenbench.load.point import PointRunner
from qwenbench.load.records import to_table
from qwenbench.load.socket_transport import SocketTransport
from qwenbench.load.source import SessionSource
from qwenbench.load.spec import Target, address_of

_PROGRESS_S = 1.0
_SESSIONS_AHEAD = 64
_MANY_STREAMS = 100


async def make_transport(target: Target) -> Transport:
    """Sockets for plain http, aiohttp for https and proxies. Raises UsageError for a bad target."""
    address = address_of(target)
    try:
        if address.scheme == "http" and not address.proxied and sys.platform != "win32":
            return await SocketTransport.create(address, target.headers)
        from qwenbench.load.aiohttp_transport import AiohttpTransport  # costs 0.3 s, and is rarely used

        return AiohttpTransport(address, target.headers, verify_tls=target.verify_tls)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    except OSError as problem:
        raise UsageError(f"the host {address.host!r} is not known: {problem.strerror}") from None


class Worker:
    """Serves one parent: prepare, go, and again."""

    def __init__(self, inbox: asyncio.Queue[Message | None], out_fd: int) -> None:
        self._inbox = inbox
        self._out = out_fd

    async def serve(self) -> None:
        """Run points until the parent is gone (None in the inbox)."""
        while (message := await self._inbox.get()) is not None:
            if isinstance(message, Failed):
                self._say(message)
            if not isinstance(message, Prepare):
                continue  # a stop that crossed the end of its point
            try:
                finished = await self._point(message)
            except UsageError as problem:
                self._say(Failed(str(problem), usage=True))
            except Exception as problem:  # a defect of ours ends the point with a message, never in silence
                traceback.print_exc()
                self._say(Failed(f"a defect of the client: {type(problem).__name__}: {problem}"))
            else:
                if finished is None:
                    return
                self._say(finished)

    def _say(self, message: Message) -> None:
        write_message(self._out, message)

    async def _point(self, task: Prepare) -> Finished | None:
        """One point; None when the parent is gone."""
        if task.cpu is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {task.cpu})
        spec, streams = task.spec, task.share.own_streams
        transport = await make_transport(spec.target)
        if isinstance(transport, SocketTransport) and not spec.open_loop and streams >= _MANY_STREAMS:
            transport.rest_between_reads()
        loop = asyncio.get_running_loop()
        calls = TimedCalls(loop)
        log = SentLog(Path(task.sent_log))
        try:
            source = SessionSource(task.share, streams + _SESSIONS_AHEAD)
            channels = await transport.connect(streams, spec.timeout_s)
            point = PointRunner(task, source, transport, channels, calls, log)
            loop.set_exception_handler(partial(_end_point, point))
            gc.collect()
            gc.freeze()
            gc.disable()
            self._say(Prepared())
            go = await self._inbox.get()
            if not isinstance(go, Go):
                return None
            seen = await self._run(point, transport.stamp_source, go.start_ns)
        finally:
            loop.set_exception_handler(None)
            gc.enable()
            gc.unfreeze()
            calls.close()
            log.close()
            await transport.close()
        ended_ns = now_ns()
        if spec.judge_text:
            self._judge(point)
        if spec.tokenize_as is not None and not point.stopped:
            from qwenbench.load.text_tokens import count_unknown  # only where it was asked for

            ticking = asyncio.ensure_future(self._tick(point))  # a sign of life: a silent process is given up
            try:
                await count_unknown(point.digests, spec.target, spec.tokenize_as)
            finally:
                ticking.cancel()
        texts = {one.row["request_id"]: one.answer for one in point.digests} if spec.save_text else {}
        table = to_table([one.row for one in point.digests])
        return Finished(table, ended_ns, seen, point.waiting_since_ns, texts)

    async def _run(self, point: PointRunner, stamp_source: str, start_ns: int) -> ProcessHealth:
        """Let the streams go; wind down when told to, stop when anything else comes in (stop, or the parent's end)."""
        health_calls = TimedCalls(asyncio.get_running_loop())
        health = HealthWatch(health_calls)
        running = asyncio.ensure_future(point.run(start_ns, on_enough=lambda: self._say(point.progress())))
        listening = asyncio.ensure_future(self._inbox.get())
        ticking = asyncio.ensure_future(self._tick(point))
        health.start(start_ns)
        try:
            await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and isinstance(listening.result(), WindDown):
                point.wind_down()
                listening = asyncio.ensure_future(self._inbox.get())
                await asyncio.wait({running, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                told = listening.result()
                point.stop(told.reason if isinstance(told, Stop) else "the client's parent is gone")
            await running
            return health.stop(stamp_source)
        finally:
            ticking.cancel()
            if not listening.cancel() and listening.result() is None:
                self._inbox.put_nowait(None)
            health_calls.close()

    def _judge(self, point: PointRunner) -> None:
        """Fill `broken` by the workload's checks, once all streams have ended."""
        from qwenbench.workload.quality import judge  # only where it was asked for

        told = time.monotonic()
        for one in point.digests:
            row = one.row
            if row["error"] is None:
                row["broken"] = judge(one.answer, one.reasoning, row["language"], row["finish_reason"])
            if time.monotonic() - told > _PROGRESS_S:
                told = time.monotonic()
                self._say(point.progress())  # a sign of life: a silent process is given up

    async def _tick(self, point: PointRunner) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            self._say(point.progress())


def _end_point(point: PointRunner, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's handler of exceptions in callbacks: whatever throws ends the point, not its progress."""
    point.fail(context.get("exception") or RuntimeError(str(context.get("message"))))


async def _receive(reader: asyncio.StreamReader, inbox: asyncio.Queue[Message | None]) -> None:
    message: Message | None = Stop()
    while message is not None:
        try:
            message = await read_message(reader)
        except Exception as problem:  # unpickling runs what the sessions' own classes do
            message = Failed(f"the sessions could not be handed to a client process: {problem}")
        inbox.put_nowait(message)


async def _serve(out_fd: int) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    inbox: asyncio.Queue[Message | None] = asyncio.Queue()
    receiving = asyncio.ensure_future(_receive(reader, inbox))
    try:
        await Worker(inbox, out_fd).serve()
    finally:
        receiving.cancel()


_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
_SLICE_NS = 100_000
_PR_SET_PDEATHSIG = 1


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def ask_for_short_slices() -> bool:
    """Have this process run in slices of 0.1 ms instead of about 3 ms; True when the kernel took the call.

    Linux's scheduler (EEVDF, from 6.12 on) runs who asks for a short slice sooner after it wakes; its share of
    the CPU stays what it was, so the server under test loses nothing. Older kernels ignore the wish.
    """
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    nice = 0
    with contextlib.suppress(OSError):
        nice = os.getpriority(os.PRIO_PROCESS, 0)
    wish = _SchedAttr(size=ctypes.sizeof(_SchedAttr), policy=os.SCHED_OTHER, nice=nice, runtime=_SLICE_NS)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(number, 0, ctypes.byref(wish), 0) == 0)


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, whatever it is doing then."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _allow_many_sockets() -> None:
    """Raise the soft limit of open files (often 1,024) to the hard one: every stream is a socket."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _NoPandas(MetaPathFinder):
    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "pandas":
            raise ImportError


def _leave_pandas_out() -> None:
    """pyarrow imports pandas for the first list that it is given, to see whether it is pandas': 0.3 s in every client.

    It remembers that there was none; this process's own code may still import it.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    pa.array([])
    sys.meta_path.remove(finder)


def main() -> None:
    """Serve the parent until its end of stdin."""
    _end_with_parent()
    _leave_pandas_out()
    _allow_many_sockets()
    ask_for_short_slices()
    out_fd = os.dup(1)
    os.dup2(2, 1)  # a stray print must not end up between two messages
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        if importlib.util.find_spec("uvloop"):  # absent on Windows and PyPy
            import uvloop

            uvloop.run(_serve(out_fd))
        else:
            asyncio.run(_serve(out_fd))


if __name__ == "__main__":
    main()

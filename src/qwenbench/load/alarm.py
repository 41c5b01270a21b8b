"""Calls at an absolute real time, to tens of microseconds: event loops round their own timers to 1 ms."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import os
import sys
import time
from collections.abc import Callable
from itertools import count

from qwenbench.load.clock import NS_PER_S, now_ns

_TFD_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """A queue of calls, each at its CLOCK_REALTIME ns, run by the event loop of the thread that made it.

    On Linux a timerfd wakes the loop; elsewhere the loop's own timer does, up to about 1 ms late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._armed: int | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._libc: ctypes.CDLL | None = None
        self._fd = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                self._libc = ctypes.CDLL(None, use_errno=True)
                self._fd = self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._wake)

    def at(self, due_ns: int, call: Callable[[], None]) -> None:
        """Run `call` at `due_ns` (or as soon as possible when that has passed)."""
        heapq.heappush(self._queue, (due_ns, next(self._order), call))
        self._arm()

    def clear(self) -> None:
        """Forget all calls."""
        self._queue.clear()

    def close(self) -> None:
        """Forget all calls and give the timer back."""
        self._queue.clear()
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _arm(self) -> None:
        if not self._queue or self._queue[0][0] == self._armed:
            return
        self._armed = due = self._queue[0][0]
        if self._fd >= 0 and self._libc is not None:
            # a time of 0 would disarm the timer; one in the past fires at once
            sec, nsec = divmod(max(due, 1), NS_PER_S)
            spec = _Itimerspec(_Timespec(0, 0), _Timespec(sec, nsec))
            self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)
        else:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0, due - now_ns()) / NS_PER_S, self._wake)

    def _wake(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._fd, 8)
        self._armed = None
        while self._queue and self._queue[0][0] <= now_ns():
            heapq.heappop(self._queue)[2]()
        self._arm()

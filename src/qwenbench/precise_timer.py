"""A timer for absolute instants, exact to tens of microseconds: event loops round their own timers to 1 ms.

On Linux a timerfd wakes the loop; elsewhere the loop's own timer does, up to about 1 ms late.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable

_TFD_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_TFD_TIMER_ABSTIME = 1
_NS_PER_S = 1_000_000_000
_CLOCK_REALTIME, _CLOCK_MONOTONIC = 0, 1  # Linux's numbers


class _Itimerspec(ctypes.Structure):
    """struct itimerspec of timerfd_settime(2), laid flat."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class PreciseTimer:
    """Calls one function at an instant in ns of the monotonic clock (or of real time); used in the loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None], *, real_time: bool = False
    ) -> None:
        """`real_time`: instants are those of time.time_ns(), else of time.monotonic_ns()."""
        self._loop = loop
        self._callback = callback
        self._now_ns = time.time_ns if real_time else time.monotonic_ns
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                self._open(_CLOCK_REALTIME if real_time else _CLOCK_MONOTONIC)

    def _open(self, clock: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._spec = _Itimerspec()
        self._pointer = ctypes.byref(self._spec)
        self._settime = libc.timerfd_settime
        fd = libc.timerfd_create(clock, _TFD_NONBLOCK_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._fd = fd
        self._loop.add_reader(fd, self._fired)

    def set(self, due_ns: int) -> None:
        """Fire at `due_ns`, at once when that has passed; this replaces what was set before."""
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            self._handle = self._loop.call_later(max(0, due_ns - self._now_ns()) / _NS_PER_S, self._callback)
            return
        spec = self._spec
        # a time of 0 would disarm the timer; one in the past fires at once
        spec.value_s, spec.value_ns = divmod(max(due_ns, 1), _NS_PER_S)
        self._settime(self._fd, _TFD_TIMER_ABSTIME, self._pointer, None)

    def close(self) -> None:
        """Never fire again, and give the timer back."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set to a later instant between the event and this call
        self._callback()

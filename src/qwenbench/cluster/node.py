"""On a node: the Ray actor of one launch. It runs a shard process under our supervisor and hands over what it finishes.

The figures are made by the shard, a process like a sweep that is started by hand; the actor only looks at its folder.
Whatever ends the actor - Ray, a kill, a lost node - the supervisor sees it and ends shard and server.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pickle
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from qwenbench.cluster.fleet import News, Task
from qwenbench.engine.supervised import SupervisedProcess
from qwenbench.runfolder.journal import parse_entry, whole_lines
from qwenbench.runfolder.names import RunPaths

BEGIN, TASK, EVENTS, RESULT, LOG = "begin", "task.pickle", "events.jsonl", "result.json", "shard.log"
LOOK_S = 120.0
"""Longest wait for a node that is looked at: its worker has to start and to import."""
LEASE_S = 60.0
"""A driver that asks for nothing for so long is gone: the launch ends."""
STOP_S = 60.0
"""Grace of a shard that is asked to stop: its server is ended first."""
_NEWS_S = 2.0
_LOOK_S = 0.1
_HELD = ".held"


def plain_environment() -> None:
    """Gives this process the environment and the priority that its raylet was started with, but for the cards that Ray
    gave it.

    Ray's workers get variables of its own (OMP_NUM_THREADS=1 is one) and niceness 15, which would change what a server
    and a load do. Raising a priority needs root: see `niceness`.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, os.getppid()))
    with contextlib.suppress(OSError):
        raw = Path(f"/proc/{os.getppid()}/environ").read_bytes()
        given = dict(line.split("=", 1) for line in raw.decode(errors="surrogateescape").split("\0") if "=" in line)
        kept = {name: value for name, value in os.environ.items() if name == "CUDA_VISIBLE_DEVICES" and value}
        if given:
            os.environ.clear()
            os.environ.update(given | kept)


def niceness() -> int:
    """How much this process is put behind others by Ray; 0: not at all."""
    return os.getpriority(os.PRIO_PROCESS, 0) - os.getpriority(os.PRIO_PROCESS, os.getppid())


class Node:
    """One launch's place. Ray makes an actor of it; `warm` may be called while other nodes are still looked at, `begin`
    is called once, then `news` until there is a result."""

    def __init__(self) -> None:
        self._touched = time.monotonic() + LOOK_S
        self._warming: asyncio.Future[None] | None = None
        self._events = 0
        self._sent: dict[Path, tuple[int, int]] = {}
        self._number = 0
        self._last: News | None = None
        self._asking = asyncio.Lock()

    async def warm(self) -> None:
        """Starts the shard process, which imports what it needs and waits for `begin`. Can be called again.

        Raises RefusedError when it cannot be started.
        """
        if self._warming is None:
            self._warming = asyncio.ensure_future(self._start())
        await self._warming

    async def _start(self) -> None:
        plain_environment()
        self._folder = _new_folder()
        os.mkfifo(self._folder / BEGIN, 0o600)
        words = [sys.executable, "-P", "-m", "qwenbench.cluster.shard", str(self._folder), *_whereabouts()]
        self._process = await SupervisedProcess.start(words, self._folder / LOG, {}, ())
        self._gone = asyncio.ensure_future(self._process.gone())
        self._lease = asyncio.ensure_future(self._watch_driver())

    async def begin(self, task: Task) -> str:
        """Has the shard make its launch; the name of the node. Raises RefusedError as `warm`."""
        await self.warm()
        self._touched = time.monotonic()
        self._paths = RunPaths(self._folder / task.run_id)
        self._paths.root.mkdir()
        if task.journal:
            self._paths.journal.write_bytes(task.journal)
        self._cells = task.journal.count(b"\n")
        (self._folder / TASK).write_bytes(pickle.dumps(task))
        self._go = os.open(self._folder / BEGIN, os.O_RDWR)  # which waits for no reader, as O_WRONLY would
        os.write(self._go, b"\n")
        return socket.gethostname()

    async def news(self, received: int) -> News:
        """The next news, after 2 s at most; the last one again when the driver has not `received` it."""
        self._touched = time.monotonic()
        async with self._asking:
            if self._last is None or received >= self._number:
                self._last = await self._next()
                self._number += 1
            return self._last

    async def stop(self) -> None:
        """Has the shard stop its server and end."""
        await self._process.stop(STOP_S)

    async def close(self) -> None:
        """Ends what still runs, and removes the folder."""
        self._lease.cancel()
        await self._process.stop(STOP_S)
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _watch_driver(self) -> None:
        while (left := LEASE_S - (time.monotonic() - self._touched)) > 0:  # noqa: ASYNC110 - silence is no event
            await asyncio.sleep(left)
        await self.close()
        os._exit(1)  # nobody is there who could be told

    async def _next(self) -> News:
        deadline = time.monotonic() + _NEWS_S
        while True:
            over = self._gone.done()  # before the files are read: what comes after them is not missed
            lines = whole_lines(self._paths.journal)[self._cells :]
            events = whole_lines(self._folder / EVENTS)[self._events :]
            if lines or over or events or time.monotonic() >= deadline:
                break
            await asyncio.wait({self._gone}, timeout=_LOOK_S)
        self._events += len(events)
        told = tuple(orjson.loads(line) for line in events)
        if lines:
            self._cells += 1
            entry = parse_entry(lines[0])
            files = self._read(self._paths.cell_files(entry.config, entry.cell)) | self._changed()
            return News(lines[0], files, told)
        return News(None, self._changed() if over else {}, told, self._result() if over else None)

    def _changed(self) -> dict[str, bytes]:
        """The files of launch folders (logs, launch.json, memory.json) that have changed since they were sent."""
        changed = []
        for path in [*self._paths.servers.glob("*/*.*"), *self._paths.servers.glob("*/relaunch-*/*.*")]:
            with contextlib.suppress(OSError):
                state = path.stat()
                stamp = (state.st_mtime_ns, state.st_size)
                if path.is_file() and not path.name.startswith(".") and self._sent.get(path) != stamp:
                    self._sent[path] = stamp
                    changed.append(path)
        return self._read(changed)

    def _read(self, paths: Iterable[Path]) -> dict[str, bytes]:
        return {str(path.relative_to(self._paths.root)): path.read_bytes() for path in paths if path.is_file()}

    def _result(self) -> dict[str, Any]:
        """What the shard said at its end; when it said nothing, its last words."""
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            result: dict[str, Any] = orjson.loads((self._folder / RESULT).read_bytes())
            return result
        words = (self._folder / LOG).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        code = self._gone.result().exit_code
        return {"lost": f"its process ended with status {code}: {words[-1][:300]}"}


def _whereabouts() -> tuple[str, str]:
    """The cluster's address, and this node's id in it."""
    import ray

    here = ray.get_runtime_context()
    return here.gcs_address, here.get_node_id()


def _new_folder() -> Path:
    """A folder for a shard, held by this process; those whose holders are gone are removed."""
    home = Path(tempfile.gettempdir()) / f"qwenbench-shards-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    for old in home.iterdir():
        _remove_if_left(old)
    folder = home / uuid.uuid4().hex[:12]
    folder.mkdir(mode=0o700)
    fcntl.flock(os.open(folder / _HELD, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder


def _remove_if_left(folder: Path) -> None:
    """Removes a shard's folder when neither an actor nor a shard process holds it any more."""
    handles = []
    try:
        for lock in (folder / _HELD, *folder.glob("*/.lock")):
            handles.append(os.open(lock, os.O_RDWR))
            fcntl.flock(handles[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        if handles:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # held, or just being made
    finally:
        for handle in handles:
            os.close(handle)

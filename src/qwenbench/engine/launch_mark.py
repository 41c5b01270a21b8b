"""A variable in a server's environment that says which qwenbench process started it.

Its children inherit it, so they are recognised whatever group or session they have moved to, also when
launch.json is out of reach.
"""

from __future__ import annotations

import uuid

from qwenbench.process_identity import ProcessIdentity, boot_id

VARIABLE = "QWENBENCH_LAUNCH"


def new_mark(owner: ProcessIdentity) -> str:
    """A mark for one launch by this owner: PID/START/HOST/UNIQUE."""
    start = "" if owner.start_time is None else f"{owner.start_time:.0f}"
    return f"{owner.pid}/{start}/{owner.host}/{uuid.uuid4().hex}"


def owner_of(mark: str) -> ProcessIdentity | None:
    """The process that a mark names; None when it is none of ours. A process never outlives its boot."""
    try:
        pid, start, host, _ = mark.split("/")
        return ProcessIdentity(host, boot_id(), int(pid), float(start) if start else None)
    except ValueError:
        return None

"""Labels by which a container is known to be ours, and its owner to be alive or not."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from qwenbench.process_identity import ProcessIdentity, user_name

RUN = "qwenbench.run"
OWNER = "qwenbench.owner"
HOST = "qwenbench.host"
BOOT = "qwenbench.boot-id"
PID = "qwenbench.owner-pid"
START = "qwenbench.owner-start-time"
LAUNCH = "qwenbench.launch"
"""Unique to one launch: a name can be somebody else's container, this cannot."""


def labels_for(run_id: str) -> dict[str, str]:
    """Labels of a container that this process starts."""
    owner = ProcessIdentity.current()
    return {
        LAUNCH: uuid.uuid4().hex,
        RUN: run_id,
        OWNER: user_name(),
        HOST: owner.host,
        BOOT: owner.boot_id or "",
        PID: str(owner.pid),
        START: "" if owner.start_time is None else f"{owner.start_time:.0f}",
    }


def owner_of(labels: Mapping[str, str]) -> ProcessIdentity | None:
    """The process that started the container; None when the labels do not say."""
    try:
        start = float(labels[START]) if labels.get(START) else None
        return ProcessIdentity(labels[HOST], labels.get(BOOT) or None, int(labels[PID]), start)
    except (KeyError, ValueError):
        return None

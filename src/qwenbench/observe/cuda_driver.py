"""CUDA's total of each card, asked from the driver itself: what vLLM multiplies with its utilisation.

NVML tells another total, and the table of capacity/cards.py knows some cards only. The question is put by a process
of its own, which ends with the answer: no context and no memory stay on any card. That process runs this file
alone, so nothing but the standard library is imported here.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from typing import Any

_LIBRARIES = ("libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1")
_PATIENCE_S = 30.0  # cuInit wakes sleeping cards: seconds each on a machine without a persistence daemon


def cuda_totals(environment: Mapping[str, str] | None = None) -> dict[str, int]:
    """UUID -> bytes, of every card of the machine; empty where there is no driver or it does not answer."""
    asked = dict(os.environ if environment is None else environment)
    asked.pop("CUDA_VISIBLE_DEVICES", None)  # the cards are told apart by UUID
    try:
        done = subprocess.run(
            [sys.executable, "-I", __file__],
            env=asked,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        told = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}
    return {str(card): int(total) for card, total in told.items()} if isinstance(told, dict) else {}


def totals_of(driver: Any) -> dict[str, int]:
    """UUID -> bytes by these calls of libcuda (cuDeviceTotalMem needs no context).

    Raises OSError when the driver refuses the first calls; a card that does not answer is left out.
    """
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        raise OSError("the driver answers no question")
    totals = {}
    for ordinal in range(count.value):
        device, total, name = ctypes.c_int(), ctypes.c_size_t(), (ctypes.c_ubyte * 16)()
        refused = (
            driver.cuDeviceGet(ctypes.byref(device), ordinal)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device)
            or driver.cuDeviceGetUuid(ctypes.byref(name), device)
        )
        if not refused:
            totals[f"GPU-{uuid.UUID(bytes=bytes(name))}"] = total.value
    return totals


def _open_driver() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("no libcuda")


if __name__ == "__main__":
    try:
        print(json.dumps(totals_of(_open_driver())))
    except (OSError, AttributeError):  # no driver, or one without these calls
        raise SystemExit(1) from None

"""The real vLLM as a fixture; whatever a test does, none of its processes may stay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_vllm import Vllm


@pytest.fixture(scope="session")
def vllm() -> Iterator[Vllm]:
    home = os.environ.get("QWENBENCH_VLLM_HOME")
    if not home:
        pytest.fail("QWENBENCH_VLLM_HOME is not set: use `make test-vllm`, which installs vLLM first.")
    real = Vllm(Path(home))
    others = set(real.processes())  # somebody else's, on a shared machine
    yield real
    assert set(real.processes()) <= others, "a sweep left a server behind"

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
    assert real.processes() == [], "a server of an earlier run is still there"
    yield real
    assert real.processes() == [], "a sweep left a server behind"

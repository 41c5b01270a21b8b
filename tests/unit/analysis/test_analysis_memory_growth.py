"""Whether memory grows under a load that is held."""

from __future__ import annotations

import numpy as np
import pytest

from qwenbench.analysis.endurance import growth_of

TIMES = np.arange(0.0, 1200.0, 0.5)


def test_a_leak_is_found_with_what_is_left() -> None:
    noise = np.random.default_rng(1).normal(0, 3.0, len(TIMES))
    growth = growth_of("VRAM", TIMES.tolist(), (30_000 + TIMES / 3600 * 600 + noise).tolist(), free_mib=1200.0)
    assert growth is not None
    assert growth.grows
    assert growth.mib_per_hour == pytest.approx(600, rel=0.1)
    assert growth.hours_left == pytest.approx(2.0, rel=0.15)
    assert "GROWS" in growth.verdict()


def test_what_fills_up_at_the_beginning_is_no_leak() -> None:
    filling = 30_000 + np.minimum(TIMES, 250.0) * 8
    growth = growth_of("VRAM", TIMES.tolist(), filling.tolist())
    assert growth is not None
    assert not growth.grows
    assert "steady" in growth.verdict()


def test_scatter_alone_is_no_growth() -> None:
    noise = np.random.default_rng(2).normal(0, 50.0, len(TIMES))
    growth = growth_of("VRAM", TIMES.tolist(), (30_000 + noise).tolist())
    assert growth is not None
    assert not growth.grows


def test_a_short_time_tells_nothing_and_no_samples_are_none() -> None:
    growth = growth_of("VRAM", [0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert growth is not None
    assert growth.mib_per_hour is None
    assert not growth.grows
    assert "too short" in growth.verdict()
    assert growth_of("VRAM", [], []) is None
    assert growth_of("VRAM", [0.0], [float("nan")]) is None

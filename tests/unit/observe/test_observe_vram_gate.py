"""The gate between a stop and the next launch."""

from __future__ import annotations

from qwenbench.observe.nvml import wait_drained


async def test_waits_until_every_card_is_back() -> None:
    readings = [{"a": 900.0, "b": 100.0}, {"a": 600.0, "b": 100.0}, {"a": 130.0, "b": 100.0, "c": 5000.0}]
    report = await wait_drained(lambda: readings.pop(0), {"a": 100.0, "b": 120.0}, 30)
    assert readings == []
    assert report.drained
    assert report.left_mib == {"a": 30.0, "b": 0.0}


async def test_tells_what_is_left_at_the_limit() -> None:
    report = await wait_drained(lambda: {"a": 900.0}, {"a": 100.0}, 0.0)
    assert not report.drained
    assert report.left_mib == {"a": 800.0}


async def test_no_cards_no_wait() -> None:
    assert (await wait_drained(dict, {}, 30)).drained

"""A larger card that stands for a smaller one."""

from __future__ import annotations

import pytest

from qwenbench.capacity.cards import find_card
from qwenbench.engine.config import ServerConfig
from qwenbench.errors import UsageError
from qwenbench.observe.nvml import Gpu
from qwenbench.sweep.hardware import Hardware, budget_note, budgeted, find_hardware
from qwenbench.sweep.options import SweepOptions

H200 = Gpu(0, "GPU-0", "NVIDIA H200", 143771.0, "580.0")


def lent(gpu: Gpu = H200) -> Hardware:
    try:
        real = find_card(gpu.name)
    except UsageError:
        real = None
    return Hardware((gpu,), None, "", find_card("rtx-5090"), real, "linux")


def options(**given: object) -> SweepOptions:
    return SweepOptions.model_validate({"launcher": "process", "card": "rtx-5090", **given})


def test_the_utilisation_gives_the_smaller_cards_budget() -> None:
    server = budgeted(ServerConfig(flags={"gpu-memory-utilization": "0.95"}), options(), lent())
    share = server.gpu_memory_utilization
    assert share is not None
    assert share * 139.80 == pytest.approx(0.95 * 31.36, abs=0.01)
    assert share * 139.80 <= 0.95 * 31.36, "never more than the smaller card has"


def test_vllms_default_of_batched_tokens_is_the_smaller_cards() -> None:
    base = ServerConfig(flags={"gpu-memory-utilization": "0.9"})
    assert budgeted(base, options(), lent()).int_flag("max-num-batched-tokens") == 2048
    own = base.with_flag("max-num-batched-tokens", "4096")
    assert budgeted(own, options(), lent()).int_flag("max-num-batched-tokens") == 4096


def test_the_note_names_both_cards_and_is_silent_without_another() -> None:
    note = budget_note(options(), lent())
    assert note is not None
    assert "rtx-5090" in note
    assert "NVIDIA H200" in note
    assert budget_note(options(card=None), lent()) is None
    assert budget_note(options(launcher="sim"), find_hardware(options(launcher="sim"))) is None


def test_a_card_of_unknown_size_is_refused() -> None:
    with pytest.raises(UsageError, match="not known here"):
        budgeted(ServerConfig(), options(), lent(Gpu(0, "GPU-0", "NVIDIA Something", 1e5, "580.0")))


def test_without_a_card_nothing_changes() -> None:
    server = ServerConfig(flags={"gpu-memory-utilization": "0.9"})
    assert budgeted(server, options(card=None), lent()) is server

"""A larger card that stands for a smaller one."""

from __future__ import annotations

import pytest

from qwenbench.capacity.cards import find_card
from qwenbench.engine.config import Gpu, ServerConfig
from qwenbench.errors import UsageError
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


class TestTheDriversTotal:
    """What the driver tells outranks the table, and does without it."""

    unknown = Gpu(0, "GPU-7", "NVIDIA Something", 49140.0, "580.0")
    h100 = Gpu(1, "GPU-8", "NVIDIA H100 80GB HBM3", 81559.0, "580.0")

    def seen(self, *gpus: Gpu, **totals: float) -> Hardware:
        told = {uuid.replace("_", "-"): round(gib * 2**30) for uuid, gib in totals.items()}
        real = lent(gpus[0]).real_card
        return Hardware(gpus, None, "", find_card("rtx-5090"), real, "linux", len(gpus), told)

    def test_an_unknown_card_can_stand_for_another(self) -> None:
        hardware = self.seen(self.unknown, GPU_7=47.4)
        server = budgeted(ServerConfig(flags={"gpu-memory-utilization": "0.95"}), options(), hardware)
        assert server.gpu_memory_utilization == pytest.approx(0.95 * 31.36 / 47.4, abs=2e-5)

    def test_it_outranks_the_table_and_goes_into_run_json(self) -> None:
        hardware = self.seen(self.h100, GPU_8=79.25)
        assert hardware.cuda_total_gib() == pytest.approx(79.25)
        assert hardware.to_json()["cuda_total_gib"] == 79.25
        assert self.seen(self.h100).cuda_total_gib() == find_card("h100").cuda_gib()

    def test_each_server_has_its_own_cards_total(self) -> None:
        hardware = self.seen(self.unknown, self.h100, GPU_7=47.4, GPU_8=79.25)
        assert hardware.cuda_total_gib() == pytest.approx(47.4), "the smallest card limits its group"
        assert hardware.only(["GPU-8"]).cuda_total_gib() == pytest.approx(79.25)

    def test_a_card_without_a_total_in_the_table_is_unknown_not_an_error(self) -> None:
        laptop = Gpu(0, "GPU-9", "NVIDIA GeForce RTX 5090 Laptop GPU", 24463.0, "580.0")
        assert self.seen(laptop).cuda_total_gib() is None
        assert self.seen(laptop, GPU_9=23.5).cuda_total_gib() == pytest.approx(23.5)

    def test_the_named_card_itself_is_left_alone(self) -> None:
        own = Gpu(0, "GPU-1", "NVIDIA GeForce RTX 5090", 32607.0, "580.0")
        hardware = self.seen(own, GPU_1=31.35)
        server = ServerConfig(flags={"gpu-memory-utilization": "0.95"})
        assert budgeted(server, options(), hardware) is server
        assert budget_note(options(), hardware) is None

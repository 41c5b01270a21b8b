"""Cards and keeping a smaller card's budget."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.cards import CARDS, find_card, utilization_for_card
from qwenbench.errors import UsageError


@pytest.mark.parametrize("name", ["rtx-5090", "RTX 5090", "NVIDIA GeForce RTX 5090", "5090", "rtx_5090"])
def test_names_of_a_card(name: str) -> None:
    assert find_card(name).name == "rtx-5090"


def test_every_card_says_where_its_totals_are_from_and_leaves_out_what_is_not_known() -> None:
    for card in CARDS.values():
        assert card.source
        if card.nvml_mib is not None and card.cuda_gib_linux is not None:
            assert 0.9 * card.nvml_mib / 1024 < card.cuda_gib_linux < card.nvml_mib / 1024
        assert card.nvml_mib is not None or card.cuda_gib_linux is not None
        assert card.capability.startswith("12.") == card.name.startswith(("rtx-50", "rtx-pro", "gb10"))
    assert find_card("rtx-5090").cuda_gib("linux") == 31.36
    assert find_card("rtx-5090").cuda_gib("wsl") == 31.84
    assert find_card("NVIDIA H200").nvml_mib == 143_771
    assert find_card("NVIDIA H100 80GB HBM3").name == "h100"


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000-max-q"),
        ("NVIDIA RTX PRO 5000 Blackwell", "rtx-pro-5000"),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", "rtx-5090-laptop"),
        ("NVIDIA GeForce RTX 5070 Ti", "rtx-5070-ti"),
        ("NVIDIA GeForce RTX 5060 Ti", "rtx-5060-ti"),
        ("NVIDIA RTX A6000", "rtx-a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GB10", "gb10"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_names_as_nvml_tells_them(name: str, card: str) -> None:
    assert find_card(name).name == card


def test_unified_memory_has_cudas_total_only_and_a_laptop_nvmls_only() -> None:
    assert find_card("gb10").vram_mib == pytest.approx(121.69 * 1024)
    assert find_card("rtx-5090-laptop").cuda_gib("wsl") == 23.89
    with pytest.raises(UsageError, match="on Linux is not known"):
        find_card("rtx-5090-laptop").cuda_gib()


def test_an_unknown_card_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean rtx-5090"):
        find_card("rtx-5099")
    with pytest.raises(UsageError, match="--vram-mib"):
        find_card("voodoo2")
    with pytest.raises(UsageError, match="WSL"):
        find_card("h200").cuda_gib("wsl")
    with pytest.raises(UsageError, match="linux or wsl"):
        find_card("h200").cuda_gib("bsd")


@given(st.floats(0.05, 1.0))
def test_the_budget_is_the_smaller_cards_and_never_more(fraction: Any) -> None:
    card = find_card("rtx-5090")
    kept = utilization_for_card(card, 139.80, fraction) * 139.80
    assert 0 <= fraction * card.cuda_gib() - kept < 0.0015


def test_budgets_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        utilization_for_card(find_card("h100"), 31.36, 0.9)
    with pytest.raises(UsageError, match="0 < U <= 1"):
        utilization_for_card(find_card("h100"), 139.8, 1.2)

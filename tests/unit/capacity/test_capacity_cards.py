"""Cards and keeping a smaller card's budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.cards import CARDS, find_card, utilization_for_card
from qwenbench.errors import UsageError


@pytest.mark.parametrize("name", ["rtx-5090", "RTX 5090", "NVIDIA GeForce RTX 5090", "5090", "rtx_5090"])
def test_names_of_a_card(name):
    assert find_card(name).name == "rtx-5090"


def test_every_card_has_both_totals_and_says_where_from():
    for card in CARDS.values():
        assert 0.9 * card.nvml_mib / 1024 < card.cuda_gib_linux < card.nvml_mib / 1024
        assert card.source
    assert find_card("rtx-5090").cuda_gib("linux") == 31.36
    assert find_card("rtx-5090").cuda_gib("wsl") == 31.84
    assert find_card("NVIDIA H200").nvml_mib == 143_771
    assert find_card("NVIDIA H100 80GB HBM3").name == "h100"


def test_an_unknown_card_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean rtx-5090"):
        find_card("rtx-5099")
    with pytest.raises(UsageError, match="--vram-mib"):
        find_card("voodoo2")
    with pytest.raises(UsageError, match="WSL"):
        find_card("h200").cuda_gib("wsl")
    with pytest.raises(UsageError, match="linux or wsl"):
        find_card("h200").cuda_gib("bsd")


@given(st.floats(0.05, 1.0))
def test_the_budget_is_the_smaller_cards_and_never_more(fraction):
    card = find_card("rtx-5090")
    kept = utilization_for_card(card, 139.80, fraction) * 139.80
    assert 0 <= fraction * card.cuda_gib() - kept < 0.0015


def test_budgets_that_make_no_sense():
    with pytest.raises(UsageError, match="does not fit"):
        utilization_for_card(find_card("h100"), 31.36, 0.9)
    with pytest.raises(UsageError, match="0 < U <= 1"):
        utilization_for_card(find_card("h100"), 139.8, 1.2)

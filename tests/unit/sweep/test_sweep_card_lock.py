"""Two sweeps never measure on one card."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from qwenbench.engine.config import Gpu
from qwenbench.errors import UsageError
from qwenbench.sweep.slots import card_locks


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))


def gpu(index: int) -> Gpu:
    return Gpu(index, f"GPU-{index}", "NVIDIA GeForce RTX 5090", 32607.0, "580.0")


def test_a_card_in_use_is_refused_by_name() -> None:
    with (
        card_locks([gpu(0), gpu(1)]),
        pytest.raises(UsageError, match=r"card 1 .*another qwenbench"),
        card_locks([gpu(1)]),
    ):
        pass


def test_other_cards_stay_free_and_a_released_card_can_be_taken_again() -> None:
    with card_locks([gpu(0)]), card_locks([gpu(1)]):
        pass
    with card_locks([gpu(0)]):
        pass


def test_a_refusal_gives_back_what_it_had_taken() -> None:
    with card_locks([gpu(1)]):
        with pytest.raises(UsageError), card_locks([gpu(0), gpu(1)]):
            pass
        with card_locks([gpu(0)]):
            pass

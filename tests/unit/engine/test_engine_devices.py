"""Cards are named by UUID, as many as the parallel sizes ask for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from qwenbench.engine.config import ServerConfig
from qwenbench.engine.devices import assign_devices, cards_needed, visible_devices
from qwenbench.errors import UsageError


@dataclass
class Card:
    uuid: str


CARDS = [Card("GPU-a"), Card("GPU-b"), Card("GPU-c"), Card("GPU-d")]


@pytest.mark.parametrize(
    ("flags", "extra", "needed"),
    [
        ({}, (), 1),
        ({"tensor-parallel-size": "2"}, (), 2),
        ({"tensor-parallel-size": "2", "pipeline-parallel-size": "2"}, (), 4),
        ({"data-parallel-size": "3"}, ("--data-parallel-size=2",), 2),
        ({}, ("-tp", "2", "-dp", "2"), 4),
        ({}, ("--tensor-parallel-size", "4"), 4),
    ],
)
def test_cards_needed(flags: dict[str, str], extra: tuple[str, ...], needed: int) -> None:
    assert cards_needed(ServerConfig(flags=flags, extra_args=extra)) == needed


def test_one_card_and_two() -> None:
    one = assign_devices(ServerConfig(), CARDS[1:])
    assert one.docker.gpus == "device=GPU-b"
    assert visible_devices(one) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
    two = assign_devices(ServerConfig(flags={"tensor-parallel-size": "2"}), CARDS)
    assert two.docker.gpus == '"device=GPU-a,GPU-b"'
    assert visible_devices(two) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}


def test_without_an_assignment_nothing_is_hidden() -> None:
    assert visible_devices(ServerConfig()) == {}


def test_too_few_cards() -> None:
    with pytest.raises(UsageError, match="needs 2 cards"):
        assign_devices(ServerConfig(flags={"tensor-parallel-size": "2"}), CARDS[:1])

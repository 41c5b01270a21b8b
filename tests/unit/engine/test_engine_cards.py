"""Cards: as many as the parallel sizes ask for; a process is told indices, a container UUIDs."""

from __future__ import annotations

import pytest

from qwenbench.engine.cards import (
    assign_cards,
    cards_named_by_user,
    cards_needed,
    chosen_cards,
    cuda_environment,
    visible_cards,
)
from qwenbench.engine.config import AssignedCard, DockerOptions, ServerConfig
from qwenbench.errors import UsageError

CARDS = [
    AssignedCard(index, f"GPU-{name}", "NVIDIA GeForce RTX 5090")
    for index, name in enumerate(("1fb0", "1fc0", "2a00", "3b00"))
]
TWO = ServerConfig(flags={"tensor-parallel-size": "2"})


@pytest.mark.parametrize(
    ("flags", "extra", "needed"),
    [
        ({}, (), 1),
        ({"tensor-parallel-size": "2"}, (), 2),
        ({"tensor-parallel-size": "2", "pipeline-parallel-size": "2"}, (), 4),
        ({"data-parallel-size": "3"}, ("--data-parallel-size=2",), 2),
        ({}, ("-tp", "2", "-dp", "2"), 4),
        ({}, ("--tensor-parallel-size", "4"), 4),
        ({}, ("--tensor_parallel_size=2", "--pipeline_parallel_size", "2"), 4),
    ],
)
def test_cards_needed(flags: dict[str, str], extra: tuple[str, ...], needed: int) -> None:
    assert cards_needed(ServerConfig(flags=flags, extra_args=extra)) == needed


def test_a_process_is_told_integers_and_a_container_uuids() -> None:
    """vLLM 0.20.2 reads CUDA_VISIBLE_DEVICES with int()."""
    one = assign_cards(ServerConfig(), CARDS[1:])
    assert cuda_environment(one) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    assert one.docker.gpus == "device=GPU-1fc0"
    two = assign_cards(TWO, [CARDS[3], CARDS[1]])
    assert cuda_environment(two)["CUDA_VISIBLE_DEVICES"] == "3,1"
    assert two.docker.gpus == '"device=GPU-3b00,GPU-1fc0"'


def test_the_only_card_needs_no_name_in_a_docker_line() -> None:
    assert assign_cards(ServerConfig(), CARDS[:1], others=False).docker.gpus == "all"
    without = ServerConfig(docker=DockerOptions(gpus=None))
    assert assign_cards(without, CARDS[:1]).docker.gpus is None


def test_without_an_assignment_nothing_is_hidden() -> None:
    assert cuda_environment(ServerConfig()) == {}


def test_what_the_deployment_shows_its_server_stays() -> None:
    own = ServerConfig(env={"CUDA_VISIBLE_DEVICES": "2"})
    assert cuda_environment(assign_cards(own, CARDS)) == {}
    assert cards_named_by_user(own, "process", CARDS) == [CARDS[2]]
    container = ServerConfig(docker=DockerOptions(gpus='"device=1,GPU-3b"'))
    assert cards_named_by_user(container, "docker", CARDS) == [CARDS[1], CARDS[3]]
    assert cards_named_by_user(ServerConfig(), "docker", CARDS) is None
    assert cards_named_by_user(container, "process", CARDS) is None


@pytest.mark.parametrize(
    ("variable", "shown"),
    [
        (None, [0, 1, 2, 3]),
        ("2,0", [2, 0]),
        ("GPU-3b00,1", [3, 1]),
        ("GPU-3b", [3]),
        ("GPU-1f,2", []),  # two cards begin so: CUDA ends the list there
        ("1,9,2", [1]),
        ("1,1", [1]),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_what_an_inherited_variable_shows(variable: str | None, shown: list[int]) -> None:
    assert [card.index for card in visible_cards(CARDS, variable)] == shown


def test_devices_count_among_the_visible_cards() -> None:
    visible = visible_cards(CARDS, "2,3")
    assert chosen_cards(visible, ("1", "0")) == [CARDS[3], CARDS[2]]
    assert chosen_cards(visible, ("GPU-2a00",)) == [CARDS[2]]
    with pytest.raises(UsageError, match=r"--devices 2: 2 is no card .* \(there are: 0 \(GPU-2a00\), 1 \(GPU-3b00\)\)"):
        chosen_cards(visible, ("2",))
    with pytest.raises(UsageError, match="GPU-1fb0 is no card"):
        chosen_cards(visible, ("GPU-1fb0",))
    with pytest.raises(UsageError, match="named twice"):
        chosen_cards(visible, ("0", "GPU-2a00"))


def test_too_few_cards() -> None:
    with pytest.raises(UsageError, match="needs 2 cards"):
        assign_cards(TWO, CARDS[:1])

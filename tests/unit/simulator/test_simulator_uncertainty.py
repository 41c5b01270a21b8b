"""How far a simulated figure may be off, as it is told."""

import pytest

from qwenbench.capacity.cards import CARDS
from qwenbench.simulator.options import ServeOptions, parse
from qwenbench.simulator.steptime import measured_cards, measured_hosts
from qwenbench.simulator.uncertainty import Uncertainty, uncertainty_of


@pytest.mark.parametrize("card", sorted(CARDS))
def test_every_card_has_an_interval_that_holds_its_figure(card: str) -> None:
    told = uncertainty_of(card)
    assert set(told.factors) == {"tokens_per_s", "itl_p50_ms", "ttft_p50_ms"} and card in told.basis
    assert all(0 < low < 1 < high for low, high in told.factors.values())


def of_options(options: ServeOptions) -> Uncertainty:
    return uncertainty_of(options.card, options.machine, options.model)


def test_the_less_is_known_the_wider_it_is() -> None:
    host = next(iter(measured_hosts()))
    known, typical, never = uncertainty_of("h100", host), uncertainty_of("h100"), uncertainty_of("rtx-5090")
    for key in known.factors:
        low, high = never.factors[key]
        assert low < known.factors[key][0] and high > known.factors[key][1]
        assert low < typical.factors[key][0] and high > typical.factors[key][1]
    # the simulator of before was 75 % too fast on a card that it had not seen
    assert never.factors["tokens_per_s"][0] <= 1 / 1.75
    assert "rtx-5090" not in measured_cards() and "never measured" in never.text()


def test_a_servers_options_name_card_host_and_model() -> None:
    seed = "ig1/Qwen3.5-9B-NVFP4"
    assert of_options(parse([seed, "--sim-card", "h200"])) == uncertainty_of("h200")
    other = of_options(parse(["Qwen/Qwen3.5-4B", "--sim-card", "h200"]))
    assert other.factors["tokens_per_s"][1] == 2 * uncertainty_of("h200").factors["tokens_per_s"][1]
    assert "another model" in other.text()

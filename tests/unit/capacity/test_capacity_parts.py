"""Graphs, activations and memory outside PyTorch: each part against servers that were recorded or published."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenbench.capacity.calibration import Load, activations_gib, activations_range_gib, non_torch
from qwenbench.capacity.cards import find_card
from qwenbench.capacity.configuration import ConfigPlan, plan_config
from qwenbench.capacity.graphs import capture_gain, graphs_gib
from qwenbench.capacity.kv import Drafter
from qwenbench.capacity.model_shape import SEED_SHAPE, known_shape
from qwenbench.capacity.predict import capture_gain_of
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.flags import parse_flags
from qwenbench.engine.startup_log import StartupLog
from qwenbench.engine.startup_log_reader import parse_startup_log

RECORDED = Path(__file__).parents[2] / "data" / "memory" / "vllm-0.26.0"
H100_TOTAL = 79.18


def recorded(name: str) -> StartupLog:
    return parse_startup_log(gzip.decompress((RECORDED / f"{name}.log.gz").read_bytes()).decode())


def planned(
    flags: str, version: str = "0.26.0", card: str = "rtx-5090", platform: str = "linux", **more: Any
) -> ConfigPlan:
    config = ServerConfig(flags=parse_flags(flags.split()))
    return plan_config(config, SEED_SHAPE, version=version, card=find_card(card), platform=platform, **more)


class TestCaptures:
    """CUDA graphs by capture size."""

    @pytest.mark.parametrize(("capture", "printed"), [(64, 0.11), (512, 0.33), (1024, 0.54)])
    def test_the_estimate_of_recorded_servers(self, capture: int, printed: float) -> None:
        assert recorded(f"pair-cap{capture}").graphs_estimated_gib == printed
        assert graphs_gib(capture, 64) == pytest.approx(printed, abs=0.006)

    @pytest.mark.parametrize("capture", [512, 1024])
    def test_a_probe_of_capture_64_predicts_larger_ones_within_half_a_percent(self, capture: int) -> None:
        flags = f"--capture {capture} --max-num-seqs 64 --gpu-memory-utilization 0.37658"
        config = ServerConfig(flags=parse_flags(flags.split()))
        found = plan_config(
            config, SEED_SHAPE, version="0.26.0", cuda_total_gib=H100_TOTAL, probe=recorded("pair-cap64")
        ).prediction
        seen = recorded(f"pair-cap{capture}")
        assert found is not None
        assert found.kv_cache_gib == pytest.approx(seen.kv_cache_gib, rel=0.005)
        assert found.kv_cache_tokens_printed == pytest.approx(seen.kv_cache_tokens_logged, rel=0.005)

    @given(st.integers(1, 2048), st.integers(1, 1024), st.integers(1, 8))
    def test_a_larger_capture_never_takes_less(self, capture: int, seqs: int, rows: int) -> None:
        assert graphs_gib(capture, seqs, 1.0, rows) <= graphs_gib(capture + 64, seqs, 1.0, rows) + 1e-9

    def test_what_a_capture_above_the_prompts_gives_and_costs(self) -> None:
        plan = planned("--capture 1024 --max-num-seqs 64")
        assert plan.target is not None
        assert plan.calibration is not None
        words = capture_gain_of(plan.target, 452, 64, plan.calibration)
        assert words is not None
        assert "12% to 35% off TTFT" in words and "anything from nothing to that" in words
        assert "0.43 GiB" in words
        assert "on H100s" in words
        assert capture_gain(1_616, 2_048) is None, "nothing was gained there"
        assert capture_gain(452, 64) is None, "such prompts run outside"


class TestActivations:
    """The profiling run's peak."""

    def test_the_printed_ones(self) -> None:
        widths = SEED_SHAPE.widths
        assert widths is not None
        assert activations_gib(widths, Load(2048, 64)) == pytest.approx(1.92)
        assert activations_gib(widths, Load(8192, 64)) == pytest.approx(1.92), "the picture outweighs the tokens"
        assert activations_gib(widths, Load(2048, 1, text_only=True)) == pytest.approx(0.27, abs=0.01)
        assert activations_gib(widths, Load(2048, 2, tensor_parallel=2)) == pytest.approx(1.59, abs=0.01)

    def test_more_batched_tokens_cost_kv_where_no_picture_outweighs_them(self) -> None:
        shape = known_shape("Qwen3.6-27B")
        assert shape is not None
        assert shape.widths is not None
        per_token = [activations_gib(shape.widths, Load(n, 4, text_only=True)) / n for n in (2048, 4096, 8192)]
        assert per_token[0] == pytest.approx(per_token[1])
        assert per_token[1] == pytest.approx(per_token[2])

    def test_a_drafters_sampler_counts_with_many_sequences(self) -> None:
        widths = SEED_SHAPE.widths
        assert widths is not None
        plain = activations_gib(widths, Load(2048, 256, text_only=True))
        drafting = activations_gib(widths, Load(2048, 256, text_only=True, drafting=True))
        assert plain < 0.6
        assert 1.5 < drafting < 2.0

    @given(
        st.integers(1, 65_536), st.integers(1, 1024), st.booleans(), st.sampled_from([1, 2, 4]), st.booleans()
    )  # fmt: skip
    def test_the_interval_holds_the_middle_and_cards_share(
        self, tokens: int, seqs: int, text_only: bool, cards: int, drafting: bool
    ) -> None:
        widths = SEED_SHAPE.widths
        assert widths is not None
        load = Load(tokens, seqs, text_only, cards, drafting)
        low, high = activations_range_gib(widths, load)
        assert low <= activations_gib(widths, load) <= high
        alone = Load(tokens, seqs, text_only, 1, drafting)
        assert activations_gib(widths, load) <= activations_gib(widths, alone)


class TestVersions:
    """What a release is known to take."""

    def test_0202_on_a_5090_is_near_its_recorded_budget(self) -> None:
        found = planned("--capture 64 --max-num-seqs 64 --gpu-memory-utilization 0.95", "0.20.2").prediction
        assert found is not None
        assert found.kv_cache_gib == pytest.approx(17.0, rel=0.01)
        assert found.kv_cache_gib_low is not None
        assert found.kv_cache_gib_high is not None
        assert found.kv_cache_gib_low < 16.98
        assert found.kv_cache_gib_high > 17.01

    def test_018_on_a_5090_printed_what_the_model_card_says(self) -> None:
        found = planned("--capture 64 --max-num-seqs 64 --gpu-memory-utilization 0.95", "0.20.0").prediction
        assert found is not None
        assert found.kv_cache_tokens_printed == 110_880

    def test_wsl_and_several_cards_take_more_outside_pytorch(self) -> None:
        plain = non_torch((0, 26, 0))
        assert non_torch((0, 26, 0), platform="wsl").gib > plain.gib
        assert non_torch((0, 26, 0), tensor_parallel=2).gib > plain.gib
        assert plain.low_gib <= plain.gib <= plain.high_gib

    def test_the_utilisation_left_out_is_the_versions_default(self) -> None:
        old, new = planned("--capture 64 --max-num-seqs 64", "0.20.2"), planned("--capture 64 --max-num-seqs 64")
        assert old.target is not None
        assert new.target is not None
        assert (old.target.utilization, new.target.utilization) == (0.90, 0.92)


class TestRefusals:
    """Only what is certain is refused."""

    def test_a_start_under_wsl_that_ran_is_not_refused(self) -> None:
        config = ServerConfig(
            flags=parse_flags(
                "--language-model-only --enforce-eager --max-num-seqs 1 --max-num-batched-tokens 2048 "
                "--gpu-memory-utilization 0.9 --max-model-len 4096".split()
            )
        )
        plan = plan_config(config, SEED_SHAPE, version="0.27.1", platform="wsl", cuda_total_gib=12_227 / 1024)
        assert plan.cannot_start is None
        assert plan.prediction is not None
        assert plan.prediction.risk == "startup"
        assert plan.prediction.kv_cache_gib == pytest.approx(0.37, abs=0.03)

    def test_a_drafters_capture_must_hold_one_sequence(self) -> None:
        speculative = '--speculative-config {"method":"mtp","num_speculative_tokens":7}'
        plan = planned(f"--capture 4 --max-num-seqs 4 {speculative}")
        assert plan.cannot_start is not None
        assert "8" in plan.cannot_start
        assert planned(f"--capture 8 --max-num-seqs 4 {speculative}").cannot_start is None

    def test_sequences_beyond_a_drafters_graphs_are_a_risk_in_words(self) -> None:
        speculative = '--speculative-config {"method":"mtp","num_speculative_tokens":3}'
        found = planned(f"--capture 64 --max-num-seqs 64 {speculative}").prediction
        assert found is not None
        assert found.risk == "load"
        assert "16 sequences of 4 rows" in found.basis

    def test_text_only_says_what_such_a_server_was_seen_to_hold(self) -> None:
        found = planned("--capture 64 --max-num-seqs 64 --language-model-only").prediction
        assert found is not None
        assert "text-only" in found.basis


@given(
    st.integers(1, 512), st.integers(1, 256), st.integers(256, 16_384), st.booleans(), st.sampled_from([None, 1, 3]),
    st.floats(0.5, 1.0),
)  # fmt: skip
def test_every_prediction_lies_in_its_own_interval(
    capture: int, seqs: int, batched: int, text_only: bool, drafted: int | None, share: float
) -> None:
    flags = f"--capture {capture} --max-num-seqs {seqs} --max-num-batched-tokens {batched} -tp 1"
    flags += f" --gpu-memory-utilization {share}" + (" --language-model-only" if text_only else "")
    if drafted:
        flags += f' --speculative-config {{"method":"mtp","num_speculative_tokens":{drafted}}}'
    found = planned(flags).prediction
    assert found is not None
    if found.kv_cache_gib is not None and found.kv_cache_gib_low is not None and found.kv_cache_gib_high is not None:
        assert found.kv_cache_gib_low <= found.kv_cache_gib <= found.kv_cache_gib_high
    drafter = Drafter("mtp", drafted) if drafted else None
    assert (drafter.rows_per_sequence if drafter else 1) == 1 + (drafted or 0)

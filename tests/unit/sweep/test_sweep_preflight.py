"""What is known before a launch: predictions, configurations that cannot start, known problems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwenbench.capacity.cards import find_card
from qwenbench.capacity.model_shape import known_shape
from qwenbench.engine.config import Configuration, DockerOptions, ServerConfig
from qwenbench.engine.startup_log_reader import parse_startup_log
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.options import SweepOptions
from qwenbench.sweep.plan import Plan
from qwenbench.sweep.preflight import Preflight

SEED_MODEL = "ig1/Qwen3.5-9B-NVFP4"


def preflight(launcher: str = "docker", known_model: bool = True) -> Preflight:
    card = find_card("rtx-5090")
    options = SweepOptions(launcher="docker", concurrency=(8,))
    plan = Plan(options, (Configuration("c", ServerConfig(), {}, None),), (), {})
    hardware = Hardware((), None, "", card, card, "linux")
    return Preflight(plan, launcher, hardware, known_shape(SEED_MODEL) if known_model else None)


def server(**flags: str) -> ServerConfig:
    named = {name.replace("_", "-"): value for name, value in flags.items()}
    return ServerConfig(model=SEED_MODEL, flags={"max-model-len": "auto", **named})


def test_a_start_teaches_and_the_next_prediction_is_narrower() -> None:
    looking = preflight()
    # no server of this version is built in, so the first prediction has a wide interval
    config = replace(
        server(max_cudagraph_capture_size="64", max_num_seqs="64", gpu_memory_utilization="0.9"),
        docker=DockerOptions(image="vllm/vllm-openai:v0.24.0"),
    )
    before = looking.check(config).prediction
    assert before is not None and before["kv_cache_gib"] is not None
    log = parse_startup_log(
        "INFO 11-23 08:11:45 [utils.py:299]   version 0.24.0\n"
        "INFO 11-23 08:11:45 [utils.py:233] non-default args: {'gpu_memory_utilization': 0.9, 'max_num_seqs': 64}\n"
        "INFO Model loading took 10.57 GiB memory and 2.0 seconds\n"
        "INFO Setting attention block size to 528 tokens to ensure that attention page size is >= mamba page size.\n"
        "INFO Estimated CUDA graph memory: 0.11 GiB total\n"
        "INFO Available KV cache memory: 12.00 GiB\n"
    )
    looking.learn(log)
    after = looking.check(config).prediction
    assert after is not None

    def width(prediction: object) -> float:
        return prediction["kv_cache_gib_high"] - prediction["kv_cache_gib_low"]  # type: ignore[index]  # JSON

    assert width(after) < width(before)


def test_a_budget_below_the_weights_is_refused_with_the_arithmetic() -> None:
    refusal = preflight().check(server(gpu_memory_utilization="0.2")).refusal()
    assert refusal is not None
    assert refusal.kind == "cannot_start"
    assert "10.57" in refusal.evidence
    assert "--force" in refusal.advice


def test_a_known_problem_is_refused_with_its_source() -> None:
    config = server(kv_cache_dtype="fp8_e4m3", gpu_memory_utilization="0.9").with_flag("calculate-kv-scales", None)
    refusal = preflight().check(config).refusal()
    assert refusal is not None
    assert "Source: " in refusal.advice


def test_an_ordinary_configuration_is_not_refused() -> None:
    assert preflight().check(server(max_num_seqs="32", gpu_memory_utilization="0.9")).refusal() is None


@pytest.mark.parametrize("launcher", ["process", "docker"])
def test_nothing_is_predicted_for_a_model_whose_shape_is_unknown(launcher: str, tmp_path: Path) -> None:
    assert preflight(launcher, known_model=False).check(server()).prediction is None


class TestWhyNothingIsPredicted:
    """Where there is no prediction, the reason is said."""

    def test_the_models_shape(self) -> None:
        assert "config.json" in str(preflight(known_model=False).check(server()).unknown)

    def test_an_image_that_names_no_version(self) -> None:
        config = replace(server(), docker=DockerOptions(image="my/own:latest"))
        assert "my/own:latest names no vLLM version" in str(preflight().check(config).unknown)

    def test_a_command_that_does_not_tell_its_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[object] = []
        monkeypatch.setattr("qwenbench.sweep.preflight.version_of_command", asked.append)
        looking = preflight("process")
        assert "does not tell its vLLM version" in str(looking.check(server()).unknown)
        looking.check(server())
        assert len(asked) == 1, "asked once a run"

    def test_a_command_that_tells_it_is_predicted_before_the_first_launch(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("qwenbench.sweep.preflight.version_of_command", lambda command: "0.26.0")
        found = preflight("process").check(server(max_cudagraph_capture_size="64", max_num_seqs="64"))
        assert found.unknown is None
        assert found.prediction is not None


def test_sequences_beyond_a_drafters_graphs_are_told() -> None:
    config = replace(
        server(
            max_cudagraph_capture_size="64", max_num_seqs="64",
            speculative_config='{"method":"mtp","num_speculative_tokens":3}',
        ),
        docker=DockerOptions(image="vllm/vllm-openai:v0.26.0"),
    )  # fmt: skip
    found = preflight().check(config)
    assert found.refusal() is None
    assert found.prediction is not None
    assert "16 sequences of 4 rows" in found.prediction["basis"]


@pytest.mark.parametrize("model", ["/no/such/folder", "./missing", "~/missing-model"])
def test_a_model_folder_that_is_not_there_is_refused_before_a_process_starts(model: str) -> None:
    refusal = preflight("process").check(replace(server(), model=model)).refusal()
    assert refusal is not None and f"{model}: no such folder" in refusal.evidence
    # inside a container the path is another one
    assert preflight("docker").check(replace(server(), model=model)).refusal() is None


def test_a_model_folder_that_is_there_is_not_refused(tmp_path: Path) -> None:
    assert preflight("process").check(replace(server(), model=str(tmp_path))).refusal() is None

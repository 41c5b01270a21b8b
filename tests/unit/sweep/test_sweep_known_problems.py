"""The preflight rules: each fires where its problem is, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwenbench.capacity.kv import Drafter
from qwenbench.capacity.settings import settings_of_config
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.deployments import deployment_names, find_deployment
from qwenbench.engine.launchers import version_of_image
from qwenbench.sweep.preflight import known_problems

FP8 = ServerConfig().with_flag("kv-cache-dtype", "fp8_e4m3").with_flag("calculate-kv-scales", None)


def _rules(config: ServerConfig, version: str | None, **facts: object) -> dict[str, str]:
    found = known_problems(config, vllm_version=version, **facts)  # type: ignore[arg-type]  # shortened for the test
    assert all(problem.source and problem.text for problem in found)
    return {problem.rule: problem.severity for problem in found if problem.rule != "no-graph-estimate"}


@pytest.mark.parametrize(
    ("version", "hybrid", "expected"),
    [
        ("0.18.0", True, {"fp8-kv-scales-garbage": "refuse"}),
        ("0.17.1", True, {"fp8-kv-scales-garbage": "refuse"}),
        (None, True, {"fp8-kv-scales-garbage": "refuse"}),
        ("0.18.0", False, {}),
        ("0.20.2", True, {"kv-scales-ignored": "warn"}),
        ("0.20.2", False, {}),
        ("0.33.0", True, {"kv-scales-removed": "refuse"}),
        ("0.33.0", False, {"kv-scales-removed": "refuse"}),
    ],
)
def test_known_problems_calculate_kv_scales_by_version(
    version: str | None, hybrid: bool, expected: dict[str, str]
) -> None:
    assert _rules(FP8, version, hybrid=hybrid) == expected


def test_known_problems_sees_flags_among_the_extra_arguments() -> None:
    config = ServerConfig(extra_args=("--kv-cache-dtype=fp8", "--calculate-kv-scales"))
    assert "fp8-kv-scales-garbage" in _rules(config, "0.18.0", hybrid=True)


def test_known_problems_capture_counts_only_the_requests_that_decode_together() -> None:
    config = ServerConfig(flags={"max-cudagraph-capture-size": "64", "max-num-seqs": "256"})
    assert _rules(config, "0.20.2", concurrencies=(1, 128)) == {"graph-misses": "warn"}
    assert _rules(config, "0.20.2", concurrencies=(1, 64)) == {}
    assert _rules(config.with_flag("max-num-seqs", "64"), "0.20.2", concurrencies=(128,)) == {}
    assert _rules(config.with_flag("enforce-eager", None), "0.20.2", concurrencies=(128,)) == {}


def test_known_problems_context_above_what_fits() -> None:
    config = ServerConfig(flags={"max-model-len": "262144"})
    assert _rules(config, "0.20.2", largest_context=110_880) == {"context-too-long": "refuse"}
    assert _rules(config, "0.20.2", largest_context=300_000) == {}
    assert _rules(config.with_flag("max-model-len", "auto"), "0.20.2", largest_context=110_880) == {}


@pytest.mark.parametrize(
    ("version", "setting", "warned"),
    [
        ("0.18.0", None, True),
        ("0.18.0", "1", False),
        ("0.20.2", "0", True),
        ("0.20.2", None, False),
        ("0.33.0", "0", False),
    ],
)
def test_known_problems_graph_estimate(version: str, setting: str | None, warned: bool) -> None:
    name = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
    config = replace(ServerConfig(), env={name: setting} if setting is not None else {})
    found = {problem.rule for problem in known_problems(config, vllm_version=version)}
    assert ("no-graph-estimate" in found) is warned


def test_known_problems_thinking_needs_a_reasoning_parser() -> None:
    config = ServerConfig()
    assert _rules(config, "0.20.2", profiles=("thinking-coding",)) == {"no-reasoning-parser": "warn"}
    assert _rules(config, "0.20.2", profiles=("instruct-general",)) == {}
    assert _rules(config.with_flag("reasoning-parser", "qwen3"), "0.20.2", profiles=("thinking-coding",)) == {}


@pytest.mark.parametrize("name", ["generic", "rtx5090-headless", "rtx5090-wsl"])
def test_known_problems_leaves_the_seed_deployments_alone(name: str) -> None:
    problems = known_problems(
        find_deployment(name),
        vllm_version="0.18.0",
        concurrencies=(1, 64),
        profiles=("thinking-general", "instruct-general"),
        hybrid=True,
        largest_context=77_088,
    )
    assert problems == []


@pytest.mark.parametrize("name", deployment_names())
def test_what_owners_run_is_not_refused(name: str) -> None:
    server = find_deployment(name)
    version = version_of_image(server.docker.image)
    seqs = int(server.flags.get("max-num-seqs") or 64)
    found = known_problems(server, vllm_version=version, concurrencies=(seqs,), hybrid=True, largest_context=262_144)
    assert [problem.rule for problem in found if problem.severity == "refuse"] == []
    settings = settings_of_config(server)
    if "x2" in name:
        assert settings.tensor_parallel == 2
        assert settings.drafter == Drafter("mtp", 3)

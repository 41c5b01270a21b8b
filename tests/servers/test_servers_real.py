"""Servers that are not vLLM, the real ones: what is measured of them, and what is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Bench, litellm_before

LOAD = (
    "--scenario",
    "math",
    "--output-tokens",
    "12-16",
    "--concurrency",
    "2",
    "--requests",
    "6",
    "--timeout",
    "120",
    "--no-natural-stop-check",
)


def assert_measured(done: Bench, requests: int = 6) -> dict[str, str]:
    """The point has times, tokens and no failure."""
    assert done.status in (0, 1), done.out
    (point,) = done.points
    assert (point["requests_ok"], point["requests_failed"]) == (str(requests), "0"), done.out
    for name in ("ttft_ms_mean", "e2e_ms_mean", "requests_per_s"):
        assert float(point[name]) > 0, name
    return point


def test_llama_cpp(llama: str, bench: Callable[..., Bench]) -> None:
    point = assert_measured(bench(llama, *LOAD))
    assert point["simulated"] == "False"
    assert point["disagreements"] == ""


def test_llama_cpp_completions(llama: str, bench: Callable[..., Bench]) -> None:
    assert_measured(bench(llama, *LOAD, "--endpoint", "completions"))


def test_llama_cpp_says_why_requests_fail(llama: str, bench: Callable[..., Bench]) -> None:
    """2,048 tokens of context are too few for this prompt: the server's own words reach the user."""
    load = ("--scenario", "synthetic", "--input-tokens", "6000", "--output-tokens", "8", "--concurrency", "1")
    done = bench(llama, *load, "--requests", "2", "--timeout", "120", "--no-natural-stop-check")
    assert done.status == 1
    assert "context" in done.points[0]["error_top"]
    assert done.points[0]["error_top"] in done.out


def test_litellm_before_the_simulator(simulator: str, litellm: str, bench: Callable[..., Bench]) -> None:
    straight = assert_measured(bench(simulator, *LOAD))
    behind = assert_measured(bench(litellm, *LOAD))
    assert behind["tpot_ms_mean"]
    assert straight["length_controlled"] == behind["length_controlled"] == "True"


def test_a_key_on_every_path(simulator: str, servers_home: Path, logs: Path, bench: Callable[..., Bench]) -> None:
    with litellm_before(simulator, "m", servers_home, logs, key="sk-test-1234567") as url:
        # without a database LiteLLM says 500 to who has no key, and 401 to who has a wrong one
        assert bench(url, *LOAD, "--startup-timeout", "2").status == 2
        wrong = bench(url, *LOAD, "--api-key-env", "PROXY_KEY", env={"PROXY_KEY": "sk-other-7654321"})
        assert wrong.status == 2
        assert "sk-other-7654321" not in wrong.out
        given = ("--api-key-env", "PROXY_KEY")
        done = bench(url, *LOAD, *given, env={"PROXY_KEY": "sk-test-1234567"})
        assert_measured(done)
        assert "sk-test-1234567" not in done.out


def test_litellm_before_llama_cpp(llama: str, servers_home: Path, logs: Path, bench: Callable[..., Bench]) -> None:
    with litellm_before(llama, "smollm2", servers_home, logs) as url:
        assert_measured(bench(url, *LOAD))


def test_transformers_serve(transformers: tuple[str, str], bench: Callable[..., Bench]) -> None:
    url, model = transformers
    point = assert_measured(bench(url, "--model", model, *LOAD))
    assert float(point["output_tokens_per_s"] or 1) > 0


@pytest.mark.parametrize("profile", ["none", "instruct-general"])
def test_a_profile_or_none(llama: str, bench: Callable[..., Bench], profile: str) -> None:
    assert_measured(bench(llama, *LOAD, "--profile", profile))

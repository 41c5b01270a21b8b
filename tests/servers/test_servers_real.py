"""Servers that are not vLLM, the real ones: what is measured of them, and what is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import real_servers
from conftest import Bench
from real_servers import RealServer

QUICK = ("--concurrency", "2", "--timeout", "60", "--no-natural-stop-check", "--no-prefill-cost")
LOAD = ("--scenario", "synthetic", "--input-tokens", "24-32", "--output-tokens", "12-16", "--requests", "6", *QUICK)


def assert_measured(done: Bench) -> dict[str, str]:
    """The point has times and no failure."""
    assert done.status in (0, 1), done.out
    (point,) = done.points
    assert (point["requests_ok"], point["requests_failed"]) == ("6", "0"), done.out
    for name in ("ttft_ms_mean", "e2e_ms_mean", "requests_per_s"):
        assert float(point[name]) > 0, name
    return point


@pytest.mark.parametrize("profile", ["none", "instruct-general"])
def test_llama_cpp(llama: RealServer, bench: Callable[..., Bench], profile: str) -> None:
    point = assert_measured(bench(llama, *LOAD, "--profile", profile))
    assert (point["simulated"], point["disagreements"]) == ("False", "")
    assert point["length_controlled"] == "True"
    assert float(point["tpot_ms_mean"]) > 0


def test_llama_cpp_completions(llama: RealServer, bench: Callable[..., Bench]) -> None:
    assert float(assert_measured(bench(llama, *LOAD, "--endpoint", "completions"))["tpot_ms_mean"]) > 0


def test_llama_cpp_says_why_requests_fail(llama: RealServer, bench: Callable[..., Bench]) -> None:
    """Its context is too short for this prompt: the server's own words reach the user."""
    load = ("--scenario", "synthetic", "--input-tokens", "6000", "--output-tokens", "8", "--requests", "2", *QUICK)
    done = bench(llama, *load)
    assert done.status == 1
    assert "exceeds the available context size" in done.points[0]["error_top"]
    assert done.points[0]["error_top"] in done.out


def test_litellm_before_the_simulator(simulator: RealServer, litellm: RealServer, bench: Callable[..., Bench]) -> None:
    straight = assert_measured(bench(simulator, *LOAD))
    behind = assert_measured(bench(litellm, *LOAD))
    assert behind["tpot_ms_mean"]
    assert straight["length_controlled"] == behind["length_controlled"] == "True"


def test_a_key_on_every_path(simulator: RealServer, bench: Callable[..., Bench]) -> None:
    with real_servers.litellm(simulator, key="sk-test-1234567") as proxy:
        # without a database LiteLLM says 500 to who has no key, and 401 to who has a wrong one
        assert bench(proxy, *LOAD, "--startup-timeout", "2").status == 2
        given = ("--api-key-env", "PROXY_KEY")
        wrong = bench(proxy, *LOAD, *given, env={"PROXY_KEY": "sk-other-7654321"})
        assert wrong.status == 2
        assert "sk-other-7654321" not in wrong.out
        done = bench(proxy, *LOAD, *given, env={"PROXY_KEY": "sk-test-1234567"})
        assert_measured(done)
        assert "sk-test-1234567" not in done.out


def test_litellm_before_llama_cpp(llama: RealServer, bench: Callable[..., Bench]) -> None:
    with real_servers.litellm(llama) as proxy:
        assert_measured(bench(proxy, *LOAD))


def test_transformers_serve(transformers: RealServer, bench: Callable[..., Bench]) -> None:
    """It writes out text that it held back after the last token, so there may be a chunk more than tokens."""
    told = assert_measured(bench(transformers, *LOAD))["disagreements"]
    assert not told or "carried text" in told

"""Two configurations x concurrency 1 and 4 x the four scenarios over a real vLLM with a tiny hybrid model."""

from __future__ import annotations

import socket

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from real_vllm import Sweep, Vllm, sweep

from qwenbench.processes import ProcessIdentity

PORT = 28010
REQUESTS = 8
SCENARIOS = ("conversation", "math", "code", "multilingual")


@pytest.fixture(scope="module")
def real(vllm: Vllm, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return sweep(
        vllm,
        tmp_path_factory.mktemp("results"),
        "tiny-qwen35",
        *("--max-num-seqs", "2,4", "--vllm-arg=--kv-cache-memory-bytes=64M", "--concurrency", "1,4"),
        *("--scenario", ",".join(SCENARIOS), "--requests", str(REQUESTS), "--output-tokens", "16-32"),
        *("--port", str(PORT)),
    )


def cells(real: Sweep) -> list[tuple[str, str, pa.Table, pa.Table]]:
    """(configuration, cell, request records, /metrics samples) of every cell."""
    found = []
    for file in sorted((real.run.path / "requests").glob("*.parquet")):
        cell = file.stem
        config = cell.split(".l1.")[0]
        requests, metrics = real.run.requests(cell), real.run.metrics(config, cell)
        assert requests is not None
        assert metrics is not None
        found.append((config, cell, requests, metrics))
    return found


def grown(metrics: pa.Table, name: str) -> float:
    """By how much a counter grew from the first sample, taken after the warm-up, to the last."""
    values = metrics[name].drop_null()
    return float(values[-1].as_py()) - float(values[0].as_py())


def test_every_cell_is_there(real: Sweep) -> None:
    assert real.status == 0, real.output
    points = real.run.points
    assert len(points) == len(cells(real)) == 2 * 2 * len(SCENARIOS)
    assert set(points["scenario"]) == set(SCENARIOS)
    assert sorted(points["max_num_seqs"].unique()) == [2, 4]
    assert not real.run.simulated
    assert (points["requests_ok"] == REQUESTS).all()
    assert (points["requests_failed"] == 0).all()
    assert (real.run.path / "report.html").stat().st_size > 10_000


def test_every_request_has_its_usage(real: Sweep) -> None:
    for _, cell, requests, _ in cells(real):
        assert requests.num_rows == REQUESTS, cell
        assert requests["error"].null_count == REQUESTS, cell
        assert requests["input_tokens"].null_count == 0, cell
        assert requests["output_tokens"].to_pylist() == requests["requested_output_tokens"].to_pylist(), cell
        assert pc.min(requests["ttft_ms"]).as_py() > 0, cell
        assert pc.all(pc.less_equal(requests["ttft_ms"], requests["e2e_ms"])).as_py(), cell


def test_usage_agrees_with_the_servers_own_counters(real: Sweep) -> None:
    """The first sample is taken after the warm-up, so its tokens are not among the difference."""
    for _, cell, requests, metrics in cells(real):
        assert grown(metrics, "generation_tokens_total") == pc.sum(requests["output_tokens"]).as_py(), cell
        assert grown(metrics, "prompt_tokens_total") == pc.sum(requests["input_tokens"]).as_py(), cell


def test_both_configurations_did_the_same_work(real: Sweep) -> None:
    by_point: dict[str, list[list[int]]] = {}
    for config, cell, requests, _ in cells(real):
        done = requests.sort_by("request_id").select(["input_tokens", "output_tokens"]).to_pydict()
        by_point.setdefault(cell.removeprefix(config), []).append(done["input_tokens"] + done["output_tokens"])
    assert len(by_point) == 8
    assert all(one == other for one, other in by_point.values())


def test_kv_usage_prefix_hits_and_preemptions_were_read(real: Sweep) -> None:
    points = real.run.points
    assert (points["kv_cache_usage_peak"] > 0).all()
    assert (points["kv_cache_usage_peak"] <= 1).all()
    assert (points["preemptions"] == 0).all()
    assert (points["running_peak"] <= points["max_num_seqs"]).all()
    # one turn a session: whatever was found in the cache would come from an earlier request
    assert (points[points["scenario"] == "math"]["prefix_hit_rate"] == 0).all()


def test_streams_beyond_max_num_seqs_wait(real: Sweep) -> None:
    points = real.run.points
    # of conversations only two or three fit into so few requests
    crowded = points[
        (points["max_num_seqs"] == 2) & (points["concurrency"] == 4) & (points["scenario"] != "conversation")
    ]
    assert (crowded["waiting_peak"] >= 1).all()
    assert set(crowded["bound"]) == {"scheduler"}
    assert (points[points["concurrency"] == 1]["waiting_peak"] == 0).all()


def test_the_ledger_was_read_from_the_log(real: Sweep) -> None:
    assert len(real.run.ledgers) == 2
    for config, ledger in real.run.ledgers.items():
        assert ledger["vllm_version"].startswith("0.32.0"), config
        assert ledger["kv_cache_blocks"] > 0, config
        assert ledger["vram_ready_mib"] is None, config  # there is no card: unknown, not 0
    for config in real.run.launches:
        assert "KV cache" in (real.run.path / "servers" / config / "server.log").read_text()


def test_nothing_is_left_running(real: Sweep, vllm: Vllm) -> None:
    assert vllm.processes() == []
    for launch in real.run.launches.values():
        identity = ProcessIdentity(launch["host"], launch["boot_id"], launch["pid"], launch["start_time"])
        assert not identity.is_running()
    with socket.create_server(("127.0.0.1", PORT)):  # nobody listens there any more
        pass


def test_a_resumed_run_has_nothing_left_to_do(real: Sweep, vllm: Vllm) -> None:
    journal = (real.run.path / "journal.jsonl").read_bytes()
    again = sweep(vllm, real.run.path.parent, "tiny-qwen35", "--resume", str(real.run.path))
    assert again.status == 0
    assert (real.run.path / "journal.jsonl").read_bytes() == journal

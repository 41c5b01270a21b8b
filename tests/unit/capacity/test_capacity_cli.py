"""`qwenbench ledger` and `qwenbench plan` as they are called."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwenbench.cli.main import dispatch

DATA = Path(__file__).parents[2] / "data" / "memory"


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[..., Any]:
    def unpack(name: str) -> str:
        target = tmp_path / Path(name).name.removesuffix(".gz")
        target.write_bytes(gzip.decompress((DATA / name).read_bytes()))
        return str(target)

    return unpack


def test_ledger_json(unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = "h200-vllm-0.20.2/cap64-seq256"
    status = dispatch(
        ["ledger", unpacked(f"{run}.log.gz"), "--metrics", unpacked(f"{run}.metrics0.txt.gz"),
         "--nvml", unpacked(f"{run}.nvml.json.gz"), "--card", "h200", "--json"]
    )  # fmt: skip
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert (status, err) == (0, "")
    assert (data["kv_cache_blocks"], data["kv_cache_tokens_logged"]) == (1072, 562_036)
    assert (data["vram_ready_mib"], data["vram_peak_mib"]) == (31_267.875, 50_803.875)
    assert data["budget_gib"] == pytest.approx(30.12, abs=0.01)
    assert list(data)[27] == "warnings"


def test_ledger_table_shows_the_risk(
    unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = "h200-vllm-0.20.2/cap64-seq256"
    assert dispatch(
        ["ledger", unpacked(f"{run}.log.gz"), "--nvml", unpacked(f"{run}.nvml.json.gz"), "--card", "h200"]
    ) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "+19,345 MiB" in out
    assert "a risk, no proof" in out
    for row in ("requested utilisation 0.21546", "requested auto", "requested 256", "requested 2,048"):
        assert row in out


def test_ledger_of_a_cut_off_log_and_of_other_texts(
    unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert dispatch(["ledger", unpacked("h200-vllm-0.20.2/cap64-seq64-fp8kv.log.gz"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kv_cache_gib"] is None
    assert "before the server was ready" in err
    for text in ("", "llama_model_load: loaded\n"):
        other = tmp_path / "other.log"
        other.write_text(text)
        assert dispatch(["ledger", str(other), "--json"]) == 2
        out, err = capsys.readouterr()
        values = json.loads(out)
        assert values.pop("warnings") == [] and set(values.values()) == {None}
        assert "no start-up line of vLLM" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ledger", "/nonexistent.log"], "LOG /nonexistent.log"),
        (["plan", "--card", "rtx-5099"], "did you mean rtx-5090"),
        (["plan"], "--card"),
        (["plan", "--card", "rtx-5090", "--gpu-memory-utilization", "1.2"], "0 < U <= 1"),
        (["plan", "--card", "rtx-5090", "--model", "some/model"], "--model-config"),
        (["plan", "--card", "rtx-5090", "--vllm", "newest"], "version"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert out == "" and len(err.splitlines()) == 1


def test_plan_json_from_a_saved_log(unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    probe = unpacked("h200-vllm-0.20.2/cap64-seq64.log.gz")
    assert dispatch(
        ["plan", "--card", "h200", "--capture", "16", "--max-num-seqs", "16", "--gpu-memory-utilization", "0.21546",
         "--vllm", "0.20.2", "--probe", probe, "--context", "650", "--json"]
    ) == 0  # fmt: skip
    data = json.loads(capsys.readouterr().out)
    assert list(data) == [
        "weights_gib", "graphs_gib", "kv_cache_gib", "kv_cache_gib_low", "kv_cache_gib_high", "kv_cache_blocks",
        "kv_cache_tokens", "kv_cache_tokens_printed", "requests_that_fit", "risk", "basis",
    ]  # fmt: skip
    assert data["kv_cache_blocks"] == 1074
    assert data["kv_cache_tokens_printed"] == 563_085
    assert data["requests_that_fit"] == 214


def test_plan_of_any_model_by_its_config_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "hidden_size": 4096, "intermediate_size": 12288, "vocab_size": 151936, "max_position_embeddings": 40960,
    }))  # fmt: skip
    assert dispatch(["plan", "--model", "Qwen/Qwen3-8B", "--model-config", str(path), "--card", "rtx-4090",
                     "--capture", "32", "--gpu-memory-utilization", "0.9", "--json"]) == 0  # fmt: skip
    data = json.loads(capsys.readouterr().out)
    assert 15.0 < data["weights_gib"] < 15.5  # 8.19e9 parameters in BF16
    assert data["kv_cache_gib_low"] < data["kv_cache_gib"] < data["kv_cache_gib_high"]
    path.write_text("{}")
    assert dispatch(["plan", "--model", "x", "--model-config", str(path), "--card", "rtx-4090"]) == 2
    assert "num_hidden_layers" in capsys.readouterr().err


def test_plan_says_when_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["plan", "--card", "rtx-5080", "--gpu-memory-utilization", "0.5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kv_cache_gib"] is None
    assert "cannot start" in err and "7.7" in err


class TestSeveralLedgers:
    """Several logs, or the folder of a run."""

    def test_a_table_and_json_of_several(
        self, unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        logs = [unpacked(f"vllm-0.26.0/{name}.log.gz") for name in ("pair-cap64", "pair-cap1024", "mtp3")]
        assert dispatch(["ledger", *logs]) == 0
        out = capsys.readouterr().out
        for figure in ("1,053", "1,026", "902", "552,075", "478,651", "16.98"):
            assert figure in out
        assert dispatch(["ledger", *logs, "--json"]) == 0
        ledgers = json.loads(capsys.readouterr().out)["ledgers"]
        assert [ledger["server"] for ledger in ledgers] == logs
        assert [ledger["kv_cache_blocks"] for ledger in ledgers] == [1053, 1026, 902]

    def test_a_runs_folder_and_a_configurations(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        for number, name in enumerate(("pair-cap64", "pair-cap512")):
            folder = tmp_path / "run" / "servers" / f"c{number}"
            folder.mkdir(parents=True)
            log = gzip.decompress((DATA / f"vllm-0.26.0/{name}.log.gz").read_bytes())
            (folder / "server.log").write_bytes(log)
            (folder / "memory.json").write_text(json.dumps({"vram_ready_mib": 30_000.0 + number}))
        assert dispatch(["ledger", str(tmp_path / "run"), "--json"]) == 0
        ledgers = json.loads(capsys.readouterr().out)["ledgers"]
        assert [ledger["server"] for ledger in ledgers] == ["c0", "c1"]
        assert [ledger["vram_ready_mib"] for ledger in ledgers] == [30_000.0, 30_001.0]
        assert dispatch(["ledger", str(tmp_path / "run/servers/c1"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kv_cache_gib"] == 16.76
        assert dispatch(["ledger", str(tmp_path)]) == 2
        assert "neither a run's folder" in capsys.readouterr().err

    def test_another_cards_log_is_questioned(
        self, unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = unpacked("h200-vllm-0.20.2/cap64-seq64.log.gz")
        assert dispatch(["ledger", log, "--card", "rtx-5090"]) == 0
        said = capsys.readouterr()
        assert "is it another card" in " ".join((said.out + said.err).split())
        assert dispatch(["ledger", log, "--card", "h200"]) == 0
        said = capsys.readouterr()
        assert "is it another card" not in said.out + said.err

    def test_a_dead_engines_log_is_questioned(
        self, unpacked: Callable[..., Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert dispatch(["ledger", unpacked("cpu-vllm-0.28.0/qwen35-crash.log.gz"), "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["died"]
        assert "died" in said.err


class TestSeveralPlans:
    """vLLM's own spellings, and a row for each capture size."""

    def test_a_row_each(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        arguments = ["plan", "--card", "rtx-5090", "--max-num-seqs", "64", "--vllm", "0.26.0", "--capture", "16,64,512"]
        assert dispatch([*arguments, "--prompt", "452", "--json"]) == 0
        plans = json.loads(capsys.readouterr().out)["plans"]
        assert [plan["capture"] for plan in plans] == [16, 64, 512]
        assert [plan["graphs_gib"] for plan in plans] == pytest.approx([0.08, 0.11, 0.33], abs=0.01)
        assert plans[0]["kv_cache_gib"] > plans[2]["kv_cache_gib"]
        assert dispatch([*arguments, "--prompt", "452"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "prompts of 452 tokens fit under capture 512" in out

    @pytest.mark.parametrize(
        "spelling",
        [
            ["--max-cudagraph-capture-size", "64", "-tp", "1"],
            ["--capture", "64", "--tensor-parallel-size", "1"],
            ["--compilation-config.max_cudagraph_capture_size", "64"],
        ],
    )
    def test_spellings_give_one_plan(self, spelling: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        common = ["plan", "--card", "rtx-5090", "--max-num-seqs", "64", "--vllm", "0.26.0", "--json"]
        assert dispatch([*common, *spelling]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["graphs_gib"] == pytest.approx(0.11, abs=0.01)

    def test_a_drafter_and_a_text_only_server(self, capsys: pytest.CaptureFixture[str]) -> None:
        common = ["plan", "--card", "rtx-5090", "--capture", "64", "--max-num-seqs", "16", "--vllm", "0.26.0", "--json"]
        given = {}
        for name, more in {
            "plain": [],
            "mtp": ["--speculative-config", '{"method":"mtp","num_speculative_tokens":3}'],
            "text": ["--language-model-only"],
        }.items():
            assert dispatch([*common, *more]) == 0
            given[name] = json.loads(capsys.readouterr().out)
        assert given["mtp"]["kv_cache_blocks"] < given["plain"]["kv_cache_blocks"]
        assert given["mtp"]["weights_gib"] == pytest.approx(10.70, abs=0.01)
        assert given["text"]["weights_gib"] == pytest.approx(9.71, abs=0.01)
        assert given["text"]["kv_cache_gib"] > given["plain"]["kv_cache_gib"] + 1.5

    def test_a_probe_without_its_utilisation_has_its_versions_default(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = tmp_path / "probe.log"
        log.write_text(
            "INFO 11-26 02:00:00 [core.py:1] Initializing a V1 LLM engine (v0.20.2) with config: model='m'\n"
            "INFO 11-26 02:00:01 [x.py:1] Model loading took 10.57 GiB memory and 5 seconds\n"
            "INFO 11-26 02:00:09 [x.py:1] Available KV cache memory: 14.5 GiB\n"
        )
        assert dispatch(["plan", "--card", "rtx-5090", "--vllm", "0.20.2", "--capture", "64", "--max-num-seqs", "64",
                         "--probe", str(log), "--json"]) == 0  # fmt: skip
        plan = json.loads(capsys.readouterr().out)
        assert "0.9, its default" in plan["basis"]
        assert plan["kv_cache_gib"] == pytest.approx(14.5, abs=0.2)

"""`qwenbench ledger` and `qwenbench plan` as they are called."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from qwenbench.cli.main import dispatch

DATA = Path(__file__).parents[2] / "data" / "memory"


@pytest.fixture
def unpacked(tmp_path: Path):
    def unpack(name: str) -> str:
        target = tmp_path / Path(name).name.removesuffix(".gz")
        target.write_bytes(gzip.decompress((DATA / name).read_bytes()))
        return str(target)

    return unpack


def test_ledger_json(unpacked, capsys):
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


def test_ledger_table_shows_the_risk(unpacked, capsys, monkeypatch):
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


def test_ledger_of_a_cut_off_log_and_of_other_texts(unpacked, capsys, tmp_path):
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
def test_bad_input_is_one_line_and_status_2(arguments, words, capsys):
    assert dispatch(arguments) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert out == "" and len(err.splitlines()) == 1


def test_plan_json_from_a_saved_log(unpacked, capsys):
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


def test_plan_of_any_model_by_its_config_json(capsys, tmp_path):
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


def test_plan_says_when_nothing_is_left(capsys):
    assert dispatch(["plan", "--card", "rtx-5080", "--gpu-memory-utilization", "0.5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["kv_cache_gib"] is None
    assert "cannot start" in err and "7.7" in err

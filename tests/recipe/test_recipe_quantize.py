"""The NVFP4 recipe with llm-compressor on the CPU: a tiny hybrid of random weights, four sets in their real formats."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parents[1] / "recipes" / "nvfp4"
EACH = 2


def _python() -> Path:
    home = os.environ.get("QWENBENCH_RECIPE_HOME")
    if not home or not (python := Path(home, "venv/bin/python")).exists():
        pytest.skip("make test-recipe installs llm-compressor and names its place")
    return python


def _run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=env, check=False)
    if check:
        assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the calibration set and the tiny model."""
    folder = tmp_path_factory.mktemp("recipe")
    python = _python()
    _run(sys.executable, HERE / "calibration_files.py", folder / "sets")
    sets = folder / "sets"
    _run(
        sys.executable, "-m", "qwenbench", "prompts", "import", "--mix", "seed", "--each", 8,
        f"ultrachat={sets}/ultrachat.parquet", f"gsm8k={sets}/gsm8k.jsonl",
        f"code-alpaca={sets}/code_alpaca.json", f"aya={sets}/aya.parquet", "--out", folder / "seed.jsonl",
    )  # fmt: skip
    _run(python, HERE / "build_hybrid.py", folder / "hybrid")
    return folder


def _quantize(work: Path, out: str, *more: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    return _run(
        _python(), RECIPE / "quantize.py", "--model", work / "hybrid", "--calibration", work / "seed.jsonl",
        "--samples-per-set", EACH, "--length", 96, "--out", work / out, *more, check=check,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(work: Path) -> Path:
    """The tiny model, quantised."""
    _quantize(work, "hybrid-nvfp4")
    return work / "hybrid-nvfp4"


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def test_the_checkpoint_has_the_format_of_the_cards(checkpoint: Path) -> None:
    verdict = json.loads(_run(_python(), RECIPE / "checkpoint.py", checkpoint, "--json").stdout)
    assert verdict["wrong"] == []
    # one full-attention layer's q, k, v, o and the MLPs' three of four layers; the gated delta nets are left alone
    assert verdict["quantized_layers"] == 4 + 3 * 4
    assert verdict["drafting_tensors"] == 2  # the layers that draft tokens are kept as they are
    assert not verdict["kv_cache_scheme"]
    assert _config(checkpoint)["architectures"] == ["Qwen3_5ForConditionalGeneration"]  # the vision tower is kept


def test_it_loads_again_and_answers_much_like_the_model(work: Path, checkpoint: Path) -> None:
    alike = json.loads(_run(_python(), HERE / "load_again.py", work / "hybrid", checkpoint).stdout.splitlines()[-1])
    assert alike["finite"]
    # 0.93 was seen: four bits cost random weights about a tenth, and activations again; poisoned scales leave nothing
    assert alike["cosine"] > 0.85


def test_the_models_own_tokenizer_files_are_kept(work: Path, checkpoint: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (checkpoint / name).read_bytes() == (work / "hybrid" / name).read_bytes()
    assert (checkpoint / "transformers_v5" / "tokenizer.json").is_file()


def test_what_it_was_made_with_is_written_down(checkpoint: Path) -> None:
    made = json.loads((checkpoint / "made_with.json").read_text(encoding="utf-8"))
    assert made["calibration"]["samples"] == 4 * EACH
    assert made["calibration"]["longest"] <= 96
    assert set(made["versions"]) == {"llmcompressor", "compressed-tensors", "transformers", "torch"}


def test_an_fp8_cache_scheme_is_made_with_the_cards_warning(work: Path) -> None:
    done = _quantize(work, "hybrid-kv", "--kv-cache-scheme", "fp8")
    assert "gibberish" in done.stderr
    verdict = json.loads(_run(_python(), RECIPE / "checkpoint.py", work / "hybrid-kv", "--json").stdout)
    assert verdict["kv_cache_scheme"]


def test_layers_that_do_not_divide_and_a_missing_template_are_one_line(work: Path) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); from build_hybrid import build; from pathlib import Path; "
    _run(_python(), "-c", code + "build(Path(sys.argv[2]), intermediate_size=520)", HERE, work / "odd")
    _run(_python(), "-c", code + "build(Path(sys.argv[2]), chat_template=False)", HERE, work / "bare")
    for model, words in (("odd", "520 inputs do not divide into groups of 16"), ("bare", "no chat template")):
        done = _run(
            _python(), RECIPE / "quantize.py", "--model", work / model, "--calibration", work / "seed.jsonl",
            "--samples-per-set", 1, "--out", work / "none", check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert words in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not (work / "none").exists()

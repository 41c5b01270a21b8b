"""The NVFP4 recipe's parts that need no torch: the calibration set, the check of a checkpoint, one-line errors."""

from __future__ import annotations

import json
import struct
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "nvfp4"


@pytest.fixture(name="recipe")
def _recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """recipes/nvfp4/quantize.py; it imports torch only when it has work for it."""
    monkeypatch.syspath_prepend(str(RECIPE))
    for name in ("calibration", "checkpoint", "quantize"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import quantize

    return quantize


def _row(number: int, tag: str) -> dict[str, Any]:
    return {"id": f"{tag}-{number}", "tags": [tag], "turns": [{"user": f"question {number}", "assistant": "yes"}]}


def _seed(path: Path, counts: dict[str, int]) -> Path:
    rows = [_row(number, tag) for tag, count in counts.items() for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


FOUR = {"ultrachat": 3, "gsm8k": 4, "code-alpaca": 3, "aya": 5}


def test_every_set_gives_as_many_rows_and_the_seed_decides_which(recipe: ModuleType, tmp_path: Path) -> None:
    rows = list(recipe.read_conversations(_seed(tmp_path / "seed.jsonl", FOUR)))
    chosen = recipe.choose(rows, 3, list(FOUR), seed=1)
    assert Counter(one.dataset for one in chosen) == dict.fromkeys(FOUR, 3)
    assert chosen == recipe.choose(rows, 3, list(FOUR), seed=1)
    assert chosen != recipe.choose(rows, 3, list(FOUR), seed=2)
    assert chosen[0].messages[0]["role"] == "user"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({**FOUR, "aya": 0}, "no row of aya"),
        ({**FOUR, "gsm8k": 2}, "gsm8k has 2 rows, 3 are wanted"),
    ],
)
def test_a_missing_or_short_set_is_one_line(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], counts: dict[str, int], words: str
) -> None:
    seed = _seed(tmp_path / "seed.jsonl", counts)
    arguments = [
        "--model",
        "none",
        "--calibration",
        str(seed),
        "--out",
        str(tmp_path / "out"),
        "--samples-per-set",
        "3",
    ]
    assert recipe.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "content", [None, b"no json\n", b'{"id": "a"}\n', b'{"turns": []}\n[1]\n', b'{"turns": [{"user": 3}]}', b"\xff\xfe"]
)
def test_a_calibration_file_that_cannot_be_read_is_named(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    seed = tmp_path / "seed.jsonl"
    if content is not None:
        seed.write_bytes(content)
    assert recipe.main(["--model", "none", "--calibration", str(seed), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(seed) in error
    assert error.count("\n") == 1


def test_an_output_folder_in_use_and_a_full_disk_are_refused(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(recipe.RecipeError, match="not empty"):
        recipe.check_output(tmp_path / "used", 0)
    monkeypatch.setattr(recipe.shutil, "disk_usage", lambda place: SimpleNamespace(free=2**30))
    with pytest.raises(recipe.RecipeError, match=r"needs about 2\.0 GiB, 1\.0 GiB are free"):
        recipe.check_output(tmp_path / "new" / "folder", 2 * 2**30)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sets", ","], "name sets"),
        (["--sets", "gsm8k,gsm8k"], "each once"),
        (["--out", "{seed}/x"], "no folder that can be written to"),
        (["--samples-per-set", "0"], "'0' is no whole number above 0"),
        (["--samples-per-set", "many"], "'many' is no whole number above 0"),
        (["--kv-cache-scheme", "int4"], "invalid choice: 'int4'"),
        ([], "transformers is not installed here"),
    ],
)
def test_wrong_options_are_one_line(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    seed = _seed(tmp_path / "seed.jsonl", FOUR)
    given = ["--model", "none", "--calibration", str(seed), "--out", str(tmp_path / "out"), "--samples-per-set", "3"]
    status: object
    try:
        status = recipe.main([*given, *(word.format(seed=seed) for word in more)])
    except SystemExit as ended:  # argparse's own way
        status = ended.code
    error = capsys.readouterr().err
    assert (status, error.count("\n")) == (2, 1)
    assert words in error


ARGUMENTS = {
    "num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group",
    "scale_dtype": "torch.float8_e4m3fn", "dynamic": False,
}  # fmt: skip
QUANTIZATION = {
    "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "kv_cache_scheme": None,
    "config_groups": {"group_0": {
        "targets": ["Linear"], "weights": ARGUMENTS, "input_activations": {**ARGUMENTS, "dynamic": "local"},
    }},
}  # fmt: skip
LAYER = "model.layers.0.mlp.up_proj"
TENSORS = {
    f"{LAYER}.weight_packed": ("U8", [32, 32]),
    f"{LAYER}.weight_scale": ("F8_E4M3", [32, 4]),
    f"{LAYER}.weight_global_scale": ("F32", [1]),
    f"{LAYER}.input_global_scale": ("F32", [1]),
    "model.layers.0.linear_attn.out_proj.weight": ("BF16", [64, 64]),
    "lm_head.weight": ("BF16", [16, 64]),
}


def _checkpoint(folder: Path, tensors: dict[str, tuple[str, list[int]]], quantization: dict[str, Any] | None) -> Path:
    folder.mkdir()
    config = {} if quantization is None else {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    header = json.dumps({name: {"dtype": kind, "shape": shape} for name, (kind, shape) in tensors.items()}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder


def test_the_cards_format_is_recognised(recipe: ModuleType, tmp_path: Path) -> None:
    verdict = recipe.check(_checkpoint(tmp_path / "m", TENSORS, QUANTIZATION))
    assert verdict.wrong == []
    assert (verdict.quantized_layers, verdict.kept_layers) == (1, 2)
    # 32 x 64 weights: half a byte each, a byte a group of 16, two scales of four bytes
    assert verdict.bytes - 2 * (64 * 64 + 16 * 64) == 32 * 64 // 2 + 32 * 4 + 8
    assert verdict.bytes_as_bf16 == 2 * (32 * 64 + 64 * 64 + 16 * 64)


@pytest.mark.parametrize(
    ("tensors", "quantization", "words"),
    [
        ({**TENSORS, f"{LAYER}.weight_scale": ("F32", [32, 4])}, QUANTIZATION, "weight_scale is F32"),
        ({**TENSORS, f"{LAYER}.weight_scale": ("F8_E4M3", [32, 2])}, QUANTIZATION, "weight_scale is F8_E4M3 [32, 2]"),
        ({k: v for k, v in TENSORS.items() if "input" not in k}, QUANTIZATION, "input_global_scale is missing"),
        ({"model.layers.1.mlp.up_proj.weight": ("BF16", [64, 64]), **TENSORS}, QUANTIZATION, "BF16, not quantised"),
        (
            {k.replace("mlp.up", "linear_attn.out"): v for k, v in TENSORS.items() if "out_proj" not in k},
            QUANTIZATION,
            "the card keeps it",
        ),
        (TENSORS, None, "no quantization_config"),
        (TENSORS, {**QUANTIZATION, "quant_method": "modelopt"}, "quant_method is 'modelopt'"),
    ],
)
def test_what_differs_from_the_cards_format_is_said(
    recipe: ModuleType,
    tmp_path: Path,
    tensors: dict[str, tuple[str, list[int]]],
    quantization: dict[str, Any] | None,
    words: str,
) -> None:
    verdict = recipe.check(_checkpoint(tmp_path / "m", tensors, quantization))
    assert any(words in line for line in verdict.wrong), verdict.wrong


def test_a_folder_without_a_checkpoint_is_one_line(
    recipe: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import checkpoint

    assert checkpoint.main([str(tmp_path)]) == 2
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"short")
    assert checkpoint.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2

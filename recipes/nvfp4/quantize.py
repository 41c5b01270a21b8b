"""Quantises a model to NVFP4 as the model card ig1/Qwen3.5-9B-NVFP4 was.

    python quantize.py --model Qwen/Qwen3.5-9B --calibration seed.jsonl --out Qwen3.5-9B-NVFP4

Follows llm-compressor's example examples/quantization_w4a4_fp4/qwen3_5_example.py; README.md says where it departs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from calibration import SETS, RecipeError, choose, read_conversations, token_ids
from checkpoint import GROUP, IGNORED, check

KV_WARNING = (
    "warning: --kv-cache-scheme fp8 puts FP8 into the forward pass while the weights' scales are computed. On "
    "Qwen3.5-9B the model card's authors got gibberish from it, also with the FP8 KV cache off: the weights' own "
    "scales were damaged for good. Check the answers (qwenbench sweep --canary) before anyone uses the result."
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse exits 2 for what it cannot read."""
    parser = _Parser(
        description="Quantise a model to NVFP4 with a calibration set of qwenbench prompts import --mix seed."
    )
    parser.add_argument("--model", required=True, help="model folder or name")
    parser.add_argument(
        "--calibration", required=True, type=Path, help="prompt set: qwenbench prompts import --mix seed"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the checkpoint; must not exist")
    parser.add_argument("--samples-per-set", type=_positive, default=256, help="rows of each set (default: 256)")
    parser.add_argument("--sets", default=",".join(SETS), help=f"sets to draw from (default: {','.join(SETS)})")
    parser.add_argument("--length", type=_positive, default=8192, help="longest sample in tokens (default: 8192)")
    parser.add_argument(
        "--kv-cache-scheme", choices=["none", "fp8"], default="none", help="static FP8 KV scales; see README"
    )
    parser.add_argument("--seed", type=int, default=42, help="draw and order of the samples (default: 42)")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def check_output(out: Path, needed: int) -> None:
    """Raises RecipeError when `out` exists already, cannot be made, or its disk has less than `needed` bytes free."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"{out}: exists already and is not empty. Name another --out")
    place = out.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise RecipeError(f"{out}: {place} is no folder that can be written to. Name another --out")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RecipeError(
            f"{out}: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free on that disk. Free some, "
            "or name an --out elsewhere"
        )


def load_model(name: str) -> tuple[Any, Any]:
    """Model (its own dtype) and tokenizer. Raises RecipeError when there is no such model or it cannot be loaded."""
    import transformers
    from safetensors import SafetensorError

    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
        raise RecipeError(f"{name}: no such folder. Name a model's folder, or a model by its name at the hub")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if getattr(config, "quantization_config", None):
            raise RecipeError(f"{name}: is quantised already. Name the model in its original precision")
        # the class of config.json, so that a vision tower stays part of the checkpoint, as in the card's
        named = (config.architectures or ["AutoModelForCausalLM"])[0]
        loader = getattr(transformers, named, transformers.AutoModelForCausalLM)
        model = loader.from_pretrained(name, dtype="auto")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise RecipeError(f"{name}: cannot be loaded: {_first_line(error)}") from error
    return model, tokenizer


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def target_layers(model: Any) -> list[str]:
    """Names of the linear layers that will be quantised.

    Raises RecipeError when there is none, or when the width of one is no multiple of the group of 16 weights.
    """
    import re

    import torch

    patterns = [re.compile(pattern.removeprefix("re:")) for pattern in IGNORED]
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not any(pattern.match(name) for pattern in patterns):
            if module.in_features % GROUP:
                raise RecipeError(
                    f"{name}: {module.in_features} inputs do not divide into groups of {GROUP}, so NVFP4 cannot hold "
                    "it. This model cannot be quantised with this recipe"
                )
            found.append(name)
    if not found:
        raise RecipeError("the model has no linear layer that NVFP4 applies to")
    return found


def _sets(options: argparse.Namespace) -> list[str]:
    return [name.strip() for name in options.sets.split(",") if name.strip()]


def quantize(options: argparse.Namespace) -> None:
    """The whole recipe. Raises RecipeError for bad input."""
    sets = _sets(options)
    chosen = choose(list(read_conversations(options.calibration)), options.samples_per_set, sets, options.seed)
    check_output(options.out, 0)
    model, tokenizer = load_model(options.model)
    layers = target_layers(model)
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    check_output(options.out, parameters)
    samples = [token_ids(conversation, tokenizer, options.length) for conversation in chosen]
    tokens = [len(sample) for sample in samples]
    print(
        f"{len(samples)} samples of {len(sets)} sets, {sum(tokens)} tokens, the longest {max(tokens)}; "
        f"{len(layers)} linear layers to NVFP4",
        flush=True,
    )
    started = time.monotonic()
    _oneshot(model, tokenizer, samples, options)
    _save(model, tokenizer, options, tokens)
    verdict = check(options.out)
    print(f"{options.out}: {verdict.bytes / 2**30:.2f} GiB after {time.monotonic() - started:.0f} s", flush=True)
    if verdict.wrong:
        raise RecipeError(
            f"{options.out}: {verdict.wrong[0]} ({len(verdict.wrong)} differences from the card's format)"
        )


def _oneshot(model: Any, tokenizer: Any, samples: Sequence[Sequence[int]], options: argparse.Namespace) -> None:
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    kv_cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
    recipe = QuantizationModifier(
        targets="Linear",
        scheme="NVFP4",
        ignore=list(IGNORED),
        kv_cache_scheme=kv_cache if options.kv_cache_scheme == "fp8" else None,
    )
    # a loader of our own: the datasets package would pickle functions to name its rows, which Python 3.12 refuses
    rows = [
        {"input_ids": torch.tensor([sample]), "attention_mask": torch.ones(1, len(sample), dtype=torch.long)}
        for sample in samples
    ]
    oneshot(
        model=model,
        processor=tokenizer,  # else it looks for an image processor, which text alone does not need
        recipe=recipe,
        dataset=torch.utils.data.DataLoader(rows, batch_size=None),
        max_seq_length=options.length,
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,  # they are shuffled, by --seed
    )


def _save(model: Any, tokenizer: Any, options: argparse.Namespace, tokens: Sequence[int]) -> None:
    """The checkpoint on disk. Raises RecipeError when it cannot be written; what was written then is no checkpoint."""
    from safetensors import SafetensorError

    try:
        model.save_pretrained(options.out)
        keep_drafter(options.model, options.out)
        keep_tokenizer(options.model, tokenizer, options.out)
        _write_provenance(options, tokens)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(options.out, ignore_errors=True)
        raise RecipeError(f"{options.out}: cannot be written: {_first_line(error)}. Nothing of it was kept") from error


def keep_drafter(model: str, out: Path) -> None:
    """Put the layers that draft tokens (MTP), where the model has them, into `out` as they are.

    transformers leaves them out when it loads the model, so without this --speculative-config has nothing to run.
    """
    from compressed_tensors.utils import save_mtp_tensors_to_checkpoint

    save_mtp_tensors_to_checkpoint(source_model=model, dest_dir=str(out))


def keep_tokenizer(model: str, tokenizer: Any, out: Path) -> None:
    """Put the model's own tokenizer files into `out`, and transformers' rewritten ones into out/transformers_v5.

    Quantising needs transformers 5, whose tokenizer files older servers cannot read: the card does the same.
    """
    tokenizer.save_pretrained(out / "transformers_v5")
    originals = _tokenizer_files(model)
    if not originals:  # a name without files of its own here: what transformers wrote is all there is
        tokenizer.save_pretrained(out)
    for file in originals:
        shutil.copyfile(file, out / file.name)


def _tokenizer_files(model: str) -> list[Path]:
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(model, allow_patterns=["*.json", "*.jinja", "*.txt"], ignore_patterns=["*.index.json"])
        )
    names = (
        "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
        "video_preprocessor_config.json",
    )  # fmt: skip
    return [folder / name for name in names if (folder / name).is_file()]


def _write_provenance(options: argparse.Namespace, tokens: Sequence[int]) -> None:
    from importlib.metadata import version

    packages = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    made = {
        "model": options.model,
        "calibration": {
            "sets": _sets(options),
            "samples_per_set": options.samples_per_set,
            "samples": len(tokens),
            "tokens": sum(tokens),
            "longest": max(tokens),
            "length": options.length,
            "seed": options.seed,
        },
        "kv_cache_scheme": options.kv_cache_scheme,
        "versions": {name: version(name) for name in packages},
    }
    (options.out / "made_with.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Exit 0: the checkpoint is there and has the card's format; 2: bad input, in one line."""
    options = parse(arguments)
    if options.kv_cache_scheme != "none":
        print(KV_WARNING, file=sys.stderr)
    try:
        quantize(options)
    except ModuleNotFoundError as error:
        told = f"{error.name} is not installed here: run it in the environment of requirements.lock (README.md)"
    except MemoryError:
        told = f"{options.model}: memory was not enough. Use a machine with more, or a shorter --length"
    except RecipeError as error:
        told = str(error)
    else:
        return 0
    print(f"quantize.py: {told}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

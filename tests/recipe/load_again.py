"""Loads a model and its quantised checkpoint and says how alike their answers are, as one JSON object.

    python load_again.py MODEL CHECKPOINT [ANSWERS]

ANSWERS is a file of bench/natural_answers.py: over the words of its first 64 answers, the share of places at which both
name the same next token. compressed-tensors quantises the activations too, as a card that computes NVFP4 does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def load(folder: str) -> Any:
    """The model of a folder, in bfloat16."""
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.bfloat16)


def next_tokens(model: Any, texts: list[list[int]]) -> list[int]:
    """The most likely next token at every place of every text."""
    found: list[int] = []
    with torch.inference_mode():
        for ids in texts:
            found += model(input_ids=torch.tensor([ids])).logits[0].argmax(-1).tolist()
    return found


def main(before: str, after: str, answers: str | None = None) -> dict[str, Any]:
    """What both make of the same tokens."""
    first, second = load(before), load(after)
    tokens = torch.arange(40, 104)[None]
    with torch.inference_mode():
        one, other = (model(input_ids=tokens).logits[0, -32:].float() for model in (first, second))
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=-1)
    told: dict[str, Any] = {"finite": bool(other.isfinite().all()), "cosine": float(cosine.mean())}
    if answers:
        tokenizer = transformers.AutoTokenizer.from_pretrained(before)
        lines = Path(answers).read_text(encoding="utf-8").splitlines()
        texts = [ids for line in lines[:64] if len(ids := tokenizer(json.loads(line)["text"])["input_ids"]) > 1]
        pairs = list(zip(next_tokens(first, texts), next_tokens(second, texts), strict=True))
        told |= {"places": len(pairs), "same_next_token": sum(one == other for one, other in pairs) / len(pairs)}
    return told


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

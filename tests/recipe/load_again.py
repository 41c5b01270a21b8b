"""Loads a model and its quantised checkpoint and says how alike their answers are, as one JSON object.

python load_again.py MODEL CHECKPOINT
"""

from __future__ import annotations

import json
import sys

import torch
import transformers


def logits(folder: str, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the last 32 positions, float32."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        return model(input_ids=ids).logits[0, -32:].float()


if __name__ == "__main__":
    before, after = sys.argv[1:3]
    tokens = torch.arange(40, 104)[None]
    first, second = logits(before, tokens), logits(after, tokens)
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=-1)
    print(json.dumps({"finite": bool(second.isfinite().all()), "cosine": float(cosine.mean())}))

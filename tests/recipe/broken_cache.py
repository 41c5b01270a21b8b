"""Answers of a model whose KV cache is broken on purpose: keys and values through FP8 (E4M3) at a wrong scale.

    python broken_cache.py MODEL SCALE COUNT < PROMPTS    one prompt a line in, one JSON string (the answer) a line out

A scale of 0 leaves the cache alone. At 0.001 everything beyond 0.448 is clipped, which is what a checkpoint with such
static scales does in vLLM with --kv-cache-dtype fp8_e4m3. Answers are greedy, of at most 96 tokens.
"""

from __future__ import annotations

import json
import sys
from typing import Any

LARGEST = 448.0  # of E4M3


def break_cache(model: Any, scale: float) -> None:
    """Let every attention layer's keys and values pass through FP8 at this scale, as a cache of that type would."""
    import torch

    def through_fp8(module: Any, arguments: Any, output: Any) -> Any:
        stored = (output / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return stored.to(output.dtype) * scale

    for layer in model.model.layers:
        layer.self_attn.k_proj.register_forward_hook(through_fp8)
        layer.self_attn.v_proj.register_forward_hook(through_fp8)


def main(folder: str, scale: float, count: int) -> None:
    """Read prompts from standard input, write answers to standard output."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = "<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if scale:
        break_cache(model, scale)
    prompts = [line.rstrip("\n") for line in sys.stdin][:count]
    asked = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False)
        for prompt in prompts
    ]
    inputs = tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=96, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    for answer in made[:, inputs["input_ids"].shape[1] :]:
        print(json.dumps(tokenizer.decode(answer, skip_special_tokens=True), ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))

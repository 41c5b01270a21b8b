"""What is watched meanwhile: NVML sampler, /metrics scraper, memory ledger."""

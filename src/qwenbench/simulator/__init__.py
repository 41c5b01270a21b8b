"""A stand-in for vLLM: scheduler, KV blocks, step-time model, HTTP app. All it makes says SIMULATED."""

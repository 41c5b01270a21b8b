"""Drives vLLM's Python request function the way `vllm bench serve` does: all requests as tasks, a semaphore
for the concurrency, one aiohttp session. Runs in an environment without vLLM: the function's module stands
alone. python drive_vllm_python.py OUT PORT TOKENS CONCURRENCY REQUESTS"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp

out = Path(sys.argv[1])
sys.path.insert(0, str(out.parent))

from endpoint_request_func import (  # noqa: E402 (lies beside the result, not in a package)
    RequestFuncInput,
    async_request_openai_chat_completions,
)


async def main(port: int, tokens: int, concurrency: int, requests: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    connector = aiohttp.TCPConnector(limit=concurrency, limit_per_host=concurrency, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=6 * 60 * 60)
    slots = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def one() -> Any:
            async with slots:
                asked = RequestFuncInput("hi " * 16, url, 16, tokens, "mock")
                return await async_request_openai_chat_completions(asked, session)

        began, cpu = time.perf_counter(), time.process_time()
        outputs = await asyncio.gather(*(one() for _ in range(requests)))
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    good = [output for output in outputs if output.success]
    seen = {
        "ttft": [1000 * output.ttft for output in good],
        "gaps": [1000 * gap for output in good for gap in output.itl],
        "ok": len(good),
        "failed": requests - len(good),
        "tokens": sum(output.output_tokens for output in good),
        "wall_s": wall,
        "cpu_s": cpu,
    }
    out.write_text(json.dumps(seen))


asyncio.run(main(*map(int, sys.argv[2:6])))

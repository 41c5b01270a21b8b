"""`qwenbench proxy` as a process before a simulated server, under load from this project's own client."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from qwenbench.load.run import run_load
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.proxy.rewriting import virtual_models
from qwenbench.workload.sessions import SessionPlan, TurnPlan

SERVED = "Qwen3.5-9B"
SECRET = "the-prompt-nobody-may-log"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def _simulated_server() -> AsyncIterator[str]:
    url = f"http://127.0.0.1:{_free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "qwenbench.simulator", "serve", "ig1/Qwen3.5-9B-NVFP4"),
        *("--served-model-name", SERVED, "--port", url.rsplit(":", 1)[1], "--reasoning-parser", "qwen3"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{url}/health") as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.kill()
        await process.wait()


def _sessions(model: str) -> list[SessionPlan]:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"{SECRET} and a few words"}],
        "max_tokens": 24,
        "min_tokens": 24,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return [SessionPlan(f"s{n}", "t", (TurnPlan(f"s{n}.0", 0, "p", "en", body, 24),)) for n in range(8)]


async def test_proxy_process_serves_all_four_names_to_the_load_client() -> None:
    async with _simulated_server() as target:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "qwenbench", "proxy", "--target", target, "--served-model", SERVED, "--port", "0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None and process.stdout is not None
        started = (await process.stderr.readline()).decode()
        found = re.search(r"http://[\d.]+:\d+", started)
        assert found is not None, started
        for model in virtual_models():
            result = await run_load(LoadSpec(Target(found[0]), ClosedLoop(4), _sessions(model), timeout_s=30))
            rows = result.requests.select(["error", "output_tokens"]).to_pylist()
            assert [row["error"] for row in rows] == [None] * 8
            assert {row["output_tokens"] for row in rows} == {24}
        async with aiohttp.ClientSession() as session, session.get(f"{found[0]}/metrics") as answer:
            assert "vllm:" in await answer.text()
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0
        assert SECRET not in (out + err).decode()
        assert err == b""


async def test_proxy_process_says_what_is_missing_or_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, told in (
            ((), "--target and --served-model are needed"),
            (("--target", "localhost:8000", "--served-model", "m"), "must begin with http"),
            (("--target", "http://h", "--served-model", "m", "--port", port), "cannot be bound"),
        ):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "qwenbench", "proxy", *arguments),
                stderr=asyncio.subprocess.PIPE,
            )
            _, err = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 2
            assert err.decode().startswith("qwenbench proxy: ")
            assert told in err.decode()
            assert err.count(b"\n") == 1

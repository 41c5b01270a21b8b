"""The same load straight and through LiteLLM's proxy: python bench/behind_litellm.py URL MODEL --name NAME.

`make test-servers` installs the proxy. Prints rows for the table in docs/servers.md: medians over the requests, in ms,
the two ways taken in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa

from qwenbench.load.run import LoadClient
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.sweep.probing import wait_for_server
from qwenbench.workload.planning import PlannedSessions, RequestOptions
from qwenbench.workload.scenario import Lengths, Scenario

HOME = Path(os.environ.get("QWENBENCH_SERVERS_HOME", Path.home() / ".cache/qwenbench/test-servers"))
SCENARIO = Scenario(name="behind", input_tokens=Lengths(min=64, max=128), output_tokens=Lengths(min=32, max=32))


@contextmanager
def litellm(behind: str, model: str) -> Iterator[str]:
    """The proxy before a server; gives its address (it may not answer yet)."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = int(unused.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        lines = ["model_list:", f"  - model_name: {model}", "    litellm_params:", f"      model: openai/{model}"]
        config.write_text("\n".join([*lines, f"      api_base: {behind}/v1", "      api_key: none", ""]))
        words = [str(HOME / "litellm/bin/litellm"), "--config", str(config), "--host", "127.0.0.1"]
        env = {**os.environ, "LITELLM_TELEMETRY": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        words += ["--port", str(port)]
        with subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as proxy:
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                proxy.terminate()


async def measure(
    ways: dict[str, str], model: str, streams: int, requests: int, rounds: int
) -> dict[str, list[pa.Table]]:
    """Way -> its requests' records, of each round."""
    found: dict[str, list[pa.Table]] = {way: [] for way in ways}
    async with LoadClient() as client, aiohttp.ClientSession() as session:
        for url in ways.values():
            await wait_for_server(session, url, {}, model=model, endpoint="chat", limit_s=120, starting=True)
        for number in range(rounds):
            for way, url in ways.items():
                options = RequestOptions(model=model, profile="none", salt=f"{way}{number}")
                sessions = PlannedSessions(SCENARIO, (), options, number, requests, streams=streams)
                result = await client.run(LoadSpec(Target(url), ClosedLoop(streams), sessions, timeout_s=300))
                found[way].append(result.requests)
    return found


def row(name: str, way: str, streams: int, tables: list[pa.Table]) -> str:
    """One line of the table."""
    table = pa.concat_tables(tables[1:] or tables)  # the first round warms up
    ok = table.filter(table["error"].is_null())
    medians = [float(np.median(ok[key].to_numpy())) for key in ("ttft_ms", "e2e_ms")]
    tokens = ok["output_tokens"].to_numpy()
    tpot = float(np.nanmedian(ok["decode_ms"].to_numpy() / (tokens - 1)))
    merged = ok["gaps_merged"].to_numpy().sum() / max(1, (ok["chunks"].to_numpy() - 1).sum())
    failed = table.num_rows - ok.num_rows
    return (
        f"| {name} | {way} | {streams} | {medians[0]:.1f} | {tpot:.2f} | {medians[1]:.1f} | {merged:.0%} | {failed} |"
    )


def main() -> None:
    """Measure both ways at 1 and 8 streams."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("| server | way | streams | TTFT | TPOT | E2E | merged gaps | failed |\n|---|---|---|---|---|---|---|---|")
    with litellm(options.url, options.model) as proxied:
        ways = {"straight": options.url, "through LiteLLM": proxied}
        for streams in (1, 8):
            found = asyncio.run(measure(ways, options.model, streams, 2 * streams + 6, options.rounds))
            for way, tables in found.items():
                print(row(options.name, way, streams, tables), flush=True)


if __name__ == "__main__":
    main()

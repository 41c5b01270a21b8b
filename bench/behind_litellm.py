"""Real servers, straight and through LiteLLM's proxy: python bench/behind_litellm.py [--out docs/servers.md].

Two tables: what each server refuses and how its streams are, as the probe and a load find it; and the same load both
ways, taken in turn: medians over the requests, in ms. `make test-servers` and `make test-vllm` install the servers;
one that is not installed is left out. With --url and --model another server is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import aiohttp
import numpy as np
import pyarrow as pa

import real_servers
from qwenbench.bounded_http import Questions, WaitLimit
from qwenbench.load.run import LoadClient
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.sweep.probing import probe_fields, wait_for_server
from qwenbench.workload.planning import PlannedSessions, RequestOptions, request_body
from qwenbench.workload.scenario import Lengths, Scenario
from real_servers import RealServer

SCENARIO = Scenario(name="behind", input_tokens=Lengths(min=64, max=128), output_tokens=Lengths(min=32, max=32))
STREAMS = (1, 8)
BEGIN, END = "<!-- real servers: made by bench/behind_litellm.py -->", "<!-- /real servers -->"
Start = Callable[[], AbstractContextManager[RealServer]]
SERVERS: dict[str, Start] = {
    "simulator (SIMULATED)": real_servers.simulator,
    "vLLM on the CPU, a tiny model": real_servers.vllm_on_cpu,
    "llama.cpp's server, SmolLM2 135M": real_servers.llama_cpp,
    "transformers serve, a tiny model": real_servers.transformers_serve,
}
BOTH_WAYS = tuple(SERVERS)[:3]
"""LiteLLM gives each wait of a slow server to all: `transformers serve` answers one request at a time."""


async def found_of(name: str, server: RealServer) -> str:
    """A row of the first table: the probe's findings and what a load of two streams shows."""
    body = request_body(
        RequestOptions(model=server.model, profile="instruct-general", salt="probe"),
        [{"role": "user", "content": "Say hello."}],
        1,
        "probe",
    )
    async with LoadClient() as client, aiohttp.ClientSession() as session:
        probe = await probe_fields(Questions(session, server.url, {}, WaitLimit(60)), "chat", body, ())
        refused = ", ".join(probe.refused) or "nothing"
        table = await _load(client, server, server.url, 2, 8, f"found{name}", frozenset(probe.refused))
    ok = table.filter(table["error"].is_null())
    rows = ok.to_pylist()
    per_chunk = [row["output_tokens"] / row["chunks"] for row in rows if row["output_tokens"]]
    told = {row["disagreement"] for row in rows} - {None}
    length = sum(row["output_tokens"] == row["requested_output_tokens"] for row in rows)
    cells = (
        name,
        refused,
        ", ".join(sorted({row["tokens_from"] or "unknown" for row in rows})),
        f"{np.mean(per_chunk):.2f}" if per_chunk else "",
        f"{length} of {len(rows)}",
        f"{sum(row['connect_ms'] is not None for row in rows)} ({sum(row['resent'] for row in rows)})",
        "; ".join(sorted(told)),
        str(table.num_rows - ok.num_rows),
    )
    return f"| {' | '.join(cells)} |"


async def _load(
    client: LoadClient,
    server: RealServer,
    url: str,
    streams: int,
    requests: int,
    salt: str,
    left_out: frozenset[str] = frozenset(),
    profile: str = "none",
) -> pa.Table:
    options = RequestOptions(model=server.model, profile=profile, salt=salt, left_out=left_out)
    sessions = PlannedSessions(SCENARIO, (), options, len(salt), requests, streams=streams)
    result = await client.run(LoadSpec(Target(url), ClosedLoop(streams), sessions, timeout_s=300))
    return result.requests


async def both_ways(name: str, server: RealServer, proxied: str, rounds: int) -> list[str]:
    """Rows of the second table."""
    rows = []
    ways = {"straight": server.url, "through LiteLLM": proxied}
    async with LoadClient() as client, aiohttp.ClientSession() as session:
        questions = Questions(session, proxied, {}, WaitLimit(120))
        await wait_for_server(questions, model=server.model, endpoint="chat", starting=True)
        for streams in STREAMS:
            found: dict[str, list[pa.Table]] = {way: [] for way in ways}
            for number in range(rounds + 1):  # the first warms up
                for way, url in ways.items():
                    table = await _load(client, server, url, streams, 2 * streams + 6, f"{way}{number}")
                    found[way] += [table] if number else []
            rows += [_row(name, way, streams, pa.concat_tables(tables)) for way, tables in found.items()]
    return rows


def _row(name: str, way: str, streams: int, table: pa.Table) -> str:
    ok = table.filter(table["error"].is_null())
    ttft, e2e = (float(np.median(ok[key].to_numpy())) for key in ("ttft_ms", "e2e_ms"))
    tokens, decode = ok["output_tokens"].to_numpy(), ok["decode_ms"].to_numpy()
    tpot = float(np.nanmedian(decode / (tokens - 1)))
    merged = ok["gaps_merged"].to_numpy().sum() / max(1, (ok["chunks"].to_numpy() - 1).sum())
    failed = table.num_rows - ok.num_rows
    return f"| {name} | {way} | {streams} | {ttft:.1f} | {tpot:.2f} | {e2e:.1f} | {merged:.0%} | {failed} |"


def tables(servers: dict[str, Start], rounds: int) -> str:
    """Both tables as Markdown."""
    found = [
        "| server | refuses | tokens from | tokens a chunk | as long as asked | connects (sent again) | told | failed |"
    ]
    ways = [
        "| server | way | streams | TTFT | TPOT | E2E | merged gaps | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found.append("|---|---|---|---|---|---|---|---|")
    for name, start in servers.items():
        try:
            with contextlib.ExitStack() as stack:
                server = stack.enter_context(start())
                found.append(asyncio.run(found_of(name, server)))
                if name in BOTH_WAYS or len(servers) == 1:
                    proxy = stack.enter_context(real_servers.litellm(server))
                    found.append(asyncio.run(found_of(f"LiteLLM before {name}", proxy)))
                    ways += asyncio.run(both_ways(name, server, proxy.url, rounds))
        except FileNotFoundError as missing:
            print(f"{name} is left out: {missing}", file=sys.stderr)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    return "\n".join([f"Measured on {machine}.", "", *found, "", *ways])


def main() -> None:
    """Measure, and print the tables or put them into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="document whose tables are replaced")
    parser.add_argument("--url", help="another server, with --model")
    parser.add_argument("--model", default="")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    other: dict[str, Start] = {
        options.url: lambda: contextlib.nullcontext(RealServer(options.url, options.model)),
    }
    made = tables(other if options.url else SERVERS, options.rounds)
    if options.out is None:
        print(made)
        return
    before, _, rest = options.out.read_text().partition(BEGIN)
    options.out.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()

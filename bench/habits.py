"""What the client makes of servers' habits, against a known truth: python bench/habits.py [--out docs/servers.md].

Each habit of bench/habit_server.py is asked by the load client itself: 4 streams, 3 requests each, 40 tokens. An error
is what the client reports minus what the server did, mean over the requests, in ms.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from habit_server import HABITS, Habit
from qwenbench.analysis.request_arrays import disagreements, failure_reasons
from qwenbench.bounded_http import Questions, WaitLimit
from qwenbench.load.run import LoadClient
from qwenbench.load.spec import ClosedLoop, LoadSpec, Target
from qwenbench.sweep.probing import probe_fields
from qwenbench.workload.planning import RequestOptions, request_body
from qwenbench.workload.sessions import SessionPlan, TurnPlan

STREAMS, REQUESTS, TOKENS = 4, 12, 40
BEGIN, END = "<!-- habits: made by bench/habits.py; do not edit between these lines -->", "<!-- /habits -->"
Truth = Mapping[str, tuple[float, float, float]]


async def measure(client: LoadClient, session: aiohttp.ClientSession, url: str, name: str) -> dict[str, Any]:
    """One habit: errors against the truth in ms, and what was told of it."""
    base = f"{url}/{name}"
    common = RequestOptions(model="m", profile="instruct-general", salt_mode="off")
    body = request_body(common, [{"role": "user", "content": "Say hello."}], 1, "probe")
    probe = await probe_fields(Questions(session, base, {}, WaitLimit(10)), "chat", body, ())
    common = RequestOptions(model="m", profile="instruct-general", salt_mode="off", left_out=frozenset(probe.refused))
    sessions = [_session(f"{name}-{number}", common) for number in range(REQUESTS)]
    result = await client.run(LoadSpec(Target(base), ClosedLoop(STREAMS), sessions, timeout_s=20, processes=1))
    async with session.get(f"{url}/served") as answer:
        truth: Truth = await answer.json(content_type=None)
    rows = result.requests.to_pylist()
    told = [failure_reasons(result.requests), disagreements(result.requests)]
    if probe.refused:
        told.append(f"fields left out: {', '.join(sorted(probe.refused))}")
    known = [row["output_tokens"] for row in rows if row["error"] is None]
    if known and None in known and not told[1]:
        told.append("tokens unknown: no usage came")
    return {"name": name, "told": "; ".join(filter(None, told)), **_errors(rows, truth)}


def _session(name: str, common: RequestOptions) -> SessionPlan:
    body = request_body(common, [{"role": "user", "content": f"{name}: say hello."}], TOKENS, name)
    return SessionPlan(name, "habits", (TurnPlan(name, 0, name, "en", {**body, "request_id": name}, TOKENS),))


def _errors(rows: list[dict[str, Any]], truth: Truth) -> dict[str, float | None]:
    pairs = [(row, truth[row["request_id"]]) for row in rows if row["error"] is None and row["request_id"] in truth]
    found: dict[str, list[float]] = {"ttft": [], "ttfo": [], "tpot": [], "e2e": []}
    for row, (first, answer, last) in pairs:
        found["ttft"].append(row["ttft_ms"] - first)
        found["ttfo"].append(row["ttfo_ms"] - answer)
        found["e2e"].append(row["e2e_ms"] - last)
        if row["output_tokens"] is not None:
            found["tpot"].append((row["decode_ms"] - (last - first)) / (row["output_tokens"] - 1))
    return {key: float(np.mean(values)) if values else None for key, values in found.items()}


async def measure_all(url: str, names: list[str]) -> list[dict[str, Any]]:
    """Every habit in turn against one server."""
    async with LoadClient() as client, aiohttp.ClientSession() as session:
        return [await measure(client, session, url, name) for name in names]


@contextmanager
def habit_server() -> Iterator[str]:
    """The server in a process of its own; gives its address."""
    script = Path(__file__).with_name("habit_server.py")
    with subprocess.Popen([sys.executable, str(script), "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| habit | seen at | TTFT error | TTFO error | TPOT error | E2E error | told |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        habit: Habit = HABITS[row["name"]]
        figures = ["" if row[key] is None else f"{row[key]:.3f}" for key in ("ttft", "ttfo", "tpot", "e2e")]
        lines.append(f"| {row['name']} | {habit.seen} | {' | '.join(figures)} | {row['told'].replace('|', '/')} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table or put it into a document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="document whose table is replaced")
    parser.add_argument("--habit", action="append", choices=list(HABITS), help="only these")
    options = parser.parse_args()
    with habit_server() as url:
        made = table(asyncio.run(measure_all(url, options.habit or list(HABITS))))
    if options.out is None:
        print(made)
        return
    text = options.out.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    options.out.write_text(f"{before}{BEGIN}\nMeasured on {machine}.\n\n{made}\n{END}{after}")


if __name__ == "__main__":
    main()

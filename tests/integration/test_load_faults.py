"""Servers that misbehave: each fault becomes its error class, no slot is lost, records = requests sent."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from load_faulty_server import DONE, HEAD, LAST, Behaviour, Call, faulty_server, good, http_chunk, token, usage

from qwenbench.load.run import LoadClient
from qwenbench.load.spec import ClosedLoop, LoadSpec, OpenLoop, Target
from qwenbench.workload.sessions import SessionPlan, TurnPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[LoadClient]:
    async with LoadClient() as one:
        yield one


def sessions(count: int, content: str = "tell me") -> list[SessionPlan]:
    def turn(index: int) -> TurnPlan:
        payload = {"model": "m", "messages": [{"role": "user", "content": content}], "stream": True}
        return TurnPlan(f"r{index}", 0, f"p{index}", "en", payload, 2)

    return [SessionPlan(f"s{index}", "test", (turn(index),)) for index in range(count)]


async def rows_of(
    client: LoadClient,
    behaviour: Behaviour,
    *,
    requests: int = 3,
    concurrency: int = 1,
    timeout_s: float = 20.0,
    content: str = "tell me",
    headers: dict[str, str] | None = None,
) -> list[dict[str, Any]]:
    async with faulty_server(behaviour) as server:
        target = Target(f"http://127.0.0.1:{server.port}", headers=headers or {})
        spec = LoadSpec(target, ClosedLoop(concurrency), sessions(requests, content), timeout_s=timeout_s)
        result = await client.run(spec)
    rows: list[dict[str, Any]] = result.requests.to_pylist()
    assert sorted(row["request_id"] for row in rows) == sorted(f"r{index}" for index in range(requests))
    return rows


def errors(rows: Sequence[dict[str, Any]]) -> list[str | None]:
    return [row["error"] for row in sorted(rows, key=lambda row: row["sent_ns"])]


async def first_only(call: Call, *parts: bytes) -> bool:
    """Write `parts` for the first request; later ones get a good answer. True for the first."""
    if call.number:
        await call.write(good())
        return False
    for part in parts:
        await call.write(part)
    return True


async def test_close_and_reset_in_mid_stream(client: LoadClient) -> None:
    async def close(call: Call) -> None:
        if await first_only(call, HEAD + http_chunk(token())):
            await call.close()

    async def reset(call: Call) -> None:
        if await first_only(call, HEAD + http_chunk(token())):
            call.reset()

    for behaviour in (close, reset):
        rows = await rows_of(client, behaviour)
        assert errors(rows) == ["reset", None, None]
        assert rows[1]["connect_ms"] is not None, "the stream had to connect again, and that is kept apart"


@pytest.mark.parametrize("part", [b"1f\r\ndata: {", HEAD[:30], http_chunk(token())])
async def test_half_an_answer_then_silence_ends_with_the_time_out(client: LoadClient, part: bytes) -> None:
    async def stall(call: Call) -> None:
        if await first_only(call, part if part.startswith(b"HTTP") else HEAD + part):
            await call.stall()

    rows = await rows_of(client, stall, timeout_s=0.6)
    assert errors(rows) == ["timeout", None, None]
    assert (rows[0]["ended_ns"] - rows[0]["sent_ns"]) / 1e6 >= 600


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + http_chunk(b"data: {broken\n\n") + LAST,
        HEAD + http_chunk(b'data: {"choices": [{"delta": {"content": "\xff\xfe"}}]}\n\n') + LAST,
        HEAD + b"5\r\n" + token() + b"\r\n0\r\n\r\n",
        HEAD + b"zz\r\n\r\n",
        HEAD + http_chunk(token()) + b"zz\r\n" + token(),
        HEAD + http_chunk(token()) + b"1g",
        HEAD + b"fffffffffff\r\n" + token() + b"\r\n\r\n",
        b"220 smtp ready\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
        HEAD + http_chunk(b"data: " + b"x" * 10_000_000 + b"\n\n") + LAST,
        HEAD + b"989680\r\n" + b"x" * 10_000_000,  # 10 MB without any line end, and no more
    ],
    ids=[
        "json",
        "utf8",
        "short-size",
        "no-size",
        "later-no-size",
        "half-a-size",
        "huge-size",
        "no-http",
        "long-head",
        "10MB",
        "10MB-open",
    ],
)
async def test_what_is_no_http_or_sse_is_malformed(client: LoadClient, answer: bytes) -> None:
    async def behave(call: Call) -> None:
        await first_only(call, answer)

    rows = await rows_of(client, behave)
    assert errors(rows) == ["malformed", None, None], rows[0]["error_detail"]


@pytest.mark.parametrize("status", [429, 503])
async def test_status_errors_tell_retry_after_and_pause_the_stream(client: LoadClient, status: int) -> None:
    body = b'{"error": {"message": "key tok-7777 is over quota; you said: Once upon a time there was", "type": "Q"}}'
    answer = b"HTTP/1.1 %d No\r\nRetry-After: 1\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)

    async def behave(call: Call) -> None:
        await first_only(call, answer)

    rows = await rows_of(
        client,
        behave,
        content="Once upon a time there was a secret",
        headers={"Authorization": "Bearer tok-7777"},
    )
    assert errors(rows) == ["http_status", None, None]
    detail = f"HTTP {status} (Retry-After: 1): Q: key *** is over quota; you said: [prompt text left out]"
    assert (rows[0]["status"], rows[0]["error_detail"]) == (status, detail)
    assert rows[1]["sent_ns"] - rows[0]["ended_ns"] >= 1e9, "the stream waited as it was asked to"


async def test_dead_engine_answers_200_with_an_error_event(client: LoadClient) -> None:
    event = b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n'

    async def behave(call: Call) -> None:
        await first_only(call, HEAD + http_chunk(event) + http_chunk(DONE) + LAST)

    assert errors(await rows_of(client, behave)) == ["stream_error", None, None]


async def test_no_usage_and_empty(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        answers = [
            HEAD + http_chunk(token()) + http_chunk(DONE) + LAST,
            HEAD + http_chunk(token("", role="assistant", content="")) + http_chunk(usage(0)) + LAST,
            good(),
        ]
        await call.write(answers[call.number])

    rows = await rows_of(client, behave)
    assert errors(rows) == [None, "empty", None]
    assert [row["output_tokens"] for row in rows] == [None, 0, 2], "unknown where nobody counted"


async def test_early_answer_to_a_request_that_is_not_read(client: LoadClient) -> None:
    """A server may refuse a body (413) without reading it: the status is told, not a broken pipe."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        cast(asyncio.Transport, writer.transport).pause_reading()
        await asyncio.sleep(0.3)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0, limit=1024)
    port = server.sockets[0].getsockname()[1]
    spec = LoadSpec(Target(f"http://127.0.0.1:{port}"), ClosedLoop(1), sessions(1, "x" * 8_000_000))
    result = await client.run(spec)
    server.close()
    (row,) = result.requests.to_pylist()
    assert (row["error"], row["status"], row["error_detail"]) == ("http_status", 413, "HTTP 413: big")


async def test_refused_and_nothing_hammered(client: LoadClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    spec = LoadSpec(Target(f"http://127.0.0.1:{port}"), ClosedLoop(2), sessions(4))
    result = await client.run(spec)
    rows = result.requests.to_pylist()
    assert errors(rows) == ["refused"] * 4
    assert all(row["sent_ns"] and row["ttft_ms"] is None for row in rows)


async def test_connection_closed_between_requests_is_opened_again(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        await call.write(good())
        await call.close()

    turns = tuple(replace(one.turns[0], think_s=0.05) for one in sessions(3))
    async with faulty_server(behave) as server:
        spec = LoadSpec(Target(f"http://127.0.0.1:{server.port}"), ClosedLoop(1), [SessionPlan("s", "test", turns)])
        rows = (await client.run(spec)).requests.to_pylist()
    assert errors(rows) == [None] * 3
    assert [row["connect_ms"] is not None for row in rows] == [False, True, True]


async def test_connection_close_and_content_length_and_until_close_bodies(client: LoadClient) -> None:
    body = token() + token() + usage(2) + DONE

    async def behave(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if call.number == 0:
            await call.write(b"HTTP/1.1 100 Continue\r\n\r\n" + head + b"Content-Length: %d\r\n\r\n" % len(body))
            await call.write(body)
        elif call.number == 1:
            await call.write(head + b"\r\n" + body)
            await call.close()
        else:
            await call.write(good().replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            await call.close()

    rows = await rows_of(client, behave)
    assert errors(rows) == [None] * 3
    assert [row["output_tokens"] for row in rows] == [2, 2, 2]


async def test_byte_by_byte_answers(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        for byte in good(3):
            await call.write(bytes([byte]))
            await asyncio.sleep(0)

    rows = await rows_of(client, behave, requests=2)
    assert errors(rows) == [None, None] and rows[0]["chunks"] == 3


async def test_open_loop_counts_waiting_and_times_out_from_the_schedule(client: LoadClient) -> None:
    async def behave(call: Call) -> None:
        if call.number == 0:
            await call.stall()
        await call.write(good())

    plans = [
        SessionPlan(one.session_id, one.scenario, one.turns, start_s=0.05 * index)
        for index, one in enumerate(sessions(3))
    ]
    async with faulty_server(behave) as server:
        spec = LoadSpec(Target(f"http://127.0.0.1:{server.port}"), OpenLoop(20), plans, timeout_s=0.5)
        result = await client.run(spec)
    rows = sorted(result.requests.to_pylist(), key=lambda row: row["request_id"])
    assert errors(rows) == ["timeout", None, None]
    offsets = [(row["scheduled_ns"] - result.started_ns) / 1e6 for row in rows]
    assert offsets == [0, 50, 100]
    for row in rows[1:]:
        assert row["waited_ms"] >= 0 and row["ttft_ms"] >= row["waited_ms"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the test's certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout"
    subprocess.run(
        [*command.split(), str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return key, cert


def server_context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("closed", "ends"), [({1}, [None, None, None]), ({1, 2}, [None, "reset", None])])
async def test_a_kept_connection_that_was_being_closed_costs_no_request(
    client: LoadClient, certificate: tuple[Path, Path], tls: bool, closed: set[int], ends: list[str | None]
) -> None:
    """The request is sent again, once: a server that closes on it again has failed it."""

    async def behave(call: Call) -> None:
        await (call.close() if call.number in closed else call.write(good()))

    async with faulty_server(behave, server_context(certificate) if tls else None) as server:
        target = Target(f"http{'s' if tls else ''}://127.0.0.1:{server.port}", verify_tls=False)
        result = await client.run(LoadSpec(target, ClosedLoop(1), sessions(3)))
    rows = sorted(result.requests.to_pylist(), key=lambda row: row["request_id"])
    assert errors(rows) == ends
    assert [row["resent"] for row in rows] == [False, True, False]
    assert [row["connect_ms"] is not None for row in rows] == [False, True, len(closed) > 1]
    assert len(server.bodies) == 4


@pytest.mark.parametrize("verify", [True, False])
async def test_a_certificate_that_does_not_verify(
    client: LoadClient, certificate: tuple[Path, Path], verify: bool
) -> None:
    async def behave(call: Call) -> None:
        await call.write(good())

    async with faulty_server(behave, server_context(certificate)) as server:
        target = Target(f"https://127.0.0.1:{server.port}", verify_tls=verify)
        result = await client.run(LoadSpec(target, ClosedLoop(1), sessions(2)))
    rows = result.requests.to_pylist()
    assert errors(rows) == (["tls", "tls"] if verify else [None, None])
    assert result.health.stamp_source == "user"


async def test_the_same_faults_through_aiohttp(client: LoadClient, certificate: tuple[Path, Path]) -> None:
    async def behave(call: Call) -> None:
        if call.number == 0:
            await call.write(HEAD + http_chunk(token()))
            await call.close()
        elif call.number == 1:
            await call.write(HEAD + http_chunk(token()))
            await call.stall()
        elif call.number == 2:
            await call.write(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")
        else:
            await call.write(good())

    async with faulty_server(behave, server_context(certificate)) as server:
        target = Target(f"https://127.0.0.1:{server.port}", verify_tls=False)
        result = await client.run(LoadSpec(target, ClosedLoop(1), sessions(4), timeout_s=1.0))
    assert errors(result.requests.to_pylist()) == ["reset", "timeout", "http_status", None]

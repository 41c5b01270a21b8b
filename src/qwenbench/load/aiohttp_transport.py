"""https, proxies and odd platforms: the same exchanges through aiohttp, stamped right after each read."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp

from qwenbench.load.clock import NS_PER_MS, now_ns
from qwenbench.load.exchange import END_GRACE_S, END_MARK, OPEN_LIMIT_S, Channel, RawExchange, may_send_again
from qwenbench.load.spec import Address


class AiohttpChannel:
    """One stream's requests; the connection comes from the session's pool."""

    def __init__(self, transport: AiohttpTransport) -> None:
        self._transport = transport
        self._exchange: RawExchange | None = None
        self._done: Callable[[RawExchange], None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Idle; whether a pooled connection is open is aiohttp's to know."""
        return self._exchange is None

    def start(self, body: bytes, done: Callable[[RawExchange], None]) -> RawExchange:
        assert self._exchange is None, "a channel carries one exchange at a time"
        exchange = self._exchange = RawExchange(sent_ns=now_ns())
        self._done = done
        self._task = asyncio.get_running_loop().create_task(self._carry(exchange, body))
        return exchange

    def check(self) -> None:
        """Nothing: aiohttp checks what it reads."""

    def abort(self, error: str, detail: str) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        exchange.error, exchange.detail = error, detail
        if self._task is not None:
            self._task.cancel()
        self._hand_back(exchange)

    async def _carry(self, exchange: RawExchange, body: bytes) -> None:
        try:
            try:
                await self._transport.post(exchange, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if not may_send_again(exchange):
                    raise
                exchange.resent = True
                await self._transport.post(exchange, body)
        except (aiohttp.ClientError, OSError, ValueError) as problem:
            exchange.error, exchange.detail = _classify(problem, bool(exchange.reads))
        if self._exchange is exchange:
            self._hand_back(exchange)

    def _hand_back(self, exchange: RawExchange) -> None:
        exchange.ended_ns = exchange.stamps[-1] if exchange.stamps and exchange.error is None else now_ns()
        done, self._done, self._exchange, self._task = self._done, None, None, None
        assert done is not None
        done(exchange)


class AiohttpTransport:
    """Channels to one server through aiohttp. Made inside the event loop that will use it."""

    stamp_source = "user"

    def __init__(self, address: Address, headers: Mapping[str, str], *, verify_tls: bool) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_start.append(_on_connecting)
        trace.on_connection_create_end.append(_on_connected)
        trace.on_connection_reuseconn.append(_on_connected)
        self._url = address.url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=verify_tls, keepalive_timeout=300),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"Accept-Encoding": "identity", **headers, "Content-Type": "application/json"},
            trust_env=address.proxied,
            trace_configs=[trace],
            auto_decompress=False,
        )

    async def connect(self, count: int, limit_s: float) -> list[Channel]:
        """Open `count` connections by asking for the model list on each at the same time."""
        url = self._url.rsplit("/v1/", 1)[0] + "/v1/models"

        async def visit() -> None:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with asyncio.timeout(min(limit_s, OPEN_LIMIT_S)), self._session.get(url) as answer:
                    await answer.read()

        await asyncio.gather(*(visit() for _ in range(count)))
        return [self.channel() for _ in range(count)]

    def channel(self) -> Channel:
        return AiohttpChannel(self)

    async def post(self, exchange: RawExchange, body: bytes) -> None:
        """Carry one exchange to its end; aiohttp's errors are the caller's to classify."""
        async with self._session.post(
            self._url, data=body, allow_redirects=False, trace_request_ctx=exchange
        ) as answer:
            exchange.status = answer.status
            exchange.headers = {name.lower(): value for name, value in answer.headers.items()}
            await self._read(exchange, answer)

    async def _read(self, exchange: RawExchange, answer: aiohttp.ClientResponse) -> None:
        try:
            async with asyncio.timeout(None) as limit:
                async for data in answer.content.iter_any():
                    exchange.stamps.append(now_ns())
                    exchange.reads.append(data)
                    problem = exchange.excess(data)
                    if problem is not None:
                        exchange.give_up("malformed", problem)
                    if problem is not None or exchange.is_long_error:
                        answer.close()
                        return
                    if b"[DONE]" in data and limit.when() is None and END_MARK.search(data):
                        # HTTP's own end may take a moment more; a connection that stays open is closed
                        limit.reschedule(asyncio.get_running_loop().time() + END_GRACE_S)
        except TimeoutError:
            answer.close()

    async def close(self) -> None:
        await self._session.close()


async def _on_connecting(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    context.connect_began = now_ns()


async def _on_connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: Any) -> None:
    """A connection was made or taken from the pool: the request is written next."""
    exchange = context.trace_request_ctx
    if not isinstance(exchange, RawExchange):
        return
    exchange.sent_ns = now_ns()
    began = getattr(context, "connect_began", None)
    if began is not None:
        exchange.connect_ms = (exchange.sent_ns - began) / NS_PER_MS


def _classify(problem: Exception, answered: bool) -> tuple[str, str]:
    """Error class and a detail without addresses or content."""
    name = type(problem).__name__
    if isinstance(problem, aiohttp.ClientConnectorCertificateError):
        return "tls", f"the server's certificate was refused: {_reason(problem.certificate_error)}"
    if isinstance(problem, (aiohttp.ClientConnectorSSLError, aiohttp.ClientSSLError)):
        return "tls", f"the TLS handshake failed: {_reason(problem)}"
    if isinstance(problem, (aiohttp.ClientConnectorError, aiohttp.ClientProxyConnectionError)):
        return "refused", f"no connection to the server: {problem.strerror or name}"
    if isinstance(problem, aiohttp.ClientHttpProxyError):
        return "refused", f"the proxy answered with status {problem.status}"
    if isinstance(problem, aiohttp.ClientResponseError):
        return "malformed", "the answer is no valid HTTP response"
    if isinstance(problem, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, OSError)):
        where = "in mid-stream" if answered else "before it answered"
        return "reset", f"connection lost {where} ({name})"
    return "malformed", f"the answer cannot be read ({name})"


def _reason(problem: BaseException) -> str:
    verify = getattr(problem, "verify_message", None)
    reason = getattr(problem, "reason", None) or getattr(problem, "strerror", None)
    return str(verify or reason or type(problem).__name__)[:200]

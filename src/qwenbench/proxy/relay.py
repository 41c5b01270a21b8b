"""The proxy, from a client's request to the target's answer: what is refused, what is changed, how it passes."""

from __future__ import annotations

import asyncio
import posixpath
import re
import sys
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

from qwenbench.errors import UsageError
from qwenbench.http1.reading import (
    LAST_CHUNK,
    HttpError,
    HttpRequest,
    Limits,
    ResponseHead,
    ResponseReader,
    chunk,
    header,
    passed_on,
)
from qwenbench.http1.server import HttpConnection, HttpServer
from qwenbench.proxy.rewriting import (
    CHAT_PATHS,
    NOT_SERVED,
    SAMPLING_PATHS,
    BadRequest,
    BodyChange,
    ModelListing,
    NameRestorer,
    rewrite_request,
    virtual_models,
)
from qwenbench.proxy.target import TargetAddress, TargetConnection, TargetPool
from qwenbench.workload.profiles import SamplingProfile


@dataclass(frozen=True)
class ProxyOptions:
    served_model: str
    """The name under which the target serves its model."""
    models: Mapping[str, SamplingProfile] = field(default_factory=virtual_models)
    enforce: bool = False


class Relay:
    """Handles every request of every client. Nothing of a body is ever logged."""

    def __init__(self, options: ProxyOptions, pool: TargetPool) -> None:
        self._options = options
        self._pool = pool

    def handle(self, request: HttpRequest, client: HttpConnection) -> None:
        """Answers a request, at once or through a `Passage`."""
        try:
            path = judged_path(request, self._pool.address.prefix)
        except BadRequest as error:
            client.refuse(400, str(error))
            return
        refused = next((one for one in NOT_SERVED if path == one or path.startswith(one + "/")), None)
        if refused is not None:
            text = f"this proxy does not serve {refused}; use /v1/chat/completions"
            client.refuse(501, text, "NotImplementedError")
            return
        body = request.body
        change: BodyChange | None = None
        if path == "/v1/models" and request.method == "GET":
            change = ModelListing(self._options.models, self._options.served_model)
        elif request.method == "POST" and _may_hold_json(path, request):
            options = self._options
            try:
                rewritten = rewrite_request(path, body, options.models, options.served_model, enforce=options.enforce)
            except BadRequest as error:
                client.refuse(400, str(error))
                return
            body = rewritten.body
            if rewritten.virtual_model is not None:
                change = NameRestorer(options.served_model, rewritten.virtual_model)
        Passage(request, path, body, change, client, self._pool).start()


def judged_path(request: HttpRequest, prefix: bytes = b"") -> str:
    """The path as the most lenient server would read it, so that no spelling of it gets past its rules.

    Percent-decoded as often as it goes, in one case and one width, up to a byte that ends names in C, without
    parameters, empty and dot segments, or a slash at its end; `prefix` is the target's own part in front of it.
    Raises BadRequest for what no server could read, and for a path that leaves the prefix.
    """
    path = request.path
    for _ in range(_MOST_DECODINGS):
        path, before = unquote(path), path
        if path == before:
            break
    else:
        raise BadRequest("the path is percent-encoded too often")
    if "\ufffd" in path:
        raise BadRequest("the path is not UTF-8")
    if not _PLAIN_PATH.fullmatch(path):
        path = re.split(r"[?#\x00-\x20\x7f]", unicodedata.normalize("NFKC", path).casefold())[0]
        start = prefix.decode("latin-1").lower()
        path = re.sub(r";[^/]*", "", start + path.replace("\\", "/"))
        path = posixpath.normpath("/" + path.lstrip("/")).rstrip(".")
        if not (path + "/").startswith(start + "/"):
            raise BadRequest("the path leads out of what this proxy serves")
        path = path[len(start) :] or "/"
    return path


_MOST_DECODINGS = 8
_PLAIN_PATH = re.compile(r"(?:/[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)+")


def _may_hold_json(path: str, request: HttpRequest) -> bool:
    if path in SAMPLING_PATHS | CHAT_PATHS:
        return True  # whatever it calls itself: it must not get past its profile
    kind = header(request.headers, b"content-type")
    return kind is None or b"json" in kind.lower()


class Passage:
    """One request on its way to the target, and its answer on the way back."""

    def __init__(
        self,
        request: HttpRequest,
        path: str,
        body: bytes,
        change: BodyChange | None,
        client: HttpConnection,
        pool: TargetPool,
    ) -> None:
        self._request = request
        self._path = path
        self._body = body
        self._change = change
        self._client = client
        self._pool = pool
        self._target: TargetConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reader = ResponseReader(to_head=request.method == "HEAD")
        self._head: ResponseHead | None = None
        """The answer's head, once it has been passed on."""
        self._chunked = False
        self._ended = False

    def start(self) -> None:
        self._client.exchange = self
        self._connecting = self._pool.lease(self)

    # --- the target's side (AnswerSink) ---

    def connected(self, connection: TargetConnection) -> None:
        self._target = connection
        request = self._request
        dropped = [b"host", b"content-length", b"expect"]
        extra = b""
        if self._change is not None:
            # only plain text can be changed on its way
            dropped.append(b"accept-encoding")
            extra = b"accept-encoding: identity\r\n"
        if self._body or request.framed:
            extra += b"content-length: %d\r\n" % len(self._body)
        address = self._pool.address
        connection.write(
            b"%b %b%b HTTP/1.1\r\nhost: %b\r\n%b%b\r\n%b"
            % (request.method.encode(), address.prefix, request.target, address.host_header,
               passed_on(request.headers, dropped), extra, self._body)
        )  # fmt: skip
        self._body = b""

    def not_connected(self, reason: str) -> None:
        self._fail(f"the target was not reached ({reason})", "the target cannot be reached")

    def feed(self, data: bytes) -> None:
        try:
            part = self._reader.feed(data)
            if self._reader.head is None:
                return
            if self._head is None:
                self._send_head(self._reader.head)
            if self._change is not None and part:
                part = self._change.feed(part)
        except HttpError as error:
            self._fail(f"the target's answer is broken: {error}", "the target's answer is no HTTP")
            return
        if part:
            self._client.write(chunk(part) if self._chunked else part)
        if self._reader.done:
            self._end()

    def target_closed(self) -> None:
        """The target closed the connection: the proper end of some answers, the loss of others."""
        self._target = None
        if self._reader.closed():
            self._end()
        else:
            self._fail("the target broke its answer off", "the target closed the connection")

    def _send_head(self, head: ResponseHead) -> None:
        if head.status != 200 and isinstance(self._change, ModelListing):
            self._change = None
        self._head = head
        bodiless = self._request.method == "HEAD" or head.status in (204, 304)
        # a list of models is made anew, whatever it was packed in
        dropped: tuple[bytes, ...] = (b"content-encoding",) if isinstance(self._change, ModelListing) else ()
        framing = b""
        if not bodiless and (head.length is None or self._change is not None):
            dropped += (b"content-length",)
            self._chunked = self._client.http11
            framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        closing = b"" if self._reusable() else b"connection: close\r\n"
        self._client.write(
            b"HTTP/1.1 %d %b\r\n%b%b%b\r\n"
            % (head.status, head.reason, passed_on(head.headers, dropped), framing, closing)
        )

    def _reusable(self) -> bool:
        """Whether the client can see where the answer ends without the connection's end."""
        assert self._head is not None
        delimited = self._chunked or (self._head.length is not None and self._change is None)
        return delimited and self._client.keeps_alive

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        last = self._change.finish() if self._change is not None else b""
        if self._chunked:
            last = (chunk(last) if last else b"") + LAST_CHUNK
        if last:
            self._client.write(last)
        assert self._head is not None
        if self._target is not None:
            self._pool.give_back(self._target, reusable=self._head.keep_alive and not self._reader.surplus)
            self._target = None
        self._client.finish(reusable=self._reusable())

    def _fail(self, told: str, text: str) -> None:
        """Answers with an error, or breaks the client's connection where an answer has begun."""
        if self._ended:
            return
        self._ended = True
        shown = ascii(self._path[:100])[1:-1]  # no control character reaches the terminal
        print(f"qwenbench proxy: {self._request.method} {shown}: {told}", file=sys.stderr)
        if self._target is not None:
            self._target.abort()
            self._target = None
        if self._head is not None:
            self._client.abort()
        else:
            self._client.refuse(503 if self._path == "/health" else 502, text, "BadGatewayError")

    # --- the client's side (Exchange) ---

    def client_left(self) -> None:
        self._ended = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._target is not None:
            self._target.abort()
            self._target = None

    def pause(self) -> None:
        if self._target is not None:
            self._target.pause()

    def resume(self) -> None:
        if self._target is not None:
            self._target.resume()


GRACE_S = 5.0
"""At the end answers under way get so long to finish."""


@asynccontextmanager
async def serving(
    target: TargetAddress, options: ProxyOptions, host: str, port: int, *, limits: Limits | None = None
) -> AsyncIterator[int]:
    """Serves until the block ends; gives the port (port 0: a free one).

    Raises UsageError when the address cannot be bound.
    """
    pool = TargetPool(target)
    server = HttpServer(Relay(options, pool).handle, limits=limits)
    try:
        bound = await server.start(host, port)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"--host {host} --port {port}: cannot be bound: {reason}. Is it taken? Try --port 0."
        ) from error
    try:
        yield bound
    finally:
        await server.close(GRACE_S)
        pool.close()
        await asyncio.sleep(0)

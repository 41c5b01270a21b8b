"""The simulated server as one process: start-up, routes, /metrics, shutdown."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from qwenbench.capacity.cards import Card, find_card
from qwenbench.errors import UsageError
from qwenbench.http1.reading import HttpRequest, header
from qwenbench.http1.server import HttpConnection, HttpServer
from qwenbench.simulator import failures, log, text
from qwenbench.simulator.answers import StreamAnswer, WholeAnswer
from qwenbench.simulator.api import (
    ApiError,
    GenerationRequest,
    ServedModel,
    chat_tokens,
    check_model,
    load_body,
    parse_generation,
    prompt_tokens,
)
from qwenbench.simulator.engine import Engine, LiveRequest
from qwenbench.simulator.memory import MemoryPlan, plan_memory, served_shape
from qwenbench.simulator.meters import POWER_LIMIT_W, UNKNOWN_LIMIT_W, EnergyMeter, VramGauge
from qwenbench.simulator.metrics import metrics_page
from qwenbench.simulator.options import ServeOptions
from qwenbench.simulator.replay import launch_pace, point_pace, scheduler_of
from qwenbench.simulator.startup import ROUTES, ServerLog
from qwenbench.simulator.steptime import calibration
from qwenbench.simulator.uncertainty import uncertainty_of

STATS_PERIOD_S = 10.0
SPREAD_PERIOD_S = 15.0
"""About a load point: so long the host keeps one speed with --sim-spread."""
EXIT_AFTER_DEATH_S = 2.5
"""A server whose engine died ends by itself so long after the next request found out (recorded: about 3 s)."""


class App:
    def __init__(self, options: ServeOptions, plan: MemoryPlan, card: Card, lines: ServerLog) -> None:
        self.options = options
        self.plan = plan
        self.card = card
        self._lines = lines
        self._compiled_late = False
        """Whether Triton has compiled what the start left out (`_compile_late`)."""
        self.served = ServedModel(
            options.served_model_names, plan.max_model_len, options.reasoning_parser is not None, options.seed
        )
        figures = calibration()
        self.engine = Engine(
            scheduler_of(options, plan),
            VramGauge(plan, card, figures["memory"]["overshoot_mib"], options.speculative_tokens),
            EnergyMeter(figures["power"], POWER_LIMIT_W.get(card.name, UNKNOWN_LIMIT_W)),
        )
        self.finished = asyncio.Event()
        self._created = int(time.time())
        self._counter = 0
        self._gets: dict[str, Callable[[HttpConnection], None]] = {
            "/health": self._health,
            "/ping": self._health,
            "/v1/models": self._models,
            "/version": lambda connection: _json(connection, {"version": f"{options.vllm_version}+simulated"}),
            "/metrics": self._metrics,
            "/load": lambda connection: _json(connection, {"server_load": self.engine.running}),
        }
        self._posts: dict[str, Callable[[dict[str, Any], HttpConnection], None]] = {
            "/v1/chat/completions": lambda body, connection: self._generate(body, connection, chat=True),
            "/v1/completions": lambda body, connection: self._generate(body, connection, chat=False),
            "/tokenize": self._tokenize,
            "/detokenize": lambda _body, connection: _json(connection, {"prompt": "SIMULATED"}),
        }

    def handle(self, request: HttpRequest, connection: HttpConnection) -> None:
        if self.options.access_log:
            line = f'{connection.peer} - "{request.method} {request.path} HTTP/1.1"'
            connection.when_done(lambda status: log.uvicorn(f"{line} {status} {HTTPStatus(status).phrase}"))
        try:
            self._route(request, connection)
        except ApiError as error:
            connection.respond(error.status, error.body())

    def _route(self, request: HttpRequest, connection: HttpConnection) -> None:
        path = request.path
        methods = ROUTES.get(path)
        if methods is None:
            _json(connection, {"detail": "Not Found"}, 404)
        elif request.method not in methods and not (request.method == "HEAD" and "GET" in methods):
            connection.respond(
                405, b'{"detail":"Method Not Allowed"}', lines=f"allow: {', '.join(methods)}\r\n".encode()
            )
        elif path.startswith("/v1") and not self._authorised(request):
            _json(connection, {"error": "Unauthorized"}, 401)
        elif path == "/reset_prefix_cache":
            self.engine.scheduler.pool.forget_cached()
            connection.respond(200, b"")
        elif path in self._gets:
            self._gets[path](connection)
        else:
            self._posts[path](load_body(request.body), connection)

    def _authorised(self, request: HttpRequest) -> bool:
        if not self.options.api_keys:
            return True
        given = (header(request.headers, b"authorization") or b"").removeprefix(b"Bearer ")
        return any(secrets.compare_digest(given, key.encode()) for key in self.options.api_keys)

    # --- GET ---

    def _health(self, connection: HttpConnection) -> None:
        connection.respond(503 if self.engine.dead else 200, b"")

    def _models(self, connection: HttpConnection) -> None:
        models: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": "qwenbench-simulator",
                "root": self.options.model,
                "parent": None,
                "max_model_len": self.plan.max_model_len,
                "permission": [],
            }
            for name in self.options.served_model_names
        ]
        _json(connection, {"object": "list", "data": models})

    def _metrics(self, connection: HttpConnection) -> None:
        page = metrics_page(self.engine, self.options, self.plan, self.card)
        connection.respond(200, page, b"text/plain; version=0.0.4; charset=utf-8")

    # --- POST ---

    def _tokenize(self, body: dict[str, Any], connection: HttpConnection) -> None:
        check_model(body.get("model"), self.served)
        pieces = chat_tokens(body) if isinstance(body.get("messages"), list) else prompt_tokens(body.get("prompt"))
        ids = [text.token_id(piece) for piece in pieces]
        answer = {"count": len(ids), "max_model_len": self.plan.max_model_len, "tokens": ids}
        _json(connection, answer | {"token_strs": None})

    def _generate(self, body: dict[str, Any], connection: HttpConnection, *, chat: bool) -> None:
        received = time.monotonic()
        if self.engine.dead:
            asyncio.get_running_loop().call_later(EXIT_AFTER_DEATH_S, self.finished.set)
            raise ApiError(500, failures.DEATH_MESSAGE, "InternalServerError")
        asked = parse_generation(body, self.served, chat=chat)
        self._compile_late(asked.filtered)
        request = self._live_request(asked, received)
        kind = StreamAnswer if asked.stream else WholeAnswer
        answer = kind(asked, request, connection, self.engine, cached_details=self.options.enable_prompt_tokens_details)
        request.sink = answer
        connection.exchange = answer
        self.engine.submit(request)

    def _live_request(self, asked: GenerationRequest, received: float) -> LiveRequest:
        self._counter += 1
        kind = "chatcmpl" if asked.chat else "cmpl"
        number = text.request_seed(self._counter, f"{self.options.seed}:{self._counter}")
        hashes: tuple[bytes, ...] = ()
        if self.options.enable_prefix_caching:
            hashes = text.block_hashes(asked.tokens, self.plan.layout.block_tokens, asked.salt)
        return LiveRequest(
            request_id=f"{kind}-{self._counter:08x}{number:08x}",
            prompt_tokens=len(asked.tokens),
            output_tokens=asked.output_tokens,
            arrival=received,
            hashes=hashes,
            received=received,
            max_tokens=asked.max_tokens,
            finish_reason=asked.finish_reason,
            filtered=asked.filtered,
            penalised=asked.penalised,
        )

    def _compile_late(self, filtered: bool) -> None:
        """What Triton compiles while a request waits, once: the slow sampler's kernel at the first with sampling
        fields; with FlashInfer's sampler only where --sim-jit-stall asks for it, at the first request of all."""
        options, slow = self.options, not self.options.flashinfer_sampler
        if self._compiled_late or not (filtered if slow else options.jit_stall_s):
            return
        self._compiled_late = True
        self._lines.say("late_compilation", kernel="_topk_topp_kernel" if slow else "_compute_slot_mapping_kernel")
        self.engine.scheduler.stall_s = options.jit_stall_s * options.time_scale


def _json(connection: HttpConnection, value: object, status: int = 200) -> None:
    connection.respond(status, json.dumps(value, separators=(",", ":")).encode())


async def serve(options: ServeOptions) -> int:
    """Runs the server until a signal or its own end; returns the exit status. Raises UsageError."""
    card = find_card(options.card)
    plan = plan_memory(options, card, calibration()["memory"], served_shape(options.model))
    doubt = uncertainty_of(options.card, options.machine, options.model)
    note = f"Card {card.name}, host {options.machine or 'typical'}. {doubt.text()}"
    lines = ServerLog(options, plan, note)
    listener = _bind(options)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    with listener:
        try:
            started = await _unless(stopped, lines.start(partial(failures.check_start, options, plan)))
        except failures.StartFailure as failure:
            for line in failure.lines:
                log.plain(line)
            return failure.code
        if not started:
            return 0
        app = App(options, plan, card, lines)
        failures.arm(options, app.engine, plan)
        server = HttpServer(app.handle, server_name="qwenbench-simulator")
        lines.say("listening", port=await server.start(sock=listener))
        gc.collect()
        gc.freeze()
        tasks = [asyncio.create_task(_stats(app.engine, lines))]
        if options.spread:
            tasks.append(asyncio.create_task(_spread(app.engine, 1000 * options.seed + os.getpid())))
        await _unless(stopped, app.finished.wait())
        for task in tasks:
            task.cancel()
        app.engine.close()
        await server.close()
        lines.say("shutdown")
    return 0


async def _unless(stopped: asyncio.Event, work: Any) -> bool:
    """Waits for the work; False when the stop came first. Raises what the work raises."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(stopped.wait())
    done, _ = await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task in done:
        task.result()
        return True
    task.cancel()
    return False


def _bind(options: ServeOptions) -> socket.socket:
    """The listening address, taken at the very start as vLLM does; it answers only when the server is ready."""
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((options.host, options.port))
    except OSError as error:
        listener.close()
        raise UsageError(
            f"OSError: [Errno {error.errno}] {error.strerror}: {options.host}:{options.port} cannot be listened "
            "on; choose another --port"
        ) from None
    return listener


async def _spread(engine: Engine, launch: int) -> None:
    """--sim-spread: this launch has a speed of its own, and the host drifts around it."""
    model = engine.scheduler.model
    usual, point = engine.scheduler.host_pace * launch_pace(model, launch), 0
    while True:
        engine.scheduler.host_pace = usual * point_pace(model, launch, point)
        point += 1
        await asyncio.sleep(SPREAD_PERIOD_S)


async def _stats(engine: Engine, lines: ServerLog) -> None:
    """vLLM's lines every 10 s while there is something to say."""
    before = (0, 0, 0, 0)
    while True:
        await asyncio.sleep(STATS_PERIOD_S)
        metrics = engine.metrics
        positions = metrics.accepted_by_position
        counted = (metrics.prompt_tokens, metrics.generation_tokens, metrics.drafts, sum(positions))
        prompt, generated, drafts, accepted = (now - then for now, then in zip(counted, before, strict=True))
        before = counted
        if not (prompt or generated or engine.running):
            continue
        queries, hits = engine.scheduler.prefix_queries, engine.scheduler.prefix_hits
        drafted = drafts * len(positions)
        lines.say(
            "stats",
            prompt_rate=prompt / STATS_PERIOD_S,
            generation_rate=generated / STATS_PERIOD_S,
            running=engine.running,
            waiting=engine.waiting,
            kv_usage=engine.scheduler.pool.usage,
            hit_rate=hits / queries if queries else 0.0,
            acceptance_length=1 + accepted / drafts if drafts else 1.0,
            accepted_rate=accepted / STATS_PERIOD_S,
            drafted_rate=drafted / STATS_PERIOD_S,
            accepted=accepted,
            drafted=drafted,
            position_rates=", ".join(f"{count / max(metrics.drafts, 1):.3f}" for count in positions),
            acceptance_rate=accepted / drafted if drafted else 0.0,
        )

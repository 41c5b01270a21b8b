"""A server that is ready, and what is asked of it before its load: what it takes, and how long its requests are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwenbench.bounded_http import Questions
from qwenbench.capacity.kv import KvLayout
from qwenbench.engine.config import Configuration, ServerConfig
from qwenbench.engine.failures import LaunchError, no_answer
from qwenbench.engine.startup_log import StartupLog
from qwenbench.load.spec import Target
from qwenbench.load.text_tokens import text_tokens
from qwenbench.observe.ledger import MemoryLedger
from qwenbench.processes import command_line
from qwenbench.sweep.context import SweepContext
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.probing import chars_per_token, check_served, probe_fields, served_models
from qwenbench.sweep.requests import Loads, ServerTraits, request_lengths
from qwenbench.workload.canary import CanaryResult

_LOAD_FORMAT = re.compile(r"--load[-_]format[= ](\S+)")


@dataclass(frozen=True)
class TextChecks:
    """What the checks found. None or missing: not checked."""

    canary: CanaryResult | None = None
    broken_share: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(scenario, profile) -> share of the natural-stop pass's answers that were broken."""
    broken_kinds: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """The same key -> the kinds found, with their counts."""


def dummy_weights(startup: StartupLog, pids: Iterable[int]) -> bool:
    """Whether the server's log says that the weights are random, or without one the command line of one of its
    processes on this host: then the text means nothing and is not judged."""
    if startup.requested:
        return str(startup.requested.get("load_format", "")).lower() == "dummy"
    # where the option is given twice, the last one counts
    return any(_LOAD_FORMAT.findall(command_line(pid))[-1:] == ["dummy"] for pid in pids)


@dataclass(frozen=True)
class ReadyServer:
    """A server that is ready, and what was read and asked of it."""

    configuration: Configuration
    server_config: ServerConfig
    """As it was launched: on its cards and port, within its budget."""
    hardware: Hardware
    """Its own cards."""
    vram_before_mib: Mapping[str, float]
    """UUID -> used memory of its cards before the launch, MiB."""
    loads: Loads
    questions: Questions
    startup_s: float | None
    ledger: MemoryLedger
    layout: KvLayout | None
    own_pids: tuple[int, ...]
    texts: TextChecks
    log_path: Path | None = None
    """Its growing log; None where it is not ours to see."""
    node: str | None = None
    machine: str | None = None
    request_tokens: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(scenario, profile) -> the 95th percentile of its requests over its whole draw, in tokens; missing: not known."""

    @property
    def target(self) -> Target:
        """Where it is asked."""
        return self.loads.target


def must_answer(questions: Questions) -> None:
    """Raises LaunchError when the server has used up all the time that it may keep us waiting."""
    if questions.limit.over:
        raise LaunchError(no_answer(questions.limit.limit_s, "before the load"))


async def loads_of(
    sweep: SweepContext, configuration: Configuration, questions: Questions, startup: StartupLog, pids: Sequence[int]
) -> Loads:
    """What can be sent to it: asks for its models, the fields that it refuses and its tokens."""
    options, model = sweep.plan.options, configuration.server.served_model_name
    if sweep.site.launcher.starts_servers:  # `bench` has looked, and a server that is not ours may list others
        check_served(model, await served_models(questions), questions.base_url)
    traits = ServerTraits(model=model, judge_text=not dummy_weights(startup, pids))
    loads = Loads(sweep.plan, Target(questions.base_url, options.endpoint, sweep.headers), traits)
    found = await probe_fields(questions, options.endpoint, loads.probe_body(), tuple(options.extra_body))
    must_answer(questions)
    questions.limit.restart(options.timeout_s)
    for line in (found.note(), found.failed and f"a request for one token failed: {found.failed}"):
        if line:
            sweep.note(f"{configuration.config_id}: {line}")
    counts = None
    if found.sends_usage is False:
        counts = (await text_tokens(questions, model, ["Say hello."]))[0]
        told = "its tokens stay unknown" if counts is None else "its /tokenize counts the answers' text instead"
        sweep.note(f"{configuration.config_id}: the server sends no usage that counts tokens: {told}")
    traits = replace(
        traits,
        salt_mode="prefix" if "cache_salt" in found.refused else "cache_salt",
        left_out=frozenset(found.refused),
        length_field=found.length_field,
        tokenize_as=None if counts is None else model,
    )
    stretches = any(scenario.file.scenario.input_tokens for scenario in sweep.plan.scenarios.values())
    prompts = [prompt for scenario in sweep.plan.scenarios.values() for prompt in scenario.prompts]
    if stretches and prompts:
        traits = replace(traits, chars_per_token=await chars_per_token(questions, model, prompts))
    return replace(loads, traits=traits)


async def request_tokens(sweep: SweepContext, ready: ReadyServer) -> dict[tuple[str, str], int]:
    """How long each scenario's requests are; says which are longer than the server takes."""
    for point in sweep.plan.points:
        kind = (point.scenario, point.profile)
        if kind in sweep.request_lengths:
            continue
        draw = ready.loads.whole_draw(point)
        sweep.request_lengths[kind] = await request_lengths(ready.questions, draw)
    known = {kind: lengths for kind, lengths in sweep.request_lengths.items() if lengths is not None}
    for (scenario, _), lengths in known.items():
        limit = ready.ledger.startup.max_model_len_effective or lengths.max_model_len
        if limit is not None and lengths.longest > limit:
            sweep.note(
                f"{scenario}: its longest requests take {lengths.longest:,} tokens, and the server takes {limit:,} "
                "(max_model_len): those will fail. Give --input-tokens or --output-tokens, or a larger "
                "--max-model-len",
                ready.configuration.config_id,
            )
    return {kind: lengths.p95 for kind, lengths in known.items()}

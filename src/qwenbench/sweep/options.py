"""What a sweep was asked for: one value that the command line, a campaign file and run.json share.

Each field is declared once, with what the command line needs to offer it (`Flag`); cli/option_parameters.py makes the
parameters of `sweep` and `bench` from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from qwenbench.engine.config import ATTACHED
from qwenbench.errors import UsageError
from qwenbench.sweep.option_values import (
    Reader,
    any_word,
    fraction,
    gamma_shape,
    interference,
    json_object,
    list_of,
    match_or_list,
    names_or_all,
    not_negative,
    one_of,
    parse_vary,
    positive,
    profile_names,
    read_header_env,
    request_limits,
    share,
)

SERVERS = "Servers"
SCENARIOS = "What is sent"
LOAD = "Load"
REPEATS = "Repeats and order"
CLUSTER = "Cluster"

SHAPED = ("sweep", "bench")
"""Commands whose load points the user chooses; `tune` chooses its own."""

_REQUESTS = re.compile(r"\d+x?\Z|\d+\.\d+x\Z")


@dataclass(frozen=True, slots=True)
class Flag:
    """How the command line offers a field. A reader must not have the name of a field: annotations are looked up in the
    class first."""

    help: str
    panel: str
    """The box of --help that it stands in."""
    metavar: str | None = None
    read: Reader | None = None
    """From the text given to the field's value; None: typer reads the field's own type."""
    names: tuple[str, ...] = ()
    """Option names; without any, the field's name with dashes and without its unit."""
    repeatable: bool = False
    default: str | None = None
    """What --help says the default is, where the field's own default does not say it."""
    commands: tuple[str, ...] = ("sweep", "bench", "tune")


INTS, FLOATS, WORDS = list_of(int, positive), list_of(float, positive), list_of(str, any_word)


def _server(text: str, metavar: str | None = None, read: Reader | None = None, **more: Any) -> Flag:
    return Flag(text, SERVERS, metavar, read, commands=("sweep", "tune"), **more)


def _shaped(text: str, panel: str, metavar: str | None = None, read: Reader | None = None, **more: Any) -> Flag:
    return Flag(text, panel, metavar, read, commands=SHAPED, **more)


class SweepOptions(BaseModel):
    """Options of `sweep`, checked. None means: not asked for, so the deployment's or the scenario's value holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # fmt: off
    capture: Annotated[tuple[int, ...] | None, _server("Largest CUDA graph batches to try", "N,..", INTS, names=("--capture", "--max-cudagraph-capture-size"))] = None
    max_num_seqs: Annotated[Literal["match"] | tuple[int, ...], _server("`match` (follow capture) or values crossed with it", "match|N,..", match_or_list)] = "match"
    gpu_memory_utilization: Annotated[tuple[float, ...] | None, _server("Fractions of the card; with --card of that card", "F,..", list_of(float, fraction))] = None
    vary: Annotated[dict[str, tuple[str, ...]], _server("Any other vLLM flag, or env.NAME, as a dimension; `set` and `unset` are values, JSON too (repeatable)", "FLAG=V1,V2", parse_vary, repeatable=True)] = Field(default_factory=dict)
    launcher: Annotated[Literal["docker", "process", "sim", "url"], _server("How servers are started", "docker|process|sim", one_of("docker", "process", "sim", otherwise=" (a server that runs already: bench)"))] = "docker"
    deployment: Annotated[str, _server("Deployment to start from", "NAME|FILE")] = "generic"
    card: Annotated[str | None, _server("sim: the card to simulate (rtx-5090); else keep this smaller card's budget")] = None
    devices: Annotated[tuple[str, ...], Flag("Cards to use; several run side by side (bench: the cards that the server is on)", SERVERS, "0,1|UUID,..", WORDS)] = ()
    server_log: Annotated[str | None, Flag("The server's log: a file, or a container's name", SERVERS, "FILE|NAME", commands=("bench",))] = None
    model_folder: Annotated[str | None, Flag("The model's config.json or folder: its shape makes KV figures", SERVERS, "PATH", names=("--model-config",), commands=("bench",))] = None
    model: Annotated[str | None, _server("Model to serve")] = None
    served_model_name: Annotated[str | None, Flag("Name under which it is served, and asked for", SERVERS)] = None
    image: Annotated[str | None, _server("docker: image and tag")] = None
    cache_dir: Annotated[str | None, _server("docker: host folder for /root/.cache")] = None
    port: Annotated[int | None, _server("Loopback port", default="8000")] = Field(default=None, ge=1, le=65535)
    vllm_command: Annotated[str, _server("process: what to run", "CMD")] = "vllm serve"
    vllm_arg: Annotated[tuple[str, ...], _server("Further argument for vLLM, last (repeatable)", repeatable=True)] = ()
    caches: Annotated[Literal["kept", "fresh"], _server("Compile and tuning caches: kept between launches, or empty for each", "kept|fresh", one_of("kept", "fresh"))] = "kept"
    startup_timeout_s: Annotated[float, Flag("Longest wait for a server", SERVERS, "S", default="1200; bench 60, --timeout at most")] = Field(default=1200.0, gt=0)

    scenario: Annotated[tuple[str, ...], Flag("Scenarios: names in scenarios/ or .yaml paths, or `synthetic`", SCENARIOS, "NAME,..", WORDS, default="all four")] = ("conversation", "math", "code", "multilingual")
    input_tokens: Annotated[str | None, Flag("Prompt length in tokens", SCENARIOS, "N|MIN-MAX")] = None
    output_tokens: Annotated[str | None, Flag("Answer length in tokens", SCENARIOS, "N|MIN-MAX")] = None
    ignore_eos: Annotated[bool, Flag("Force each answer to its drawn length, or leave it to the model", SCENARIOS, names=("--ignore-eos/--natural-stop",), default="--ignore-eos")] = True
    natural_stop_check: Annotated[bool, Flag("Before the load, let a few answers per scenario end by themselves and look for broken output", SCENARIOS, names=("--natural-stop-check/--no-natural-stop-check",), default="on")] = True
    natural_stop_limit_s: Annotated[float, Flag("Longest time for that check, for each launch", SCENARIOS, "S")] = Field(default=60.0, gt=0)
    prefix_reuse: Annotated[Literal["none", "natural"], Flag("none: no prompt finds another's prefix cached; natural: as it comes", SCENARIOS)] = "none"
    profile: Annotated[tuple[str, ...], Flag("Sampling profiles, each in turn; `all`, or `none` (no sampling fields)", SCENARIOS, "NAME,..", profile_names, default="the scenario's")] = ()
    endpoint: Annotated[Literal["chat", "completions"], Flag("Which API is asked", SCENARIOS)] = "chat"
    extra_body: Annotated[dict[str, Any], Flag("JSON object added to each request's body; null takes a field out", SCENARIOS, "JSON", json_object)] = Field(default_factory=dict)
    header_env: Annotated[dict[str, str], Flag("Header whose value is taken from an environment variable (repeatable)", SCENARIOS, "NAME=ENV", read_header_env, repeatable=True)] = Field(default_factory=dict)
    bearer_env: Annotated[str | None, Flag("Environment variable that holds the API key", SCENARIOS, "NAME", names=("--api-key-env",), commands=("bench",))] = None
    save_text: Annotated[bool, Flag("Keep answers in the run folder", SCENARIOS)] = False

    concurrency: Annotated[tuple[int, ...], _shaped("Client streams, closed loop", LOAD, "N,..", INTS)] = (1, 8, 32, 64)
    rate: Annotated[tuple[float, ...], _shaped("Open loop: sessions per second", LOAD, "R,..", FLOATS)] = ()
    burstiness: Annotated[float | Literal["constant"] | None, _shaped("With --rate: gamma shape (1 is Poisson, below burstier), or `constant`", LOAD, "B", gamma_shape)] = None
    ramp_s: Annotated[float, _shaped("With --rate: seconds over which the rate grows", LOAD, "S")] = Field(default=0.0, ge=0)
    trace: Annotated[str | None, _shaped("Open loop: replay a trace (JSON Lines or CSV)", LOAD, "FILE")] = None
    trace_unit: Annotated[Literal["s", "ms"] | None, Flag("Unit of the trace's timestamps", LOAD, default="as its form says")] = None
    speed: Annotated[float, Flag("Replay the trace so many times as fast", LOAD, "X")] = Field(default=1.0, gt=0, le=1e6)
    interfere: Annotated[str | None, Flag("Long prompts beside the load: tokens at a rate a second", LOAD, "TOKENS@RATE", interference)] = None
    requests: Annotated[str | None, _shaped("Send so many requests per load point, then let it drain", LOAD, "N|Nx", default="streams stay full until a steady window holds 4x, at least 16")] = None
    duration_s: Annotated[float | None, _shaped("Load point by time instead", LOAD, "S")] = Field(default=None, gt=0)
    timeout_s: Annotated[float, Flag("Longest time for one request", LOAD, "S")] = Field(default=600.0, gt=0)
    slo: Annotated[dict[str, Annotated[float, Field(allow_inf_nan=True)]], _shaped("Per-request limits for goodput, e.g. ttft=1000ms,tpot=25ms", LOAD, "METRIC=LIMIT,..", request_limits)] = Field(default_factory=dict)
    client_processes: Annotated[int | None, Flag("Client processes", LOAD, default="from cores and streams")] = Field(default=None, ge=1)
    client_cpus: Annotated[tuple[int, ...], Flag("Pin client processes to these CPUs", LOAD, "LIST", list_of(int, not_negative))] = ()

    client: Annotated[
        Literal["local", "remote"],
        Flag(
            "With --cluster: the load comes from the server's node, or from another",
            CLUSTER,
            commands=("sweep",),
        ),
    ] = "local"
    client_nodes: Annotated[
        int | None,
        Flag("With --cluster: nodes that send the load together", CLUSTER, commands=("bench",), default="1"),
    ] = Field(default=None, ge=1, le=1000)

    repeats: Annotated[int, _shaped("Repeats of each point within a launch", REPEATS)] = Field(default=1, ge=1, le=1000)
    relaunch_repeats: Annotated[int, Flag("Launches per configuration", REPEATS, commands=("sweep",))] = Field(default=1, ge=1, le=100)
    only: Annotated[tuple[str, ...], Flag("Measure these configurations of the plan only, by name (those in doubt); `all` again", REPEATS, "NAME,..", names_or_all, commands=("sweep",))] = ()
    until_ci: Annotated[float | None, _shaped("Repeat until the 95 % interval of output tokens/s is so narrow", REPEATS, "5%", share)] = Field(default=None, gt=0, lt=1)
    order: Annotated[Literal["listed", "shuffled"], _shaped("Order of load points; shuffled by the seed", REPEATS)] = "shuffled"
    seed: Annotated[int, Flag("Seed of everything that is drawn", REPEATS)] = Field(default=0, ge=0)
    prefill_cost: Annotated[bool, Flag("Before the load, see what a prompt costs by its length, one at a time (a few seconds a launch)", LOAD, names=("--prefill-cost/--no-prefill-cost",), default="on, off when simulated")] = True
    ladder: Annotated[bool, Flag("After the load, send prompts of 1k, 4k, 16k, ... tokens, alone and in pairs: do they kill it?", LOAD)] = False
    soak_min: Annotated[float | None, Flag("After the load, hold its heaviest point so many minutes: does memory grow?", LOAD, "MIN", names=("--soak",))] = Field(default=None, gt=0)
    canary: Annotated[bool, Flag("Ask 32 questions with known answers first", REPEATS)] = False
    force: Annotated[bool, _server("Start configurations that cannot work; take over another host's lock")] = False
    # fmt: on

    @property
    def attached(self) -> bool:
        """Whether the server is there already (bench)."""
        return self.launcher == ATTACHED

    @property
    def until_steady(self) -> bool:
        """Whether a closed loop's points are refilled until they were steady, instead of sending so many requests."""
        return self.requests is None and self.duration_s is None and not self.rate and self.trace is None

    @field_validator("requests")
    @classmethod
    def _requests(cls, value: str | None) -> str | None:
        if value is not None and (not _REQUESTS.match(value) or float(value.rstrip("x")) <= 0):
            raise ValueError("give N or Nx, e.g. 200 or 4x")
        return value

    @field_validator("profile", mode="before")
    @classmethod
    def _profile(cls, value: Any) -> Any:
        """One name, or none at all: as run.json and campaign files held it before lists were taken."""
        return () if value is None else profile_names(value, "--profile") if isinstance(value, str) else value

    @field_serializer("slo", when_used="json")
    def _slo(self, limits: dict[str, float]) -> dict[str, float | str]:
        """JSON has no infinity: an open limit is kept as the word that pydantic reads again."""
        return {name: "inf" if math.isinf(limit) else limit for name, limit in limits.items()}


FLAGS: dict[str, Flag] = {
    name: flag for name, field in SweepOptions.model_fields.items() for flag in field.metadata if isinstance(flag, Flag)
}
"""Field -> how the command line offers it, in the order of declaration."""


def flags_of(command: str) -> dict[str, Flag]:
    """The fields that this command offers."""
    return {name: flag for name, flag in FLAGS.items() if command in flag.commands}


def option_name(field: str) -> str:
    """The option of a field, as errors name it."""
    names = FLAGS[field].names
    return names[0].partition("/")[0] if names else "--" + field.removesuffix("_s").replace("_", "-")


def checked_options(fields: Mapping[str, Any]) -> SweepOptions:
    """SweepOptions of these fields. Raises UsageError with the first option that cannot be used."""
    try:
        return SweepOptions.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0]) if problem["loc"] else ""
        name = option_name(field) if field in SweepOptions.model_fields else f"option {field}"
        message = problem["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name} {problem.get('input')!r}: {message}.") from None

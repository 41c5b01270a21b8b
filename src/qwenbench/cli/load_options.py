"""Options that `sweep` and `bench` share: what is sent, and how. All unset by default: see sweep/options.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from qwenbench.errors import UsageError

SCENARIOS = "What is sent"
LOAD = "Load"
REPEATS = "Repeats and order"
RUN = "Run folder"


def _option(help_text: str, panel: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=metavar, show_default=False)


Scenario = Annotated[
    str | None,
    _option("Scenarios: names in scenarios/ or .yaml paths, or `synthetic` (default: all four)", SCENARIOS),
]
InputTokens = Annotated[str | None, _option("Prompt length in tokens", SCENARIOS, metavar="N|MIN-MAX")]
OutputTokens = Annotated[str | None, _option("Answer length in tokens", SCENARIOS, metavar="N|MIN-MAX")]
IgnoreEos = Annotated[
    bool | None,
    typer.Option(
        "--ignore-eos/--natural-stop",
        help="Force each answer to its drawn length, or leave it to the model (default: --ignore-eos)",
        rich_help_panel=SCENARIOS,
        show_default=False,
    ),
]
PrefixReuse = Annotated[
    str | None,
    _option("none: no prompt finds another's prefix cached; natural: as it comes (default: none)", SCENARIOS),
]
Profile = Annotated[str | None, _option("Sampling profile, or `all` for each in turn (default: scenario's)", SCENARIOS)]
Endpoint = Annotated[str | None, _option("chat or completions (default: chat)", SCENARIOS)]
ExtraBody = Annotated[str | None, _option("JSON object added to each request's body", SCENARIOS, metavar="JSON")]
SaveText = Annotated[bool | None, typer.Option("--save-text", help="Keep answers in the run folder", show_default=False, rich_help_panel=SCENARIOS)]  # fmt: skip  # noqa: E501
HeaderEnv = Annotated[
    list[str] | None,
    _option("Header whose value is taken from an environment variable (repeatable)", SCENARIOS, metavar="NAME=ENV"),
]
Concurrency = Annotated[str | None, _option("Client streams, closed loop (default: 1,8,32,64)", LOAD, metavar="N,..")]
Rate = Annotated[str | None, _option("Open loop: sessions per second", LOAD, metavar="R,..")]
Burstiness = Annotated[
    str | None, _option("With --rate: gamma shape (1 is Poisson, below burstier), or `constant`", LOAD, metavar="B")
]
Ramp = Annotated[float | None, _option("With --rate: seconds over which the rate grows", LOAD, "--ramp", metavar="S")]
Trace = Annotated[str | None, _option("Open loop: replay a JSONL trace with timestamps", LOAD, metavar="FILE")]
Requests = Annotated[str | None, _option("Requests per load point (default: 4x, at least 16)", LOAD, metavar="N|Nx")]
Duration = Annotated[float | None, _option("Load point by time instead", LOAD, "--duration", metavar="S")]
Timeout = Annotated[float | None, _option("Longest time for one request (default: 600)", LOAD, metavar="S")]
Slo = Annotated[str | None, _option("Per-request limits for goodput, e.g. ttft=1000ms,tpot=25ms", LOAD)]
ClientProcesses = Annotated[int | None, _option("Client processes (default: from cores and streams)", LOAD)]
ClientCpus = Annotated[str | None, _option("Pin client processes to these CPUs", LOAD, metavar="LIST")]
Repeats = Annotated[int | None, _option("Repeats of each point within a launch (default: 1)", REPEATS)]
UntilCi = Annotated[
    str | None, _option("Repeat until the 95 % interval of output tokens/s is so narrow", REPEATS, metavar="5%")
]
Order = Annotated[str | None, _option("listed or shuffled (by the seed) (default: shuffled)", REPEATS)]
Seed = Annotated[int | None, _option("Seed of everything that is drawn (default: 0)", REPEATS)]
Canary = Annotated[bool | None, typer.Option("--canary", help="Ask 32 questions with known answers first", show_default=False, rich_help_panel=REPEATS)]  # fmt: skip  # noqa: E501
Out = Annotated[str, typer.Option("--out", help="Folder for runs", rich_help_panel=RUN, metavar="DIR")]
RunId = Annotated[str | None, _option("Name of the run (default: the time)", RUN)]
NoReport = Annotated[bool, typer.Option("--no-report", help="Do not build report.html", rich_help_panel=RUN)]


def load_fields(given: dict[str, Any]) -> dict[str, Any]:
    """From the parameters of a command to fields of SweepOptions; only what was given.

    Raises UsageError for lists with empty, zero, negative, non-numeric or repeated values and malformed options.
    """
    from qwenbench.sweep.options import parse_limits, parse_list, positive, read_header_env

    fields: dict[str, Any] = {}
    lists = {
        "concurrency": ("--concurrency", int, positive),
        "rate": ("--rate", float, positive),
        "client_cpus": ("--client-cpus", int, lambda value: None if value >= 0 else "must not be negative"),
        "scenario": ("--scenario", str, lambda value: None),
    }
    for name, value in given.items():
        if value is None:
            continue
        if name in lists:
            option, kind, check = lists[name]
            fields[name] = parse_list(value, option, kind, check)
        elif name == "slo":
            fields[name] = _known_limits(parse_limits(value, "--slo"))
        elif name == "header_env":
            fields[name] = read_header_env(value)
        elif name == "extra_body":
            fields[name] = _json_object(value)
        elif name == "burstiness":
            fields[name] = _burstiness(value)
        elif name == "until_ci":
            fields[name] = _share(value)
        else:
            fields[{"duration": "duration_s", "timeout": "timeout_s", "ramp": "ramp_s"}.get(name, name)] = value
    return fields


def _known_limits(limits: dict[str, float]) -> dict[str, float]:
    known = ("ttft", "ttfo", "tpot", "itl", "e2e")
    for name in limits:
        if name not in known:
            raise UsageError(f"--slo {name}: unknown. Per-request limits: {', '.join(known)} (e.g. ttft=1000ms).")
    return limits


def _json_object(text: str) -> dict[str, Any]:
    import orjson

    from qwenbench.masking import is_secret_name, refuse_secret_arguments

    refuse_secret_arguments([text], "--extra-body")
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError(f"--extra-body: no valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise UsageError('--extra-body: a JSON object is needed, e.g. {"seed": 1}.')
    secret = next((name for name in value if is_secret_name(name)), None)
    if secret:
        raise UsageError(f"--extra-body: {secret} carries a secret; send it as a header with --header-env.")
    return value


def _burstiness(text: str) -> float | str:
    if text == "constant":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--burstiness {text!r}: give a number above 0, or `constant`.")
    return value


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"--until-ci {text!r}: give a share of the mean, e.g. 5%.")
    return value


def checked_options(fields: dict[str, Any]) -> Any:
    """SweepOptions of these fields. Raises UsageError with the first option that cannot be used."""
    from pydantic import ValidationError

    from qwenbench.sweep.options import SweepOptions

    try:
        return SweepOptions.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0]).removesuffix("_s").replace("_", "-") if problem["loc"] else "options"
        raise UsageError(
            f"--{name} {problem.get('input')!r}: {problem['msg'].removeprefix('Value error, ')}."
        ) from None


def masked_command_line(words: Sequence[str]) -> list[str]:
    """The command line as run.json keeps it."""
    from qwenbench.masking import Masker

    masker = Masker.from_environment()
    return ["qwenbench", *(masker(word) for word in words)]

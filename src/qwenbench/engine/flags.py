"""vLLM's command line as flags by their usual names, in whatever spelling it was given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwenbench.engine.config import ServerConfig
from qwenbench.errors import UsageError

_SHORT = {
    "tp": "tensor-parallel-size", "pp": "pipeline-parallel-size", "dp": "data-parallel-size",
    "cc": "compilation-config", "O": "compilation-config", "sc": "speculative-config", "ac": "attention-config",
    "kv-cache-memory": "kv-cache-memory-bytes", "capture": "max-cudagraph-capture-size",
    "cuda-graph-sizes": "cudagraph-capture-sizes",
}  # fmt: skip
SWITCHES = {
    "enforce-eager", "language-model-only", "enable-prefix-caching", "no-enable-prefix-caching", "async-scheduling",
    "no-async-scheduling", "trust-remote-code", "enable-expert-parallel", "enable-chunked-prefill",
    "no-enable-chunked-prefill", "calculate-kv-scales", "enable-auto-tool-choice",
}  # fmt: skip
"""Flags without a value."""


def flags_of(config: ServerConfig) -> dict[str, str | None]:
    """A configuration's flags by their usual names; extra arguments come last, as vLLM takes the last one."""
    return _usual_names({**config.flags, **parse_flags(config.extra_args)})


def parse_flags(arguments: Sequence[str]) -> dict[str, str | None]:
    """vLLM's command line as flags: `--name value`, `--name=value`, `--name`, `-tp 2`, `--json-flag.key value`."""
    flags: dict[str, str | None] = {}
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        index += 1
        if not argument.startswith("-") or re.fullmatch(r"-\d.*", argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if equals:
            flags[name] = value
        elif name in SWITCHES or index >= len(arguments) or re.match("--?[A-Za-z]", arguments[index]):
            flags[name] = None
        else:
            flags[name] = arguments[index]
            index += 1
    return _usual_names(flags)


def _usual_names(flags: Mapping[str, str | None]) -> dict[str, str | None]:
    """Dashes for underscores, long names for short ones, and dotted keys gathered into one JSON object."""
    usual: dict[str, str | None] = {}
    dotted: dict[str, dict[str, Any]] = {}
    for name, value in flags.items():
        head, dot, key = name.partition(".")
        head = _SHORT.get(head, head.replace("_", "-"))
        if not dot:
            usual[head] = value
            continue
        try:
            dotted.setdefault(head, {})[key.replace("-", "_")] = json.loads(value or "true")
        except (ValueError, RecursionError):
            dotted.setdefault(head, {})[key.replace("-", "_")] = value
    for head, values in dotted.items():
        usual[head] = json.dumps({**json_flag(usual, head), **values})
    for short, key in (("spec-method", "method"), ("spec-tokens", "num_speculative_tokens"), ("spec-model", "model")):
        if short in usual:
            value = usual.pop(short)
            given = int(value) if value is not None and re.fullmatch(r"\d{1,9}", value) else value
            usual["speculative-config"] = json.dumps({**json_flag(usual, "speculative-config"), key: given})
    return usual


def json_flag(flags: Mapping[str, str | None], name: str) -> dict[str, Any]:
    """The object that a flag holds; empty where it is unset or holds another value. Raises UsageError for no JSON."""
    text = flags.get(name)
    if not text:
        return {}
    if re.fullmatch(r"[\w]+=\d{1,9}(,[\w]+=\d{1,9})*", text):  # image=2,video=0, as older versions take it
        return {key: int(number) for key, _, number in (part.partition("=") for part in text.split(","))}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if name == "compilation-config":
            return {}  # also a level: -O2
        place = (
            f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "too deep or long"
        )
        raise UsageError(f"--{name} {text[:200]}: no JSON ({place})") from None
    return value if isinstance(value, dict) else {}

"""Before a launch: what the configuration will hold, whether it can start at all, and what is known to go wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from qwenbench.capacity.configuration import ConfigPlan, plan_config
from qwenbench.capacity.kv import release_minor
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.engine.config import ServerConfig
from qwenbench.engine.failures import Failure
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.plan import Plan
from qwenbench.workload.profiles import PROFILES

Severity = Literal["warn", "refuse"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One known problem that a configuration has."""

    rule: str
    severity: Severity
    """`refuse`: the sweep starts it only with --force."""
    text: str
    """What happens and what to do instead."""
    source: str
    """Where this is known from."""


@dataclass(frozen=True, slots=True)
class _Facts:
    config: ServerConfig
    minor: int | None
    """y of vLLM 0.y; None when the version is not known."""
    concurrencies: Sequence[int]
    profiles: Sequence[str]
    hybrid: bool
    largest_context: int | None

    def has(self, flag: str) -> bool:
        """Whether a flag is set, among the typed flags or the extra arguments."""
        dashed = f"--{flag}"
        return flag in self.config.flags or any(
            argument == dashed or argument.startswith(dashed + "=") for argument in self.config.extra_args
        )

    def value(self, flag: str) -> str | None:
        """A flag's value, extra arguments last (vLLM takes the last one)."""
        found = self.config.flag(flag)
        arguments = self.config.extra_args
        for number, argument in enumerate(arguments):
            if argument == f"--{flag}" and number + 1 < len(arguments):
                found = arguments[number + 1]
            elif argument.startswith(f"--{flag}="):
                found = argument.partition("=")[2]
        return found

    def number(self, flag: str) -> int | None:
        """A flag's value as a whole number, None for anything else."""
        value = self.value(flag)
        return int(value) if value is not None and value.isdigit() else None


SCALES_REMOVED = 32
"""Minor version whose argument parser no longer knows --calculate-kv-scales (read in 0.32.0 and 0.33.0)."""
SCALES_GUARDED = 19
"""First minor version after 0.18 (the last known to freeze corrupted scales); 0.20.2 was read to ignore the flag."""
ESTIMATE_DEFAULT = 21
"""Minor version from which graph memory is estimated by default, as vLLM's own start-up message says."""


def _kv_scales(facts: _Facts) -> Problem | None:
    if not facts.has("calculate-kv-scales"):
        return None
    if facts.minor is not None and facts.minor >= SCALES_REMOVED:
        return Problem(
            "kv-scales-removed",
            "refuse",
            "--calculate-kv-scales no longer exists in this vLLM: it exits with an argument error. Leave it out.",
            "argument parser of vLLM 0.32.0 and 0.33.0",
        )
    if not facts.hybrid:
        return None
    if facts.minor is not None and facts.minor >= SCALES_GUARDED:
        return Problem(
            "kv-scales-ignored",
            "warn",
            "--calculate-kv-scales is ignored on hybrid models (a warning in the log): FP8 keys and values are stored "
            "at scale 1.0. Leave it out, and check answers with --canary.",
            "vLLM pull request 37565",
        )
    if not _fp8(facts):
        return None
    return Problem(
        "fp8-kv-scales-garbage",
        "refuse",
        "an FP8 KV cache with --calculate-kv-scales makes a hybrid model answer gibberish up to vLLM 0.18: the scales "
        "are taken while the recurrent states hold nothing. Use --kv-cache-dtype auto.",
        "vLLM issue 37554; model card of ig1/Qwen3.5-9B-NVFP4, About FP8 KV cache",
    )


def _fp8(facts: _Facts) -> bool:
    return (facts.value("kv-cache-dtype") or "auto").startswith("fp8")


def _fp8_unscaled(facts: _Facts) -> Problem | None:
    if not (facts.hybrid and _fp8(facts)) or facts.has("calculate-kv-scales"):
        return None
    return Problem(
        "fp8-kv-unscaled",
        "warn",
        "an FP8 KV cache at scale 1.0 (no calibrated scales in the checkpoint) may cost accuracy on this hybrid model. "
        "Add --canary and --natural-stop, which show it as numbers.",
        "vLLM issue 54623; model card of ig1/Qwen3.5-9B-NVFP4, About FP8 KV cache",
    )


def _capture_too_small(facts: _Facts) -> Problem | None:
    capture = facts.number("max-cudagraph-capture-size")
    if capture is None or not facts.concurrencies or facts.has("enforce-eager"):
        return None
    most = max(facts.concurrencies)
    seqs = facts.number("max-num-seqs")
    batch = most if seqs is None else min(most, seqs)
    if batch <= capture:
        return None
    return Problem(
        "graph-misses",
        "warn",
        f"up to {batch} requests will decode together, but graphs are captured up to {capture}: larger batches decode "
        f"without graphs. Use --max-cudagraph-capture-size {batch}, or --max-num-seqs {capture}.",
        "recorded on vLLM 0.20.2: 24.0 ms a token at 128 streams with 64 captured, 13 ms with 128 captured",
    )


def _context_too_long(facts: _Facts) -> Problem | None:
    asked = facts.number("max-model-len")
    if asked is None or facts.largest_context is None or asked <= facts.largest_context:
        return None
    return Problem(
        "context-too-long",
        "refuse",
        f"--max-model-len {asked:,} is more than the {facts.largest_context:,} tokens that the KV cache is predicted "
        "to hold, so vLLM will not start. Use --max-model-len auto.",
        "vLLM's start-up check: `To serve at least one request with the models's max seq len`",
    )


def _no_graph_estimate(facts: _Facts) -> Problem | None:
    if facts.minor is None or facts.minor >= ESTIMATE_DEFAULT or facts.has("enforce-eager"):
        return None
    name = "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"
    setting = facts.config.env.get(name)
    if setting is None and (facts.minor >= SCALES_GUARDED or name in facts.config.env_names):
        # 0.20.2 was recorded with the estimate on by default; a variable passed through may hold anything
        return None
    if setting not in (None, "0"):
        return None
    return Problem(
        "no-graph-estimate",
        "warn",
        f"{name} is off: the memory of CUDA graphs comes on top of --gpu-memory-utilization and may run the card out "
        f"of memory. Set {name}=1.",
        "model card of ig1/Qwen3.5-9B-NVFP4, Inference; vLLM's start-up message on 0.18 and 0.20.2",
    )


def _thinking_without_parser(facts: _Facts) -> Problem | None:
    thinking = [name for name in facts.profiles if name in PROFILES and PROFILES[name].enable_thinking]
    if not thinking or facts.has("reasoning-parser"):
        return None
    return Problem(
        "no-reasoning-parser",
        "warn",
        f"profile {', '.join(thinking)} thinks, but no --reasoning-parser is set: reasoning comes back as the answer, "
        "so TTFO equals TTFT and reasoning tokens are not told apart. Add --reasoning-parser qwen3.",
        "model card of ig1/Qwen3.5-9B-NVFP4, Inference",
    )


RULES: tuple[Callable[[_Facts], Problem | None], ...] = (
    _kv_scales,
    _fp8_unscaled,
    _capture_too_small,
    _context_too_long,
    _no_graph_estimate,
    _thinking_without_parser,
)


def known_problems(
    config: ServerConfig,
    *,
    vllm_version: str | None,
    concurrencies: Sequence[int] = (),
    profiles: Sequence[str] = (),
    hybrid: bool = False,
    largest_context: int | None = None,
) -> list[Problem]:
    """The known problems of a configuration under this load, the ones to refuse first.

    `vllm_version` may be unknown (None or no version number): rules that need it then stay silent, but for FP8
    scales, which are taken at their worst. `largest_context` is the predicted KV cache of one request in tokens.
    """
    try:
        minor = release_minor(vllm_version) if vllm_version else None
    except UsageError:
        minor = None
    facts = _Facts(config, minor, concurrencies, profiles, hybrid, largest_context)
    found = [problem for rule in RULES if (problem := rule(facts)) is not None]
    return sorted(found, key=lambda problem: problem.severity != "refuse")


SIMULATED_VERSION = "0.20.2"
_IMAGE_VERSION = re.compile(r":v?(\d+\.\d+\.\d+)")


@dataclass(frozen=True)
class PreflightResult:
    """What is known of a configuration before it is launched."""

    prediction: Mapping[str, Any] | None
    """prediction.json: the keys of `plan --json`; None where card or model are not known."""
    problems: tuple[Problem, ...]
    cannot_start: str | None

    def refusal(self) -> Failure | None:
        """Why it is not launched without --force, or None."""
        if self.cannot_start is not None:
            advice = "Change the configuration, or start it all the same with --force."
            return Failure("cannot_start", self.cannot_start, advice, phase="plan")
        refused = next((problem for problem in self.problems if problem.severity == "refuse"), None)
        if refused is None:
            return None
        return Failure(refused.rule, refused.text, f"Source: {refused.source}. --force starts it.", phase="plan")


class Preflight:
    """Looks ahead from the last server that was seen to start (the probe); the first launch has none."""

    def __init__(self, plan: Plan, launcher: str, hardware: Hardware, shape: ModelShape | None) -> None:
        self._plan = plan
        self._launcher = launcher
        self._hardware = hardware
        self._shape = shape
        self._probe: StartupLog | None = None

    def learn(self, startup: StartupLog) -> None:
        """Keeps the first start that gives memory figures as the probe for those that follow."""
        if self._probe is None and startup.recognised and startup.kv_cache_gib is not None:
            self._probe = startup

    def check(self, server: ServerConfig) -> PreflightResult:
        """What is known of one configuration, as it will be launched."""
        version = self._version(server)
        planned = self._planned(server, version)
        problems = known_problems(
            server,
            vllm_version=version,
            concurrencies=[point.concurrency for point in self._plan.points if point.concurrency is not None],
            profiles=sorted({point.profile for point in self._plan.points}),
            hybrid=self._shape.hybrid if self._shape else False,
            largest_context=planned.prediction.kv_cache_tokens if planned and planned.prediction else None,
        )
        return PreflightResult(
            prediction=planned.prediction.to_json() if planned and planned.prediction else None,
            problems=tuple(problems),
            cannot_start=planned.cannot_start if planned else None,
        )

    def _version(self, server: ServerConfig) -> str | None:
        if self._probe is not None and self._probe.vllm_version:
            return self._probe.vllm_version
        if self._launcher == "sim":
            return SIMULATED_VERSION
        tag = _IMAGE_VERSION.search(server.docker.image) if self._launcher == "docker" else None
        return tag[1] if tag else None

    def _planned(self, server: ServerConfig, version: str | None) -> ConfigPlan | None:
        if self._shape is None or version is None or self._launcher == "url":
            return None
        total = self._hardware.cuda_total_gib()
        try:
            return plan_config(
                server,
                self._shape,
                version=version,
                card=self._hardware.real_card,
                platform=self._hardware.platform,
                cuda_total_gib=total,
                probe=self._probe if total is not None else None,
                on_gpu=total is not None,
            )
        except UsageError:
            return None  # e.g. a dtype that the arithmetic does not know: vLLM itself will say

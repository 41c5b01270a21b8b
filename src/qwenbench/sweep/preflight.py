"""Before a launch: what the configuration will hold, whether it can start at all, and what is known to go wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qwenbench.capacity.configuration import ConfigPlan, plan_config
from qwenbench.capacity.graphs import sequences_captured
from qwenbench.capacity.kv import blocks_for_gib, kv_cache_tokens, release_minor
from qwenbench.capacity.model_shape import ModelShape
from qwenbench.capacity.settings import Settings, settings_of_config, settings_of_log
from qwenbench.engine.config import ATTACHED, ServerConfig
from qwenbench.engine.failures import Failure
from qwenbench.engine.flags import flags_of
from qwenbench.engine.launchers import version_of_command, version_of_image
from qwenbench.engine.startup_log import StartupLog
from qwenbench.errors import UsageError
from qwenbench.sweep.hardware import Hardware
from qwenbench.sweep.model_files import drafter_shape
from qwenbench.sweep.plan import Plan
from qwenbench.workload.profiles import PROFILES

Severity = Literal["warn", "refuse"]


@dataclass(frozen=True, slots=True)
class Problem:
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
    flags: Mapping[str, str | None]
    """All flags under their usual names, extra arguments last (vLLM takes the last one)."""
    minor: int | None
    """y of vLLM 0.y; None when the version is not known."""
    concurrencies: Sequence[int]
    profiles: Sequence[str]
    hybrid: bool
    largest_context: int | None

    def number(self, flag: str) -> int | None:
        """A flag's value as a whole number, None for anything else."""
        value = self.flags.get(flag) or ""
        return int(value) if value.isdigit() else None

    @property
    def rows_per_sequence(self) -> int:
        """Rows of a decode step for each sequence: 1 + drafted tokens."""
        try:
            return settings_of_config(self.config).rows_per_sequence
        except UsageError:
            return 1  # vLLM itself will say what is wrong with --speculative-config


SCALES_REMOVED = 32
"""Minor version whose argument parser no longer knows --calculate-kv-scales (read in 0.32.0 and 0.33.0)."""
SCALES_GUARDED = 19
"""First minor version after 0.18 (the last known to freeze corrupted scales); 0.20.2 was read to ignore the flag."""
ESTIMATE_DEFAULT = 21
"""Minor version from which graph memory is estimated by default, as vLLM's own start-up message says."""


def _kv_scales(facts: _Facts) -> Problem | None:
    if "calculate-kv-scales" not in facts.flags:
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
    return (facts.flags.get("kv-cache-dtype") or "auto").startswith("fp8")


def _fp8_unscaled(facts: _Facts) -> Problem | None:
    if not (facts.hybrid and _fp8(facts)) or "calculate-kv-scales" in facts.flags:
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
    if capture is None or not facts.concurrencies or "enforce-eager" in facts.flags:
        return None
    most, rows = max(facts.concurrencies), facts.rows_per_sequence
    seqs = facts.number("max-num-seqs")
    batch = most if seqs is None else min(most, seqs)
    held = sequences_captured(capture, rows)
    if batch <= held:
        return None
    drafted = f" of {rows} rows (1 + {rows - 1} drafted tokens)" if rows > 1 else ""
    return Problem(
        "graph-misses",
        "warn",
        f"up to {batch} requests{drafted} will decode together, but graphs are captured up to {capture}: larger "
        f"batches decode without graphs. Use --max-cudagraph-capture-size {batch * rows}, or --max-num-seqs {held}.",
        "recorded on vLLM 0.20.2: 24.0 ms a token at 128 streams with 64 captured, 13 ms with 128 captured; on 0.26.0 "
        "graphs of capture 64 held 16 sequences of MTP with 3 tokens",
    )


def _context_too_long(facts: _Facts) -> Problem | None:
    asked = facts.number("max-model-len")
    if asked is None or facts.largest_context is None or asked <= facts.largest_context:
        return None
    return Problem(
        "context-too-long",
        "refuse",
        f"--max-model-len {asked:,} is more than the {facts.largest_context:,} tokens that the KV cache is predicted "
        "to hold at most, so vLLM will not start. Use --max-model-len auto.",
        "vLLM's start-up check: `To serve at least one request with the models's max seq len`",
    )


def _no_graph_estimate(facts: _Facts) -> Problem | None:
    if facts.minor is None or facts.minor >= ESTIMATE_DEFAULT or "enforce-eager" in facts.flags:
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
    if not thinking or "reasoning-parser" in facts.flags:
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
    scales, which are taken at their worst. `largest_context` is the longest request, in tokens, that the KV cache is
    predicted to hold at most.
    """
    try:
        minor = release_minor(vllm_version) if vllm_version else None
    except UsageError:
        minor = None
    facts = _Facts(config, flags_of(config), minor, concurrencies, profiles, hybrid, largest_context)
    found = [problem for rule in RULES if (problem := rule(facts)) is not None]
    return sorted(found, key=lambda problem: problem.severity != "refuse")


def folder_is_missing(model: str) -> bool:
    """Whether a --model is a path at which nothing is on this host: vLLM would ask the hub for a model of that name
    after half a minute, and say that the repository does not exist."""
    return model.startswith(("/", "./", "../", "~")) and not Path(model).expanduser().exists()


def _missing_folder(model: str) -> Problem:
    text = f"--model {model}: no such folder on this host."
    return Problem("model-folder-missing", "refuse", text, "this host's disk")


SIMULATED_VERSION = "0.20.2"


@dataclass(frozen=True)
class PreflightResult:
    """What is known of a configuration before it is launched."""

    prediction: Mapping[str, Any] | None
    """prediction.json: the keys of `plan --json`; None where card or model are not known."""
    problems: tuple[Problem, ...]
    cannot_start: str | None
    unknown: str | None = None
    """Why nothing is predicted; None where something is."""

    def refusal(self) -> Failure | None:
        if self.cannot_start is not None:
            advice = "Change the configuration, or start it all the same with --force."
            return Failure("cannot_start", self.cannot_start, advice, phase="plan")
        refused = next((problem for problem in self.problems if problem.severity == "refuse"), None)
        if refused is None:
            return None
        return Failure(refused.rule, refused.text, f"Source: {refused.source}. --force starts it.", phase="plan")


class Preflight:
    """Looks ahead from the servers that were seen to start (the probes); the first launch has none."""

    def __init__(self, plan: Plan, launcher: str, hardware: Hardware, shape: ModelShape | None) -> None:
        self._plan = plan
        self._launcher = launcher
        self._hardware = hardware
        self._shape = shape
        self._probes: list[StartupLog] = []
        self._asked_version: str | None = None
        self._asked = False

    def learn(self, startup: StartupLog) -> None:
        """Keeps a start that gives memory figures as a probe for those that follow."""
        if startup.recognised and startup.kv_cache_gib is not None:
            self._probes.append(startup)

    def check(self, server: ServerConfig) -> PreflightResult:
        """What is known of one configuration, as it will be launched."""
        if self._launcher == ATTACHED:  # its flags are not known, so nothing can be said against them
            return PreflightResult(prediction=None, problems=(), cannot_start=None)
        version = self._version(server)
        planned = self._planned(server, version)
        problems = known_problems(
            server,
            vllm_version=version,
            concurrencies=[point.concurrency for point in self._plan.points if point.concurrency is not None],
            profiles=sorted({point.profile for point in self._plan.points}),
            hybrid=self._shape.hybrid if self._shape else False,
            largest_context=self._largest_context(planned),
        )
        missing = (
            [_missing_folder(server.model)] if self._launcher == "process" and folder_is_missing(server.model) else []
        )
        prediction = planned.prediction.to_json() if planned and planned.prediction else None
        return PreflightResult(
            prediction=prediction,
            problems=(*missing, *problems),
            cannot_start=planned.cannot_start if planned else None,
            unknown=None if prediction is not None else self._why_unknown(server, version),
        )

    def _version(self, server: ServerConfig) -> str | None:
        seen = next((probe.vllm_version for probe in self._probes if probe.vllm_version), None)
        if seen is not None:
            return seen
        if self._launcher == "sim":
            return SIMULATED_VERSION
        if self._launcher == "docker":
            return version_of_image(server.docker.image)
        if self._launcher == "process" and not self._asked:
            self._asked = True
            self._asked_version = version_of_command(self._plan.options.vllm_command)
        return self._asked_version

    def _planned(self, server: ServerConfig, version: str | None) -> ConfigPlan | None:
        if self._shape is None or version is None:
            return None
        total = self._hardware.cuda_total_gib()
        on_gpu = total is not None or bool(self._hardware.gpus)
        try:
            settings = settings_of_config(server)
            return plan_config(
                server,
                self._shape,
                version=version,
                card=self._hardware.real_card,
                platform=self._hardware.platform,
                cuda_total_gib=total,
                probe=self._nearest_probe(settings),
                on_gpu=on_gpu,
                cpu_bf16=None if on_gpu else cpu_has_bf16(),
                drafter_shape=drafter_shape(settings.drafter, server.docker.cache_mount),
            )
        except UsageError:
            return None  # e.g. a dtype that the arithmetic does not know: vLLM itself will say

    def _nearest_probe(self, settings: Settings) -> StartupLog | None:
        """Of the servers seen, the one whose settings have most in common with these; the first of equals."""

        def common(probe: StartupLog) -> int:
            seen = settings_of_log(probe)
            names = ("drafter", "text_only", "kv_dtype", "batched_tokens", "tensor_parallel", "capture")
            return sum(getattr(seen, name) == getattr(settings, name) for name in names)

        alike = [probe for probe in self._probes if settings_of_log(probe).tensor_parallel == settings.tensor_parallel]
        return max(alike, key=common, default=None)

    def _largest_context(self, planned: ConfigPlan | None) -> int | None:
        """The longest request that the cache holds at the prediction's optimistic end, tokens."""
        if planned is None or planned.prediction is None or planned.prediction.kv_cache_gib_high is None:
            return None
        if self._shape is None or self._shape.max_position is None:
            return None
        blocks = blocks_for_gib(planned.prediction.kv_cache_gib_high, planned.layout)
        return kv_cache_tokens(blocks, planned.layout, self._shape.max_position)

    def _why_unknown(self, server: ServerConfig, version: str | None) -> str | None:
        if self._shape is None:
            return f"no prediction for {server.model}: its config.json is neither in its folder nor in the model cache"
        if version is not None:
            return None
        docker = self._launcher == "docker"
        who = f"the image {server.docker.image} names no" if docker else "the command does not tell its"
        return f"no prediction before the first launch: {who} vLLM version"


def cpu_has_bf16() -> bool | None:
    """Whether this machine's CPU has AVX512-BF16, which decides the width of a hybrid's states; None: not known."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    flags = next((line for line in text.splitlines() if line.startswith("flags")), None)
    return None if flags is None else "avx512_bf16" in flags.split()

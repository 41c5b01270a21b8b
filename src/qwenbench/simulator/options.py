"""The command line of `vllm serve`, as far as it changes what the simulator does, and the --sim-* flags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qwenbench.capacity.graphs import capture_sizes
from qwenbench.errors import UsageError
from qwenbench.simulator import vllm_flags

MODEL_LENGTH = 262_144
"""Context length of Qwen3.5-9B."""
FAILURES = (
    "oom-at-start",
    "kv-too-small",
    "die-under-load",
    "hang-at-start",
    "exit-silently",
    "crash-first-request",
)
"""What --sim-fail takes."""
SIM_VALUES = ("sim-card", "sim-seed", "sim-startup", "sim-fail", "sim-time-scale")
SIM_BOOLEAN = ("sim-warm",)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """A server as it was asked for. None: not given."""

    model: str
    served_model_names: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    max_num_seqs: int = 256
    capture: int | None = None
    capture_list: tuple[int, ...] = ()
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.9
    max_num_batched_tokens: int = 2048
    max_model_len: int | None = None
    """None: the model's; -1: `auto`, as long as fits."""
    kv_cache_dtype: str = "auto"
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool = False
    enable_prompt_tokens_details: bool = False
    reasoning_parser: str | None = None
    access_log: bool = True
    count_graphs: bool = True
    """Whether the estimate of the CUDA graphs is taken from the KV cache (0.20's default)."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    seed: int = 0
    ignored: Mapping[str, str | None] = field(default_factory=dict)
    """Flags of vLLM that change nothing here."""
    card: str = "rtx-5090"
    startup: str = "fast"
    warm: bool = False
    fail: str | None = None
    time_scale: float = 1.0
    """Every simulated duration is multiplied by this (tests: 0.1 makes a server ten times as fast)."""

    @property
    def capture_sizes(self) -> tuple[int, ...]:
        """Batch sizes that get a CUDA graph: vLLM's list (1, 2, 4, by 8 to 256, then by 16) up to the limit."""
        if self.enforce_eager:
            return ()
        if self.capture_list:
            return self.capture_list
        limit = self.capture if self.capture is not None else min(2 * self.max_num_seqs, 512)
        limit = min(limit, self.max_num_batched_tokens)
        return capture_sizes(limit)


def parse(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> ServeOptions:
    """`serve MODEL --flag value ...` or `MODEL --flag value ...` as a typed value.

    Raises UsageError with argparse's words for what vLLM would refuse.
    """
    words = list(argv)
    if words and words[0] == "serve":
        words = words[1:]
    positional, flags = _split(words)
    model_flag = flags.pop("model", None)
    if len(positional) > 1:
        raise UsageError(f"vllm: error: unrecognized arguments: {' '.join(positional[1:])}")
    model = positional[0] if positional else (model_flag[0] if model_flag else None)
    if model is None:
        raise UsageError("vllm serve: error: no model: give it as the first argument (serve MODEL ...)")
    return _typed(model, flags, environ or {})


def _split(words: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    positional: list[str] = []
    flags: dict[str, list[str]] = {}
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name, equals, inline = word.lstrip("-").partition("=")
        if not word.startswith("--"):
            name = vllm_flags.SHORT.get(name, "")
        root, _, key = name.replace("_", "-").partition(".")
        arity = _arity(root, word)
        values: list[str] = [inline] if equals else []
        if arity != "none" and not equals:
            while at < len(words) and not _is_flag(words[at]):
                values.append(words[at])
                at += 1
                if arity == "one":
                    break
            if not values:
                wanted = "one argument" if arity == "one" else "at least one argument"
                raise UsageError(f"vllm serve: error: argument --{root}: expected {wanted}")
        if key:
            flags.setdefault(root, []).extend([f".{key}", *values])
        elif arity == "none":
            flags.pop(root.removeprefix("no-"), None)
            flags.pop("no-" + root, None)
            flags[root] = values
        else:
            flags[root] = values
    return positional, flags


def _is_flag(word: str) -> bool:
    """Negative numbers are values, as argparse sees it."""
    return word.startswith("-") and not word[1:2].isdigit()


def _arity(name: str, word: str) -> str:
    if name in vllm_flags.BOOLEAN or name.removeprefix("no-") in vllm_flags.BOOLEAN or name in SIM_BOOLEAN:
        return "none"
    if name in vllm_flags.MULTI:
        return "many"
    if name in vllm_flags.VALUE or name in SIM_VALUES:
        return "one"
    raise UsageError(f"vllm: error: unrecognized arguments: {word}")


class _Flags:
    """Typed look-ups that take a flag out, so that what is left was ignored."""

    def __init__(self, flags: dict[str, list[str]]) -> None:
        self.left = flags

    def text(self, name: str, allowed: Sequence[str] = ()) -> str | None:
        values = self.left.pop(name, None)
        if values is None:
            return None
        if allowed and values[0] not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed)
            raise UsageError(
                f"vllm serve: error: argument --{name}: invalid choice: {values[0]!r} (choose from {choices})"
            )
        return values[0]

    def whole(self, name: str, least: int = 1) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            number = _human_int(value)
        except ValueError:
            raise UsageError(f"vllm serve: error: argument --{name}: invalid int value: {value!r}") from None
        if number < least:
            raise UsageError(
                f"vllm serve: error: {name.replace('-', '_')}: Input should be greater than or equal to "
                f"{least} [type=greater_than_equal, input_value={number}, input_type=int]"
            )
        return number

    def number(self, name: str) -> float | None:
        value = self.text(name)
        if value is None:
            return None
        try:
            return float(value)
        except ValueError:
            raise UsageError(f"vllm serve: error: argument --{name}: invalid float value: {value!r}") from None

    def on(self, name: str) -> bool | None:
        if self.left.pop(name, None) is not None:
            return True
        return False if self.left.pop("no-" + name, None) is not None else None


def _human_int(value: str) -> int:
    """vLLM's 1k = 1,000, 1K = 1,024 notation, decimal points with the small letters included."""
    small, big = {"k": 10**3, "m": 10**6, "g": 10**9}, {"K": 2**10, "M": 2**20, "G": 2**30}
    if value[-1:] in small:
        return int(float(value[:-1]) * small[value[-1]])
    if value[-1:] in big:
        return int(value[:-1]) * big[value[-1]]
    return int(value)


def _typed(model: str, raw: dict[str, list[str]], environ: Mapping[str, str]) -> ServeOptions:
    names = tuple(raw.pop("served-model-name", ())) or (model,)
    keys = tuple(raw.pop("api-key", ())) or tuple(filter(None, [environ.get("VLLM_API_KEY")]))
    capture_list = _capture_list(raw.pop("cudagraph-capture-sizes", None))
    flags = _Flags(raw)
    length = flags.text("max-model-len")
    max_model_len = None if length is None else _model_len(length)
    utilization = flags.number("gpu-memory-utilization")
    if utilization is not None and not 0 < utilization <= 1:
        raise UsageError(
            "vllm serve: error: gpu_memory_utilization: Input should be greater than 0 and less than or equal "
            f"to 1 [input_value={utilization}, input_type=float]"
        )
    port = flags.whole("port", least=0)
    if port is not None and port > 65535:
        raise UsageError(f"vllm serve: error: argument --port: {port} is no port (0-65535)")
    seqs = flags.whole("max-num-seqs") or 256
    batched = flags.whole("max-num-batched-tokens") or 2048
    if batched < seqs:
        raise UsageError(
            f"vllm serve: error: max_num_batched_tokens ({batched}) must be greater than or equal to "
            f"max_num_seqs ({seqs})."
        )
    scale = flags.number("sim-time-scale")
    if scale is not None and scale <= 0:
        raise UsageError("--sim-time-scale must be over 0")
    seed = flags.whole("sim-seed", least=0)
    own_seed = flags.whole("seed", least=0)
    access_log_off = flags.on("disable-uvicorn-access-log")
    level = flags.text("uvicorn-log-level", ("critical", "debug", "error", "info", "trace", "warning"))
    return ServeOptions(
        model=model,
        served_model_names=names,
        host=flags.text("host") or "127.0.0.1",
        port=8000 if port is None else port,
        max_num_seqs=seqs,
        capture=flags.whole("max-cudagraph-capture-size"),
        capture_list=capture_list,
        enforce_eager=bool(flags.on("enforce-eager")),
        gpu_memory_utilization=0.9 if utilization is None else utilization,
        max_num_batched_tokens=batched,
        max_model_len=max_model_len,
        kv_cache_dtype=flags.text("kv-cache-dtype") or "auto",
        kv_cache_memory_bytes=flags.whole("kv-cache-memory-bytes"),
        num_gpu_blocks_override=flags.whole("num-gpu-blocks-override"),
        enable_prefix_caching=bool(flags.on("enable-prefix-caching")),
        enable_prompt_tokens_details=bool(flags.on("enable-prompt-tokens-details")),
        reasoning_parser=flags.text("reasoning-parser"),
        count_graphs=environ.get("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", "1") not in ("0", "false", "False"),
        access_log=not access_log_off and level in (None, "debug", "info", "trace"),
        api_keys=keys,
        card=flags.text("sim-card") or "rtx-5090",
        startup=flags.text("sim-startup", ("fast", "real")) or "fast",
        warm=bool(flags.on("sim-warm")),
        fail=flags.text("sim-fail", FAILURES),
        time_scale=1.0 if scale is None else scale,
        seed=seed if seed is not None else own_seed or 0,
        ignored={name: " ".join(values) or None for name, values in flags.left.items()},
    )


def _model_len(value: str) -> int:
    if value in ("auto", "-1"):
        return -1
    try:
        number = _human_int(value)
    except ValueError:
        raise UsageError(
            f"vllm serve: error: argument --max-model-len: invalid human_readable_int_or_auto value: {value!r}"
        ) from None
    if number < 1:
        raise UsageError(f"vllm serve: error: max_model_len must be a positive number, got {number}")
    if number > MODEL_LENGTH:
        raise UsageError(
            f"vllm serve: error: User-specified max_model_len ({number}) is greater than the derived "
            f"max_model_len (max_position_embeddings={MODEL_LENGTH} or model_max_length=None in model's "
            "config.json)."
        )
    return number


def _capture_list(values: list[str] | None) -> tuple[int, ...]:
    if values is None:
        return ()
    try:
        sizes = [int(value) for value in values]
        if len(values) == 1 and values[0].startswith("["):
            sizes = [int(value) for value in json.loads(values[0])]
    except (ValueError, TypeError):
        raise UsageError(
            f"vllm serve: error: argument --cudagraph-capture-sizes: invalid int value: {' '.join(values)!r}"
        ) from None
    if any(size < 1 for size in sizes):
        raise UsageError("vllm serve: error: argument --cudagraph-capture-sizes: sizes must be at least 1")
    return tuple(sorted(set(sizes)))

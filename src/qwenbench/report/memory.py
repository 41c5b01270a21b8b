"""Memory said once: the ledger of servers that were seen, and the plan of configurations that were not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qwenbench.capacity.configuration import ConfigPlan
from qwenbench.capacity.graphs import CAPTURE_GAIN, GAIN_UP_TO_TOKENS
from qwenbench.capacity.predict import capture_gain_of
from qwenbench.engine.startup_log import StartupLog
from qwenbench.observe.ledger import MemoryLedger
from qwenbench.report.document import UNKNOWN, Block, Bullets, Heading, Inline, Number, Paragraph, Row, Table, facts


def ledger_document(ledger: MemoryLedger, questions: Sequence[str] = ()) -> Iterator[Block]:
    """One server's ledger: where its memory went, what it printed, what it costs in silence."""
    startup = ledger.startup
    yield Heading(f"Memory ledger, vLLM {startup.vllm_version or '?'}")
    for question in questions:
        yield Paragraph(question, "warning")
    yield facts(*_memory_rows(ledger), *_setting_rows(startup), *_time_rows(ledger))
    if settings := ledger.speed_settings:
        yield Heading("Costs speed", 3)
        costs = (found.cost or "cost not measured here" for found in settings)
        yield Bullets([f"{s.state}: {cost}. {_sentence(s.advice)}" for s, cost in zip(settings, costs, strict=True)])
    if startup.warnings:
        yield Heading("Warnings of the log", 3)
        yield Bullets(list(startup.warnings))


def ledgers_document(named: Sequence[tuple[str, MemoryLedger]], remarks: Sequence[str] = ()) -> Iterator[Block]:
    yield Heading("Memory ledgers")
    head = ("server", "vLLM", "budget\nGiB", "weights\nGiB", "activations\nGiB", "graphs\nGiB", "KV cache\nGiB",
            "rest\nGiB", "KV blocks", "KV tokens\nprinted", "capture", "start\ns", "cache")  # fmt: skip
    rows = []
    for name, ledger in named:
        log = ledger.startup
        figures = (
            ledger.budget_gib, log.weights_gib, log.activations_gib, log.graphs_estimated_gib, log.kv_cache_gib,
            ledger.rest_gib,
        )  # fmt: skip
        cells: list[Inline] = [name, log.vllm_version, *(Number(value, digits=2) for value in figures)]
        cells += [_count(ledger.kv_cache_blocks), _count(log.kv_cache_tokens_logged), _count(log.capture_effective)]
        cells += [Number(log.total_s), log.compile_cache]
        rows.append(Row(cells))
    yield Table(head, rows, numbers_from=2, numbers_to=12, group=4)
    for remark in remarks:
        yield Paragraph(remark, "warning")


def plan_document(plan: ConfigPlan, prompt_tokens: int | None = None) -> Iterator[Block]:
    prediction = plan.prediction
    yield Heading("Plan (predicted, nothing was launched)")
    if plan.cannot_start is not None:
        yield Paragraph(f"This configuration cannot start: {plan.cannot_start}", "warning")
    if prediction is None:
        return
    yield facts(
        ("weights", _gib(prediction.weights_gib), "on each card"),
        ("graphs", _gib(prediction.graphs_gib), "vLLM's estimate"),
        (
            "KV cache",
            _gib(prediction.kv_cache_gib),
            f"{_gib(prediction.kv_cache_gib_low)} to {_gib(prediction.kv_cache_gib_high)}",
        ),
        ("KV blocks", _count(prediction.kv_cache_blocks), f"of {plan.layout.block_tokens} tokens"),
        ("KV tokens", _count(prediction.kv_cache_tokens), "longest single request"),
        ("KV tokens, printed", _count(prediction.kv_cache_tokens_printed), "what that version's log would say"),
        ("requests that fit", _count(prediction.requests_that_fit), "needs --context"),
        ("risk", prediction.risk, ""),
    )
    yield Paragraph(f"basis: {prediction.basis}", "quiet")
    gain = _gain(plan, prompt_tokens)
    if gain is not None:
        yield Paragraph(gain, "quiet")


def plans_document(plans: Sequence[tuple[int | None, ConfigPlan]], prompt_tokens: int | None = None) -> Iterator[Block]:
    yield Heading("Plan (predicted, nothing was launched)")
    head = ("capture", "graphs\nGiB", "KV cache\nGiB", "from", "to", "KV blocks", "requests\nthat fit", "risk", "")
    rows = []
    for capture, plan in plans:
        found = plan.prediction
        if found is None:
            continue
        figures = (found.graphs_gib, found.kv_cache_gib, found.kv_cache_gib_low, found.kv_cache_gib_high)
        cells: list[Inline] = [_count(capture) if capture is not None else "default"]
        cells += [Number(value, digits=2) for value in figures]
        cells += [_count(found.kv_cache_blocks), _count(found.requests_that_fit), found.risk]
        rows.append(Row([*cells, "cannot start" if plan.cannot_start else ""]))
    yield Table(head, rows, numbers_from=1, numbers_to=7)
    first = next((plan.prediction for _, plan in plans if plan.prediction is not None), None)
    if first is not None:
        yield Paragraph(f"basis of the first: {first.basis}", "quiet")
    for _, plan in plans:
        gain = _gain(plan, prompt_tokens)
        if gain is not None:
            yield Paragraph(gain, "quiet")


def _gain(plan: ConfigPlan, prompt_tokens: int | None) -> str | None:
    if plan.target is None or plan.calibration is None or prompt_tokens is None:
        return None
    return capture_gain_of(plan.target, prompt_tokens, min(64, plan.target.capture), plan.calibration)


_Fact = tuple[Inline, Inline, Inline]


def _memory_rows(ledger: MemoryLedger) -> list[_Fact]:
    log = ledger.startup
    shares = ", ".join(f"{w.name} {w.kv_cache_gib:g}" for w in log.workers if w.kv_cache_gib is not None)
    budget = f"requested utilisation {_plain(log.requested.get('gpu_memory_utilization'))} x CUDA's total"
    hold = "with the graphs' estimate in it" if log.activations_hold_graphs else ""
    applied = {True: "taken off the KV cache", False: "not taken off the KV cache", None: ""}
    return [
        ("budget", _gib(ledger.budget_gib), budget if ledger.budget_gib is not None else f"{budget}: give --card"),
        ("weights", _gib(log.weights_gib), ""),
        ("activations", _gib(log.activations_gib), hold or "in the rest where vLLM does not print them"),
        ("outside PyTorch", _gib(log.non_torch_gib), "context, libraries; in the rest, or in what vLLM calls consumed"),
        ("graphs, estimated", _gib(log.graphs_estimated_gib), applied[log.graphs_estimate_applied]),
        ("graphs, actual", _gib(log.graphs_actual_gib), ""),
        ("KV cache", _gib(log.kv_cache_gib), f"the tightest of: {shares}" if len(log.workers) > 1 else ""),
        ("rest", _gib(ledger.rest_gib), "budget - the parts: CUDA context, libraries, activations"),
        ("KV blocks", _count(ledger.kv_cache_blocks), f"of {_plain(ledger.attention_block_tokens)} tokens"),
        ("KV tokens", _count(ledger.kv_cache_tokens), "longest single request (this project's definition)"),
        ("KV tokens, printed", _count(log.kv_cache_tokens_logged), log.kv_cache_tokens_formula or ""),
        ("concurrency, printed", _plain(log.max_concurrency_logged), "at max_model_len"),
    ]


def _setting_rows(log: StartupLog) -> list[_Fact]:
    def asked(name: str) -> str:
        value = log.requested.get(name)
        return f"requested {'auto' if (name, value) == ('max_model_len', -1) else _plain(value)}"

    captured = f"{_plain(log.capture_effective)} / {_plain(log.capture_effective_full)}"
    drafted = "none" if log.recognised and not log.speculative_tokens else f"{_plain(log.speculative_tokens)} tokens"
    return [
        ("capture size", captured, f"PIECEWISE / FULL, {asked('max_cudagraph_capture_size')}"),
        ("prompts inside the graphs", *_prompts_inside(log.capture_effective)),
        ("max_model_len", _count(log.max_model_len_effective), asked("max_model_len")),
        ("batched tokens", _count(log.max_num_batched_tokens), asked("max_num_batched_tokens")),
        ("max_num_seqs", UNKNOWN, f"{asked('max_num_seqs')}; vLLM does not print it"),
        ("KV dtype", log.kv_cache_dtype, asked("kv_cache_dtype")),
        ("prefix caching", _plain(log.enable_prefix_caching), asked("enable_prefix_caching")),
        ("drafter", log.speculative_method, drafted),
        ("attention", log.attention_backend, ""),
        ("quantisation", log.quantization_backend, ""),
        ("top-k and top-p", log.sampler, ""),
        ("asynchronous scheduling", _plain(log.async_scheduling), ""),
    ]


def _prompts_inside(capture: int | None) -> tuple[Inline, Inline]:
    if not capture:
        return UNKNOWN, ""
    least, most = CAPTURE_GAIN.saved
    gain = f"TTFT at one stream -{least:.0%} to -{most:.0%} there on H100s, elsewhere not known ({CAPTURE_GAIN.source})"
    return f"up to {min(capture, GAIN_UP_TO_TOKENS):,} tokens", gain


def _time_rows(ledger: MemoryLedger) -> list[_Fact]:
    log, vram, over = ledger.startup, ledger.vram, ledger.vram_over_budget_mib
    parts = (log.setup_s, log.load_s, log.compile_s, log.profile_s, log.capture_s, log.other_s)
    times = f"set-up / load / compile / profile / capture / other: {_slashed(parts)}"
    used = _slashed((vram.before_mib, vram.ready_mib, vram.peak_mib, vram.after_mib), digits=0)
    unknown = Number(ledger.nvml_minus_parts_mib, "MiB", 0, signed=True)
    risk = "a risk, no proof: PyTorch can give cached memory back" if over else ""
    return [
        ("start-up", Number(log.total_s, "s"), times + (f" ({log.compile_cache})" if log.compile_cache else "")),
        ("init engine", Number(log.init_s, "s"), "as printed"),
        ("VRAM before / ready / peak / after", used, "MiB, NVML"),
        ("NVML at ready - the parts", unknown, "CUDA context, libraries, allocator cache"),
        ("VRAM peak over budget", Number(over, "MiB", 0, signed=True), risk),
    ]


def _slashed(values: Sequence[float | None], digits: int | None = None) -> str:
    return " / ".join(str(Number(value, digits=digits)) for value in values)


def _gib(value: float | None) -> Number:
    return Number(value, "GiB", 2)


def _count(value: int | None) -> Number:
    return Number(value, digits=0)


def _plain(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")

"""The tables of docs/simulator.md that the calibration writes."""

from __future__ import annotations

import re
from pathlib import Path

from qwenbench.simulator.steptime import StepModel
from simulator_calibration.compare import LIMITS, Comparison
from simulator_calibration.measures import STALL_FACTOR, engine_steps, first_wave_end
from simulator_calibration.startup import Phases

DIGITS = {"itl_p50_ms": 2, "tokens_per_s": 0, "ttft_p50_ms": 0}


def residual_table(comparisons: list[Comparison], held_out: list[Comparison]) -> str:
    """Recorded, simulated and their difference, a row per load; the worst also where each load was held out."""
    lines = [
        "| load | ITL p50 ms | tokens/s | TTFT p50 ms | preemptions (simulated) |",
        "|---|---|---|---|---|",
    ]
    for item in comparisons:
        cells = [
            _cell(item, key, digits) for key, digits in (("itl_p50_ms", 2), ("tokens_per_s", 0), ("ttft_p50_ms", 0))
        ]
        lines.append(f"| {item.load.name} | {' | '.join(cells)} | {item.preemptions} |")
    text = "\n".join(lines) + f"\n\nWorst: {_worst(comparisons)}."
    if held_out:
        text += f"\n\nWorst where each load is judged by a fit to all the others: {_worst(held_out)}."
    return text


def _worst(comparisons: list[Comparison]) -> str:
    worst = []
    for key, limit in LIMITS.items():
        values = [abs(value) for item in comparisons if (value := item.residual(key)) is not None]
        worst.append(f"{key} {max(values):.1%} (limit {limit:.0%}, {len(values)} loads)")
    return "; ".join(worst)


def _cell(item: Comparison, key: str, digits: int) -> str:
    residual = item.residual(key)
    if residual is None:
        return "-"
    recorded, simulated = getattr(item.recorded, key), getattr(item.simulated, key)
    mark = " **beyond**" if key in item.beyond else ""
    return f"{recorded:.{digits}f} → {simulated:.{digits}f} ({residual:+.1%}){mark}"


def stall_table(comparisons: list[Comparison], model: StepModel) -> str:
    """First-wave steps that took far longer than the model has for the longest of that load."""
    lines = ["| load | steps left out | seconds over the model |", "|---|---|---|"]
    for item in comparisons:
        load = item.load
        batch = min(load.concurrency, load.server.max_num_seqs)
        longest = STALL_FACTOR * model.mixed_ms(batch, load.server.max_num_batched_tokens)
        until = first_wave_end(load.requests, load.concurrency)
        first = load.requests[0]
        opening = (first.token_times[0] - first.start) * 1e3
        lengths = [opening, *(step.milliseconds for step in engine_steps(load.requests) if step.at <= until)]
        over = [length for length in lengths if length > longest]
        if over:
            lines.append(f"| {load.name} | {len(over)} | {sum(over) / 1e3 - len(over) * longest / 1e3:.2f} |")
    return "\n".join(lines)


def startup_table(starts: list[Phases], typical: dict[str, dict[str, float]]) -> str:
    """Each recorded start by phase, and what the simulator takes for cold and warm."""
    keys = list(typical["cold"])
    lines = [
        "| start | " + " | ".join(key.removesuffix("_s") for key in keys) + " | all |",
        "|---" * (len(keys) + 2) + "|",
    ]
    rows = [(f"{start.name} ({'cold' if start.cold else 'warm'})", start.seconds) for start in starts]
    rows += [(f"**simulated {label}**", seconds) for label, seconds in typical.items()]
    for name, seconds in rows:
        cells = " | ".join(f"{seconds[key]:.1f}" for key in keys)
        lines.append(f"| {name} | {cells} | {sum(seconds.values()):.1f} |")
    return "\n".join(lines)


def put_between_markers(path: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- NAME -->` and `<!-- /NAME -->` in a Markdown file."""
    page = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path}: no <!-- {name} --> ... <!-- /{name} --> to write into")
    path.write_text(pattern.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page), encoding="utf-8")
